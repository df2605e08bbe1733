"""I²B-LPO as small rooms: entropy, forks, latents, PSA, information bottleneck, GRPO.

An independent reconstruction of the method of arXiv 2601.05870. "METHOD §4" in a docstring refers
to that section of docs/method.md, where tags say what each statement rests on: [P], [S], [C], [I]
or [D]. Importing the package loads nothing else; rooms and their names are imported when they are
first used:

>>> import i2b_lpo
>>> i2b_lpo.method.advantages.__module__
'i2b_lpo.method.grpo'
"""

import pkgutil

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=[room.name for room in pkgutil.iter_modules(__path__)]
)
