"""Out of memory: repeat the passes with half the tokens each, or say in one sentence what to lower.

A smaller size isn't kept for the next step: a run depends only on its settings, not on what else
the machine was doing. So every step that doesn't fit says so, and which setting avoids the repeat.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

__all__ = ["OutOfMemory", "halving", "lowering", "one_pass", "ran_out"]

T = TypeVar("T")


class OutOfMemory(MemoryError):
    """Memory ran out, and smaller passes won't help; the message says what to lower."""


def ran_out(error: BaseException | None) -> bool:
    """Whether `error` says that memory ran out where smaller passes may help."""
    if isinstance(error, MemoryError):
        return not isinstance(error, OutOfMemory)
    return isinstance(error, Exception) and should_reduce_batch_size(error)


@contextmanager
def lowering(advice: str) -> Iterator[None]:
    """Turn an out-of-memory error in the block into one sentence.

    Raises:
        OutOfMemory: memory ran out; "Out of memory" and `advice` in one sentence.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(f"Out of memory {advice}") from error


@contextmanager
def one_pass(rows: int, tokens: int) -> Iterator[None]:
    """A pass over `rows` trajectories of `tokens` padded tokens in all.

    Raises:
        OutOfMemory: memory ran out, and there is only one trajectory.
    """
    if rows > 1:
        yield
        return
    more = "--set gradient_checkpointing=true, " if torch.is_grad_enabled() else ""
    with lowering(
        f"in a pass over one trajectory of {tokens} tokens; no parameter was changed. Take "
        f"{more}a lower --set rollout.max_new_tokens=N, or a smaller policy."
    ):
        yield


def halving(
    attempt: Callable[[int], T],
    tokens: int,
    *,
    agree: Callable[[Exception | None], Exception | None] = lambda error: error,
) -> T:
    """`attempt(tokens)`; if memory runs out, retry with half, from the same random state.

    Args:
        attempt: makes passes of at most that many padded tokens; a failed one leaves no trace.
        tokens: what is tried first.
        agree: what failed on any process (`i2b_lpo.training.agree`), so that all repeat.

    Raises:
        OutOfMemory: not even one token at a time fits; `attempt` may raise it earlier.
    """
    random = torch.get_rng_state(), torch.cuda.get_rng_state_all()
    while True:
        found: list[T] = []
        error: Exception | None = None
        try:
            found.append(attempt(tokens))
        except Exception as caught:
            # Without its traceback, whose frames hold the tensors that are to be freed.
            error = MemoryError(str(caught)) if ran_out(caught) else caught
        error = agree(error)
        if error is None:
            return found.pop()
        found.clear()
        if not ran_out(error):
            raise error
        if tokens <= 1:
            raise OutOfMemory("Out of memory at one token per pass; use a smaller policy.")
        clear_device_cache(garbage_collection=True)
        torch.set_rng_state(random[0])
        torch.cuda.set_rng_state_all(random[1])
        warnings.warn(
            f"Out of memory at {tokens} tokens per pass; repeated with {tokens // 2} (--set "
            f"grpo.micro_tokens={tokens // 2} avoids the repeat).",
            stacklevel=2,
        )
        tokens //= 2
