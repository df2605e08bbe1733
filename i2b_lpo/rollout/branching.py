"""Rollouts → forks → latents → branches → trees (METHOD §2–§4).

All forks of all rollouts of all questions continue in one batch, from the rollouts' own keys and
values. A branch's context is always its prompt and the stored tokens before its fork.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from i2b_lpo.config import BranchConfig
from i2b_lpo.method.checks import check
from i2b_lpo.method.entropy import choose_fork
from i2b_lpo.model.cache import KeyValues
from i2b_lpo.model.decoding import Prefix, decode_branches, read_without_z, unread
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.model.steering import Steering
from i2b_lpo.rollout.rollouts import Reward, records, sample, verified
from i2b_lpo.trace import Branch, Question, Rollout, Trace

__all__ = ["Fork", "branch_out", "choose_forks", "grow_trees"]


@dataclass(frozen=True)
class Fork:
    """Where to branch a trajectory: tree and trajectory by index, and the position t*."""

    tree: int
    parent: int
    t: int


def grow_trees(
    policy: Policy,
    questions: Sequence[Question],
    sampling: Sampling,
    config: BranchConfig,
    *,
    rollouts: int,
    steering: Steering | None = None,
    generator: torch.Generator,
    batch: int = 128,
    on_batch: Callable[[int], None] | None = None,
    reward: Reward | None = None,
) -> list[Trace]:
    """M verified rollouts per question, and K verified branches from a fork of each.

    Args:
        policy: the policy to sample from.
        questions: what to ask.
        sampling: length limit of a whole trajectory, temperature and top-p.
        config: K, rounds, fork rule, fusion and sampler.
        rollouts: M, for each question.
        steering: the policy's latents; not needed for the fusion "none".
        generator: source of all randomness (on the CPU).
        batch: rows decoded at a time, at least one question's; it bounds the memory.
        on_batch: called after each batch with the number of questions it finished.
        reward: replaces the verifier.

    Returns:
        One tree per question, of M(1+K) trajectories for one round.

    Raises:
        ValueError: M below 1; an unknown fork rule, fusion or sampler; no steering, or one with a
            fusion other than `config` names.
    """
    if rollouts < 1:
        raise ValueError(f"rollouts is {rollouts}; give at least 1.")
    check(config)
    _check_latents(config, steering)
    trees: list[Trace] = []
    width = max(1, batch // (rollouts * max(1, config.branches**config.rounds)))
    for begin in range(0, len(questions), width):
        part = questions[begin : begin + width]
        found, kv = sample(
            policy,
            part,
            sampling,
            rollouts=rollouts,
            generator=generator,
            keep_kv=config.branches > 0,
        )
        if config.branches:
            places = [(tree, i) for tree in range(len(part)) for i in range(rollouts)]
            roots = dict(zip(places, kv, strict=True))
            found = branch_out(policy, found, roots, sampling, config, steering, generator)
        trees += verified(found, reward)
        if on_batch is not None:
            on_batch(len(part))
    return trees


def _check_latents(config: BranchConfig, steering: Steering | None) -> None:
    if not config.branches or config.fusion == "none":
        return
    if steering is None:
        raise ValueError(f"The fusion {config.fusion!r} needs latents; pass steering=.")
    if steering.fusion_name != config.fusion:
        raise ValueError(
            f"These latents were trained for the fusion {steering.fusion_name!r}, not for "
            f"{config.fusion!r}; train them with i2b-lpo train-latents --fusion {config.fusion}."
        )


def choose_forks(
    trees: Sequence[Trace],
    parents: Sequence[tuple[int, int]],
    config: BranchConfig,
    generator: torch.Generator,
) -> list[Fork]:
    """One fork for each of the named trajectories, among its own tokens."""
    forks = []
    for tree, parent in parents:
        start = trees[tree].start(parent)
        own = trees[tree].rollouts[parent].entropies[start:]
        t = choose_fork(own, config.rule, fraction=config.fraction, generator=generator)
        forks.append(Fork(tree, parent, start + t))
    return forks


def branch_out(
    policy: Policy,
    trees: Sequence[Trace],
    kv: dict[tuple[int, int], KeyValues],
    sampling: Sampling,
    config: BranchConfig,
    steering: Steering | None,
    generator: torch.Generator,
    *,
    forks: Sequence[Fork] | None = None,
) -> list[Trace]:
    """Add the branches of every round; not yet verified.

    Args:
        policy: the policy to sample from.
        trees: traces that hold only roots.
        kv: (tree, trajectory) → the keys and values of that root.
        sampling: as in `grow_trees`; `max_new_tokens` bounds the whole trajectory.
        config: K, rounds, fork rule, fusion and sampler.
        steering: latents for the fusion; None re-samples.
        generator: source of all randomness.
        forks: where the first round branches; None: where `config.rule` says.

    Raises:
        ValueError: a given fork isn't at a token of its root.
    """
    for fork in forks or ():
        if not 0 <= fork.t < len(trees[fork.tree].rollouts[fork.parent]):
            raise ValueError(f"{fork} isn't at a token of its root; t counts from 0.")
    latest = [(i, j) for i, tree in enumerate(trees) for j in range(len(tree.rollouts))]
    growth = _Growth(policy, sampling, config, steering, generator, list(trees), dict(kv))
    for number in range(1, config.rounds + 1):
        if forks is not None and number == 1:
            chosen = list(forks)
        else:
            chosen = choose_forks(growth.trees, latest, config, generator)
        latest = growth.branch(chosen, number)
    rule = config.rule if forks is None else "given"
    said = {"fork_rule": rule, "sampler": config.sampler}
    return [
        replace(t, meta=t.meta | said | {"refed_tokens": growth.refed[at]})
        for at, t in enumerate(growth.trees)
    ]


@dataclass
class _Growth:
    """Trees that grow round by round, and the keys and values that branches continue from."""

    policy: Policy
    sampling: Sampling
    config: BranchConfig
    steering: Steering | None
    generator: torch.Generator
    trees: list[Trace]
    kv: dict[tuple[int, int], KeyValues]  # made without z, of a prefix of each trajectory
    refed: Counter[int] = field(default_factory=Counter)  # tokens read again, by tree

    def branch(self, forks: Sequence[Fork], number: int) -> list[tuple[int, int]]:
        """Round `number`: K branches from each fork, appended to their trees; says where."""
        prefixes = self._prefixes(forks)
        steering = None if self.config.fusion == "none" else self.steering
        z = None if steering is None else self._draw(steering, prefixes)
        decoded = decode_branches(
            self.policy,
            prefixes,
            [self.sampling.max_new_tokens - fork.t for fork in forks],
            self.sampling,
            branches=self.config.branches,
            injection=None if steering is None or z is None else steering.injection(z),
            generator=self.generator,
        )
        added = [list(tree.rollouts) for tree in self.trees]
        where = []
        for at, own in enumerate(records(self.policy, decoded)):
            fork = forks[at // self.config.branches]
            tree = self.trees[fork.tree]
            branch = Branch(fork.parent, p=len(tree.prompt_ids) + fork.t, round=number)
            if steering is not None and z is not None:
                branch = _with_z(branch, steering, z[at])
            key = fork.tree, len(added[fork.tree])
            where.append(key)
            self.kv[key] = prefixes[at // self.config.branches].kv
            joined = _join(self.policy, tree.rollouts[fork.parent], fork.t, own, branch)
            added[fork.tree].append(joined)
        self.trees = [replace(t, rollouts=tuple(r)) for t, r in zip(self.trees, added, strict=True)]
        return where

    def _prefixes(self, forks: Sequence[Fork]) -> list[Prefix]:
        """The tokens before each fork with their keys and values."""
        whole = []
        for fork in forks:
            tree = self.trees[fork.tree]
            whole.append((*tree.prompt_ids, *tree.rollouts[fork.parent].ids[: fork.t]))
        rows = [self.kv[fork.tree, fork.parent] for fork in forks]
        # A branch's own tokens were read with its z: read them again without z.
        segments = [unread(c, row) for c, row in zip(whole, rows, strict=True)]
        if short := [i for i, segment in enumerate(segments) if segment]:
            again = read_without_z(
                self.policy, [rows[i] for i in short], [segments[i] for i in short]
            )
            for i, row in zip(short, again, strict=True):
                rows[i] = row
                self.refed[forks[i].tree] += len(segments[i])
        return [Prefix(c, row) for c, row in zip(whole, rows, strict=True)]

    def _draw(self, steering: Steering, prefixes: Sequence[Prefix]) -> Tensor:
        """K latents at each prefix, (B, d_z), those of one fork as neighbours."""
        drawn = steering.draw(
            self.policy,
            [prefix.ids for prefix in prefixes],
            self.config.branches,
            sampler=self.config.sampler,
            generator=self.generator,
        )
        return drawn.flatten(0, 1)


def _with_z(branch: Branch, steering: Steering, z: Tensor) -> Branch:
    """The branch with what its latent was, and how it was injected."""
    return replace(
        branch,
        fusion=steering.fusion_name,
        z=tuple(z.tolist()),
        gamma=steering.strength.gamma,
        decay=steering.strength.decay,
        version=steering.version,
    )


def _join(policy: Policy, parent: Rollout, t: int, own: Rollout, branch: Branch) -> Rollout:
    """The whole trajectory of a branch: its parent's first t tokens, then its own."""
    ids = parent.ids[:t] + own.ids
    return Rollout(
        ids=ids,
        pieces=parent.pieces[:t] + own.pieces,
        entropies=parent.entropies[:t] + own.entropies,
        logprobs=parent.logprobs[:t] + own.logprobs,
        logprobs_t1=parent.logprobs_t1[:t] + own.logprobs_t1,
        text=policy.text(ids),
        finished=own.finished,
        branch=branch,
    )
