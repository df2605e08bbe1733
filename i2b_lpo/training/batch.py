"""From traces to tensors: trajectories with advantages → padded batches (METHOD §6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from i2b_lpo.method.methods import PerToken
from i2b_lpo.method.psa import tokens_since_fork
from i2b_lpo.model.padding import mark, right_pad
from i2b_lpo.trace import Rollout, Trace

__all__ = ["Batch", "Trajectory", "pack", "trajectories_of"]


@dataclass(frozen=True)
class Trajectory:
    """One trajectory as the update sees it.

    Attributes:
        prompt_ids: its prompt.
        rollout: its tokens and their log-probs at sampling.
        advantage: A, of all its tokens unless `per_token` says more.
        dropped: it takes no part and doesn't count in the denominator.
        start: tokens it takes from its parent, which are not trained here.
        old_logprobs: log π_old of its own tokens without z, if they are trained so; else those of
            sampling hold. Given by `without_z`, whose weights hold the ratio to those.
        weights: factor on the surrogate of each of its own tokens; None is 1.
        per_token: A of each of its own tokens, where the method tells them apart.
    """

    prompt_ids: tuple[int, ...]
    rollout: Rollout
    advantage: float
    dropped: bool = False
    start: int = 0
    old_logprobs: tuple[float, ...] | None = None
    weights: tuple[float, ...] | None = None
    per_token: tuple[float, ...] | None = None

    @property
    def z(self) -> tuple[float, ...]:
        """The latent it was drawn with; empty if there was none."""
        return () if self.rollout.branch is None else self.rollout.branch.z

    @property
    def new_tokens(self) -> int:
        """How many tokens are its own: Σ_t m."""
        return len(self.rollout) - self.start

    @property
    def active(self) -> bool:
        """Whether any of its tokens has an advantage."""
        return bool(self.advantage) if self.per_token is None else any(self.per_token)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.rollout)


@dataclass(frozen=True)
class Batch:
    """Trajectories as right-padded tensors, (B, T); `mask` is True on new tokens only.

    `weights` multiply the surrogate, `since` is s (negative before the fork and on roots), `z` the
    latents, (B, d_z); None if no trajectory has one.
    """

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    old_logp: Tensor
    advantages: Tensor
    weights: Tensor
    since: Tensor
    z: Tensor | None = None


def trajectories_of(
    traces: Sequence[Trace],
    advantages: Tensor,
    *,
    per_token: PerToken | None = None,
    weights: PerToken | None = None,
    dropped: Sequence[bool] | None = None,
) -> list[Trajectory]:
    """Pair every trajectory with its advantages; one that the filter pruned is dropped.

    Args:
        traces: the trees of Q questions.
        advantages: A, (Q, G).
        per_token: A of each token, see `i2b_lpo.method.Method`; None: as `advantages` says.
        weights: a factor on each token's surrogate, likewise; None is 1.
        dropped: one flag per question: its group takes no part.

    Raises:
        ValueError: a trajectory hasn't one advantage, or one weight, for each of its tokens.
    """
    flags = dropped or [False] * len(traces)
    rows = advantages.tolist()
    trajectories = []
    for at, (trace, row, flag) in enumerate(zip(traces, rows, flags, strict=True)):
        for i, (rollout, advantage) in enumerate(zip(trace.rollouts, row, strict=True)):
            out, start = flag or not rollout.kept, trace.start(i)
            trajectories.append(
                Trajectory(
                    trace.prompt_ids,
                    rollout,
                    0.0 if out else advantage,
                    out,
                    start,
                    weights=_own(weights, "weights", trace, at, i),
                    per_token=None if out else _own(per_token, "advantages", trace, at, i),
                )
            )
    return trajectories


def _own(
    numbers: PerToken | None, name: str, trace: Trace, at: int, i: int
) -> tuple[float, ...] | None:
    """Those of a trajectory's own tokens."""
    if numbers is None:
        return None
    found, length = numbers[at][i], len(trace.rollouts[i])
    if len(found) != length:
        raise ValueError(
            f"Trajectory {i} of question {trace.question.id} has {length} tokens and "
            f"{len(found)} {name}; give one for each token, those before the fork included."
        )
    return tuple(found[trace.start(i) :])


def pack(
    trajectories: Sequence[Trajectory], pad_id: int, device: torch.device | str = "cpu"
) -> Batch:
    """Right-pad trajectories into one batch: column t of every tensor is token t."""
    ids, attention = right_pad([(*t.prompt_ids, *t.rollout.ids) for t in trajectories], pad_id)
    width = ids.shape[1]
    mask = mark([(len(t) - t.new_tokens, len(t)) for t in trajectories], width).bool()
    old, advantages = torch.zeros(2, *mask.shape)
    weights = torch.ones(mask.shape)
    since = torch.full(mask.shape, -1)
    size = max((len(t.z) for t in trajectories), default=0)
    z = torch.zeros(len(trajectories), size, dtype=torch.float64)  # as recorded; the fusion narrows
    for row, trajectory in enumerate(trajectories):
        own = trajectory.old_logprobs or trajectory.rollout.logprobs[trajectory.start :]
        old[row, mask[row]] = torch.tensor(own)
        per_token = trajectory.per_token
        advantages[row, mask[row]] = torch.tensor(
            trajectory.advantage if per_token is None else per_token
        )
        if trajectory.weights is not None:
            weights[row, mask[row]] = torch.tensor(trajectory.weights)
        branch = trajectory.rollout.branch
        if branch is not None and branch.z:
            z[row] = torch.tensor(branch.z, dtype=torch.float64)
            since[row] = tokens_since_fork(width, branch.p)
    return Batch(
        input_ids=ids.to(device),
        attention_mask=attention.to(device),
        mask=mask.to(device),
        old_logp=old.to(device),
        advantages=advantages.to(device),
        weights=weights.to(device),
        since=since.to(device),
        z=z.to(device) if size else None,
    )
