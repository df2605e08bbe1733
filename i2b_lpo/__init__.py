"""I²B-LPO as small rooms: entropy, forks, latents, PSA, information bottleneck, GRPO.

An independent reconstruction of the method of arXiv 2601.05870. METHOD §4 and the like, in any
docstring, is that section of docs/method.md: what each statement rests on, [P], [S], [C], [I] or
[D]. Importing the package loads nothing else; each module is imported when it is first named:

>>> import i2b_lpo
>>> i2b_lpo.trace.__name__
'i2b_lpo.trace'
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from types import ModuleType

__all__ = ["__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    if name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *(module.name for module in pkgutil.iter_modules(__path__))])
