"""The method's formulas as pure functions: entropy, latents, PSA, S_IB, the filters and GRPO."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
