"""Several processes, one policy: devices, whole or sharded weights, errors, gradients.

A pass never communicates. Each process makes as many passes as its own trajectories need, then all
agree that none has failed, and only then are gradients summed. So one process may decode more
steps, run out of memory or meet a NaN, and no other waits for it forever.

Sharding is FSDP2: between passes each process holds its part of every weight, and of gradient and
optimizer state; `unsharded` gathers the weights for a block of passes, rollouts included. Left out:
gathering layer by layer within a pass. It would save memory only in the update, since the rollout
needs all weights anyway, and one failing process would hang all others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed import all_reduce, get_world_size
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

from i2b_lpo.infra.memory import OutOfMemory, ran_out

__all__ = [
    "agree",
    "gathered",
    "launcher_gone",
    "own_device",
    "put_gradients",
    "scatter_like",
    "shard",
    "together",
    "unsharded",
]


def own_device(device: str) -> str:
    """The device of this process: under torchrun, `cuda` is the GPU of its local rank.

    Raises:
        ValueError: several processes would share one GPU.
    """
    if not device.startswith("cuda") or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device != "cuda":
        raise ValueError(f"All processes would share {device}; give cuda, and each takes its own.")
    rank, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if rank >= found:
        raise ValueError(
            f"Process {rank} finds no GPU of its own among {found}; start with --nproc_per_node "
            f"{max(1, found)} at most, or give cpu."
        )
    return f"cuda:{rank}"


def launcher_gone() -> bool:
    """Whether torchrun ended without ending this process, as after kill -9."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != _LAUNCHER


_LAUNCHER = os.getppid()

# --- weights ------------------------------------------------------------------------------------


def shard(module: nn.Module, layers: Sequence[nn.Module], device: torch.device) -> None:
    """Leave each process with its part of every weight of `module`.

    Args:
        module: what is trained.
        layers: modules in it that are gathered one after the other; the rest is gathered together.
        device: where the weights are.
    """
    mesh = init_device_mesh(device.type, (get_world_size(),))
    for group in (*layers, module):
        sharded = fully_shard(group, mesh=mesh)
        # FSDP's hooks neither free nor reduce: `unsharded` and `put_gradients` do.
        sharded.set_reshard_after_forward(False)
        sharded.set_reshard_after_backward(False)
        sharded.set_requires_gradient_sync(False)


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Gather all weights of a sharded module for the block; all processes enter together.

    Nothing inside communicates. A module that isn't sharded, or is gathered already, stays as it
    is.
    """
    if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        yield
        return
    assert isinstance(module, FSDPModule)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.unshard()
    try:
        yield
    finally:
        module.reset_iter_state()  # shards again, even after a pass that failed half-way


def gathered(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered and detached (all processes take part); any other as it is."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor


def scatter_like(parameter: Tensor, full: Tensor) -> Tensor:
    """`full`, which every process holds, on `parameter`'s device and sharded as it is."""
    full = full.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return full
    return distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)


# --- errors -------------------------------------------------------------------------------------


def agree(accelerator: Accelerator, error: Exception | None) -> Exception | None:
    """What failed on any process, so that all act alike; None if nothing did.

    A process gets its own error back, or another's. Any other error takes precedence over memory
    that ran out where smaller passes may help.
    """
    if accelerator.num_processes == 1:
        return error
    own = None if error is None else (ran_out(error), _kind(error), str(error))
    told = [(rank, *t) for rank, t in enumerate(gather_object([own])) if t is not None]
    if not told:
        return None
    rank, small, kind, message = min(told, key=lambda t: t[1])
    if error is not None and ran_out(error) == small:
        return error
    others: Exception = kind(f"Process {rank}: {message}")
    return others


def _kind(error: Exception) -> type[Exception]:
    """A class that another process can raise with the message alone."""
    known = (FloatingPointError, OSError, OutOfMemory, MemoryError, ValueError)
    return next((kind for kind in known if isinstance(error, kind)), RuntimeError)


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """An exception in the block on one process is raised on all of them."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    error = agree(accelerator, error)
    if error is not None:
        raise error


# --- gradients ----------------------------------------------------------------------------------


def put_gradients(
    accelerator: Accelerator, parameters: Sequence[nn.Parameter], own: Sequence[Tensor | None]
) -> None:
    """Give each parameter the sum of all processes' gradients, sharded as it is.

    A parameter without a gradient on every process gets none, so that its moments stay as they are.
    """
    if accelerator.num_processes == 1:
        for parameter, gradient in zip(parameters, own, strict=True):
            parameter.grad = gradient
        return
    some = torch.tensor([float(g is not None) for g in own], device=accelerator.device)
    counts = accelerator.reduce(some).tolist()
    for parameter, gradient, count in zip(parameters, own, counts, strict=True):
        parameter.grad = None
        if not count:
            continue
        if gradient is None:
            gradient = torch.zeros(parameter.shape, dtype=parameter.dtype, device=some.device)
        if isinstance(parameter, DTensor):
            whole = DTensor.from_local(gradient, parameter.device_mesh, [Partial()])
            parameter.grad = whole.redistribute(placements=parameter.placements)
        else:
            all_reduce(gradient)
            parameter.grad = gradient
