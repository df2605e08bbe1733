"""The methods by name: what each sets of a run, and what it makes of the advantages.

A method is mostly settings. What settings can't say is a hook: it sees a step's trees with their
group advantages and returns a number for each token, and the update never asks which method that
was. Hooks take records and return plain numbers, so nothing here needs torch.

A new method is one entry of `METHODS`. Its name then counts everywhere: on the command line, in
files of settings, in what a run records of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from i2b_lpo.config import NO_IB, BranchConfig, IBConfig, RunConfig
from i2b_lpo.trace import Trace

__all__ = ["METHODS", "Hook", "Method", "PerToken", "with_method"]

PerToken: TypeAlias = Sequence[Sequence[Sequence[float]]]
"""For each question, for each of its G trajectories, one number for each token of it."""

Hook: TypeAlias = Callable[[Sequence[Trace], Sequence[Sequence[float]], RunConfig], PerToken]
"""``(traces, advantages, config) -> numbers``: the trees of a process's questions, filtered, and
their group advantages A, Q rows of G. Numbers before a branch's fork are never used: these tokens
are its parent's."""


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        title: what reports and figures call it.
        source: where it comes from.
        configure: a run's settings → those of the method, with groups of the same size. It sets
            anew what it owns, so that the last method alone counts.
        advantages: A of each token; None gives each trajectory's A to all its tokens.
        weights: a factor on each token's surrogate, not on the self-reward term; None is 1.
    """

    title: str
    source: str
    configure: Callable[[RunConfig], RunConfig]
    advantages: Hook | None = None
    weights: Hook | None = None


def _grouped(config: RunConfig, *, branches: int, ib: IBConfig, alpha: float) -> RunConfig:
    """M = G/(1+K) first rollouts, each with a fork of K branches."""
    first, rest = divmod(config.group, 1 + branches)
    if rest:
        raise ValueError(
            f"A group has {config.group} trajectories (rollout.rollouts is "
            f"{config.rollout.rollouts}); I²B-LPO needs a multiple of {1 + branches}: each first "
            f"rollout with its {branches} branches."
        )
    return replace(
        config,
        rollout=replace(config.rollout, rollouts=first),
        branch=BranchConfig(branches=branches),
        ib=ib,
        grpo=replace(config.grpo, alpha=alpha, train_psa=False),
    )


def _grpo(config: RunConfig) -> RunConfig:
    return _grouped(config, branches=0, ib=NO_IB, alpha=0.0)


def _i2b_lpo(config: RunConfig) -> RunConfig:
    """Forks, latents with PSA, S_IB, the Top-2 filter and the self-reward term (METHOD §0)."""
    return _grouped(config, branches=3, ib=IBConfig(), alpha=0.005)


METHODS: dict[str, Method] = {
    "grpo": Method("GRPO", "METHOD §6 [C]", _grpo),
    "i2b-lpo": Method("I²B-LPO", "METHOD §0; K = 3 and α = .005 [C]", _i2b_lpo),
}
"""The methods by name."""


def with_method(config: RunConfig, name: str) -> RunConfig:
    """A run's settings under another method, with groups of the same size.

    GRPO and I²B-LPO own M, `branch`, `ib`, `grpo.alpha` and `grpo.train_psa` and set them anew,
    whatever they were; of them only G is kept. So the last method alone counts, and your own values
    of these come after it.

    Raises:
        ValueError: unknown name, or a group that 1+K doesn't divide.

    Example:
        >>> run = with_method(RunConfig(), "i2b-lpo")
        >>> run.method, run.rollout.rollouts, run.branch.branches, run.group
        ('i2b-lpo', 2, 3, 8)
    """
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}; choose {' or '.join(METHODS)}.")
    return replace(METHODS[name].configure(config), method=name)
