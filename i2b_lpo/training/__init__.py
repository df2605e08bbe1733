"""Batches, updates, the loop with its checkpoints, and the trainings it rests on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
