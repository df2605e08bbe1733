"""From traces to tensors: trajectories with advantages → padded batches (METHOD §6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from i2b_lpo.model.padding import mark, right_pad
from i2b_lpo.trace import Rollout, Trace

__all__ = ["Batch", "Trajectory", "pack", "trajectories_of"]


@dataclass(frozen=True)
class Trajectory:
    """One trajectory as the update sees it.

    Attributes:
        prompt_ids: its prompt.
        rollout: its tokens and their log-probs at sampling.
        advantage: A.
        dropped: it takes no part and doesn't count in the denominator.
        start: tokens it has from its parent, which are not trained here.
        old_logprobs: log π_old of its own tokens without z, if they are trained so; else those of
            sampling hold.
        weights: factor on the surrogate of each of its own tokens; None is 1.
    """

    prompt_ids: tuple[int, ...]
    rollout: Rollout
    advantage: float
    dropped: bool = False
    start: int = 0
    old_logprobs: tuple[float, ...] | None = None
    weights: tuple[float, ...] | None = None

    @property
    def z(self) -> tuple[float, ...]:
        """The latent it was drawn with; empty if there was none."""
        return () if self.rollout.branch is None else self.rollout.branch.z

    @property
    def new_tokens(self) -> int:
        """How many tokens are its own: Σ_t m."""
        return len(self.rollout) - self.start

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.rollout)


@dataclass(frozen=True)
class Batch:
    """Trajectories as right-padded tensors, (B, T); `mask` is True on new tokens only.

    `weights` multiply the surrogate, `since` is s (negative before the fork and on roots), `z` the
    latents, (B, d_z); None if no trajectory has one or all are trained without.
    """

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    old_logp: Tensor
    advantages: Tensor  # (B,)
    weights: Tensor
    since: Tensor
    z: Tensor | None = None


def trajectories_of(
    traces: Sequence[Trace], advantages: Tensor, *, dropped: Sequence[bool] | None = None
) -> list[Trajectory]:
    """Pair every trajectory with its advantage; `advantages` is (Q, G), `dropped` one flag a group.

    A trajectory that the filter pruned is dropped too.
    """
    flags = dropped or [False] * len(traces)
    trajectories = []
    for trace, row, flag in zip(traces, advantages.tolist(), flags, strict=True):
        for i, (rollout, advantage) in enumerate(zip(trace.rollouts, row, strict=True)):
            out = flag or not rollout.kept
            trajectories.append(
                Trajectory(
                    trace.prompt_ids, rollout, 0.0 if out else advantage, out, trace.start(i)
                )
            )
    return trajectories


def pack(
    trajectories: Sequence[Trajectory], pad_id: int, device: torch.device | str = "cpu"
) -> Batch:
    """Right-pad trajectories into one batch: column t of every tensor is token t."""
    ids, attention = right_pad([(*s.prompt_ids, *s.rollout.ids) for s in trajectories], pad_id)
    width = ids.shape[1]
    mask = mark([(len(s) - s.new_tokens, len(s)) for s in trajectories], width).bool()
    old, factors = torch.zeros(ids.shape), torch.ones(ids.shape)
    since = torch.full(ids.shape, -1)
    size = max((len(s.z) for s in trajectories), default=0)
    z = torch.zeros(
        len(trajectories), size, dtype=torch.float64
    )  # as recorded; the fusion narrows it
    for row, trajectory in enumerate(trajectories):
        own = trajectory.old_logprobs or trajectory.rollout.logprobs[trajectory.start :]
        old[row, mask[row]] = torch.tensor(own)
        if trajectory.weights is not None:
            factors[row, mask[row]] = torch.tensor(trajectory.weights)
        branch = trajectory.rollout.branch
        if branch is not None and branch.z:
            since[row] = torch.arange(width) - (branch.p - 1)
            z[row] = torch.tensor(branch.z, dtype=torch.float64)
    advantages = torch.tensor([trajectory.advantage for trajectory in trajectories])
    return Batch(
        input_ids=ids.to(device),
        attention_mask=attention.to(device),
        mask=mask.to(device),
        old_logp=old.to(device),
        advantages=advantages.to(device),
        weights=factors.to(device),
        since=since.to(device),
        z=z.to(device) if size else None,
    )
