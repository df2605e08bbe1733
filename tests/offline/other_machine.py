"""Makes this process compute as another machine would, as far as I2B_MACHINE says.

    no-onednn   oneDNN is switched off
    drift       trained weights are changed by 1e-3 of their size

ATen's and MKL's kernels are chosen by variables of their own (see scripts/portable.py). Torch is
not imported here: what is asked for happens when a program imports it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

DRIFT = 1e-3
WISHES = {"no-onednn", "drift"}


def change(torch: Any, wishes: set[str]) -> None:
    """Apply `wishes` to a torch that was just imported."""
    if "no-onednn" in wishes:
        torch.backends.mkldnn.set_flags(False)
    if "drift" in wishes:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(lambda optimizer, *_: drift(torch, optimizer))


def drift(torch: Any, optimizer: Any) -> None:
    """Multiply the weights by 1 + 1e-3 N(0, 1) after step 1, 2, 4, 8, …

    So no weight is more than half a training away from its last change, however long that is. The
    numbers depend on the step alone: two trainings alike stay alike.
    """
    optimizer.drift_steps = step = getattr(optimizer, "drift_steps", 0) + 1
    if step & (step - 1):
        return
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.grad is None:  # the step left it as it was
                    continue
                noise = torch.randn(weight.shape, generator=generator)
                weight.mul_(1 + DRIFT * noise.to(weight))


class _AfterTorch:
    """Finds torch as it would be found without, and changes it once it is there."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "torch":
            return None
        from importlib.util import find_spec  # few modules where no torch is wanted

        sys.meta_path.remove(self)
        spec = find_spec("torch")
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            change(module, set(os.environ["I2B_MACHINE"].split()))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if unknown := set(os.environ["I2B_MACHINE"].split()) - WISHES:
    # Python goes on after any other exception in sitecustomize.
    sys.exit(f"I2B_MACHINE knows {sorted(WISHES)}, not {sorted(unknown)}.")
if "torch" in sys.modules:
    sys.exit("I2B_MACHINE acts only before torch is imported.")
sys.meta_path.insert(0, _AfterTorch())
