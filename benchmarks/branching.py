"""Branching speed: all forks in one batch from cached keys and values, against `model.generate`.

The peer gets the prefixes of the same forks and reads each of them again: one branch at a time,
which `ratio` refers to, and all branches as one batch, which shows where the gain comes from. Ours
is the whole of `branch_out`: it also chooses the forks, records entropies and log-probs and joins
the trees; generate returns only ids.

    python benchmarks/branching.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _paired import Times, interleave, machine, report
from transformers import GenerationConfig

from i2b_lpo.config import BranchConfig
from i2b_lpo.model import KeyValues, Policy, Sampling, Steering, left_pad, load_policy, new_steering
from i2b_lpo.rollout import branch_out, sample
from i2b_lpo.tasks import load_task
from i2b_lpo.trace import Question, Trace

REQUIRED = 8.0
RATIO = (
    "seconds of generate, one branch at a time with a fresh prefill each / seconds of ours, medians"
    ", every trajectory the same length"
)
OURS, PSA = "ours", "ours, PSA"
SINGLE, BATCHED = "generate, one at a time", "generate, one batch"
ROLLOUTS, PEER_ROLLOUTS = "rollouts: ours", "rollouts: generate"
EQUAL_LENGTH = 96  # tokens of every trajectory where nobody stops early


@dataclass(frozen=True)
class Forest:
    """Rollouts to be branched, the random state at that point, and where they will be forked."""

    trees: list[Trace]
    read: dict[tuple[int, int], KeyValues]
    state: torch.Tensor
    prefixes: list[list[int]]  # one a branch, branches of one fork as neighbours
    limits: list[int]  # the most new tokens of each branch


def plant(
    policy: Policy, questions: Sequence[Question], sampling: Sampling, samples: int, k: int
) -> Forest:
    """M rollouts a question with what was read of them, and the forks that `branch_out` chooses."""
    generator = torch.Generator().manual_seed(0)
    trees, rows = sample(
        policy, questions, sampling, rollouts=samples, generator=generator, keep_kv=True
    )
    read = {(i // samples, i % samples): row for i, row in enumerate(rows)}
    forest = Forest(trees, read, generator.get_state(), [], [])
    for tree in grow(policy, forest, sampling, k):
        for rollout in tree.rollouts[samples:]:
            assert rollout.branch is not None
            parent, p = tree.rollouts[rollout.branch.parent], rollout.branch.p
            prefix = [*tree.prompt_ids, *parent.ids][:p]
            assert prefix == [*tree.prompt_ids, *rollout.ids][:p], "a branch has another prefix"
            forest.prefixes.append(prefix)
            forest.limits.append(sampling.max_new_tokens - (p - len(tree.prompt_ids)))
    assert len(forest.prefixes) == len(questions) * samples * k
    return forest


def grow(
    policy: Policy, forest: Forest, sampling: Sampling, k: int, steering: Steering | None = None
) -> list[Trace]:
    """Our branch phase. The random state is the forest's, so every call does the same work."""
    generator = torch.Generator()
    generator.set_state(forest.state)
    config = BranchConfig(branches=k, fusion=steering.fusion_name if steering else "none")
    return branch_out(policy, forest.trees, forest.read, sampling, config, steering, generator)


def own_tokens(trees: Sequence[Trace]) -> list[list[int]]:
    """The ids that are each branch's own, in the order of `Forest.prefixes`."""
    return [
        list(rollout.ids[tree.start(at) :])
        for tree in trees
        for at, rollout in enumerate(tree.rollouts)
        if rollout.branch is not None
    ]


def settings(policy: Policy, sampling: Sampling, tokens: int, samples: int = 1) -> GenerationConfig:
    """generate's settings: plain sampling from the whole vocabulary, or greedy."""
    drawn = {"temperature": sampling.temperature, "top_k": 0, "top_p": sampling.top_p}
    return GenerationConfig(
        do_sample=sampling.temperature > 0,
        **(drawn if sampling.temperature > 0 else {}),
        max_new_tokens=tokens,
        num_return_sequences=samples,
        pad_token_id=policy.pad_id,
        eos_token_id=[i for i in policy.eos_ids if i >= 0] or None,
        disable_compile=True,
    )


def generated(policy: Policy, rows: torch.Tensor) -> list[list[int]]:
    """New ids (B, T) of generate as lists that end with their end token."""
    found = []
    for row in rows.tolist():
        ends = [t for t, i in enumerate(row) if i in policy.eos_ids]
        found.append(row[: ends[0] + 1] if ends else row)
    return found


def one_at_a_time(
    policy: Policy, forest: Forest, sampling: Sampling
) -> Callable[[], list[list[int]]]:
    """generate for one branch after the other; its inputs are made beforehand."""
    calls = [
        (torch.tensor([prefix]), settings(policy, sampling, limit))
        for prefix, limit in zip(forest.prefixes, forest.limits, strict=True)
    ]

    def run() -> list[list[int]]:
        found = []
        for ids, how in calls:
            new = policy.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how
            )
            found += generated(policy, new[:, ids.shape[1] :])
        return found

    return run


def one_batch(policy: Policy, forest: Forest, sampling: Sampling) -> Callable[[], list[list[int]]]:
    """generate for all branches at once: it has one length limit, so short ones run too long."""
    ids, mask = left_pad(forest.prefixes, policy.pad_id)
    how = settings(policy, sampling, max(forest.limits))

    def run() -> list[list[int]]:
        new = policy.model.generate(input_ids=ids, attention_mask=mask, generation_config=how)
        return generated(policy, new[:, ids.shape[1] :])

    return run


def check(policy: Policy, questions: Sequence[Question], samples: int, k: int) -> None:
    """Greedy, in float64: each branch of ours is, id for id, what generate makes of its prefix."""
    exact = replace(policy, model=policy.model.double())
    try:
        forest = plant(exact, questions, Sampling(EQUAL_LENGTH), samples, k)
        greedy = Sampling(EQUAL_LENGTH, temperature=0.0)
        mine = own_tokens(grow(exact, forest, greedy, k))
        assert mine == one_at_a_time(exact, forest, greedy)(), "ours and generate differ"
        batched = one_batch(exact, forest, greedy)()
        cut = [row[:limit] for row, limit in zip(batched, forest.limits, strict=True)]
        assert mine == cut, "ours and generate in one batch differ"
    finally:
        policy.model.float()


def measure(
    policy: Policy, questions: Sequence[Question], args: argparse.Namespace, natural: bool
) -> dict[str, Any]:
    """Time the branch phase, and in natural mode the rollouts before it."""
    longest = args.natural_tokens if natural else EQUAL_LENGTH
    sampling = Sampling(longest)
    forest = plant(policy, questions, sampling, args.samples, args.k)
    subject = policy if natural else replace(policy, eos_ids=(-1,))
    steering = new_steering(policy, d_z=8)  # untrained: its numbers don't change its speed
    steering.fusion.requires_grad_(False)
    counts: dict[str, list[int]] = {}

    def counting(name: str, work: Callable[[], list[list[int]]]) -> Callable[[], None]:
        def run() -> None:
            counts.setdefault(name, []).append(sum(map(len, work())))

        return run

    def rollouts() -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        found, _ = sample(
            subject, questions, sampling, rollouts=args.samples, generator=generator, keep_kv=True
        )
        return [list(r.ids) for tree in found for r in tree.rollouts]

    prompts, mask = left_pad(policy.prompts(questions), policy.pad_id)
    first = settings(subject, sampling, longest, args.samples)

    def peer_rollouts() -> list[list[int]]:
        new = policy.model.generate(input_ids=prompts, attention_mask=mask, generation_config=first)
        return generated(subject, new[:, prompts.shape[1] :])

    works: dict[str, Callable[[], list[list[int]]]] = {
        OURS: lambda: own_tokens(grow(subject, forest, sampling, args.k)),
        PSA: lambda: own_tokens(grow(subject, forest, sampling, args.k, steering)),
        BATCHED: one_batch(subject, forest, sampling),
        SINGLE: one_at_a_time(subject, forest, sampling),
    }
    if natural:
        works |= {ROLLOUTS: rollouts, PEER_ROLLOUTS: peer_rollouts}
    else:
        for name in (OURS, PSA, SINGLE):
            lengths = list(map(len, works[name]()))
            assert lengths == forest.limits, f"{name} drew other numbers of tokens"
        assert set(map(len, works[BATCHED]())) == {max(forest.limits)}
    times = interleave({name: counting(name, work) for name, work in works.items()}, args.repeats)
    tokens = {name: found[1:] for name, found in counts.items()}  # the first call warms up

    rows = {
        name: summary(found, times[OURS], tokens[name], tokens[OURS])
        for name, found in times.items()
        if name not in (ROLLOUTS, PEER_ROLLOUTS)
    }
    show(rows)
    prefill = [len(prefix) for prefix in forest.prefixes]
    result: dict[str, Any] = {
        "branches": len(prefill),
        "prefix_tokens": {"mean": round(sum(prefill) / len(prefill), 1), "longest": max(prefill)},
        "limits": {
            "mean": round(sum(forest.limits) / len(prefill), 1),
            "longest": max(forest.limits),
        },
        "works": rows,
    }
    if natural:
        result["trees"] = trees(times, tokens)
    return result


def trees(times: dict[str, Times], tokens: dict[str, list[int]]) -> dict[str, Any]:
    """Whole trees: each turn's rollouts and branches, added up."""

    def total(rollouts: str, branches: str) -> tuple[Times, list[int]]:
        one, two = times[rollouts], times[branches]
        summed = Times(
            [a + b for a, b in zip(one.wall, two.wall, strict=True)],
            [a + b for a, b in zip(one.cpu, two.cpu, strict=True)],
        )
        return summed, [a + b for a, b in zip(tokens[rollouts], tokens[branches], strict=True)]

    ours, mine = total(ROLLOUTS, OURS)
    rows = {}
    for name, found in {
        OURS: (ours, mine),
        PSA: total(ROLLOUTS, PSA),
        BATCHED: total(PEER_ROLLOUTS, BATCHED),
        SINGLE: total(PEER_ROLLOUTS, SINGLE),
    }.items():
        rows[name] = summary(found[0], ours, found[1], mine)
    print("  whole trees: rollouts and branches")
    show(rows)
    return rows


def summary(
    found: Times, ours: Times, tokens: Sequence[int], mine: Sequence[int]
) -> dict[str, Any]:
    """Ratios to ours, and every timing."""
    per_token = [
        median(s / n for s, n in zip(t.wall, counted, strict=True))
        for t, counted in ((found, tokens), (ours, mine))
    ]
    return {
        "ratio": round(median(found.wall) / median(ours.wall), 3),
        "cpu_ratio": round(median(found.cpu) / median(ours.cpu), 3),
        "ratio_per_token": round(per_token[0] / per_token[1], 3),
        "milliseconds_per_token": round(1000 * per_token[0], 4),
        "tokens": list(tokens),
        **found.to_json(),
    }


def show(rows: dict[str, dict[str, Any]]) -> None:
    """A table of contenders."""
    print(f"  {'':26}{'seconds':>9}{'tokens':>8}{'ratio':>7}{'per token':>11}{'cpu ratio':>11}")
    for name, row in rows.items():
        print(
            f"  {name:26}{row['median_seconds']:9.3f}{median(row['tokens']):8.0f}"
            f"{row['ratio']:7.2f}{row['ratio_per_token']:11.2f}{row['cpu_ratio']:11.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="tiny-base", help="bundled name or folder")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--samples", type=int, default=2, help="M, rollouts of each question")
    parser.add_argument("-k", type=int, default=3, help="K, branches of each fork")
    parser.add_argument("--natural-tokens", type=int, default=160, help="limit in natural mode")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    there = machine()
    policy = load_policy(args.policy, instruction="")
    # generate fills what its settings leave open from here, and would stop at the end token.
    policy.model.generation_config.eos_token_id = None
    questions = load_task("shop").questions("validation", args.questions, seed=0)
    check(policy, questions, args.samples, args.k)

    modes = {}
    for name, natural in (("equal length", False), ("natural", True)):
        print(f"{name}: {args.questions} questions, M={args.samples}, K={args.k}, branches only")
        modes[name] = measure(policy, questions, args, natural)
    equal, free = modes["equal length"]["works"], modes["natural"]["works"]
    result = {
        "benchmark": "branching",
        "ratio": equal[SINGLE]["ratio"],
        "required": f">= {REQUIRED:g}",
        "met": equal[SINGLE]["ratio"] >= REQUIRED,
        "cpu_ratio": equal[SINGLE]["cpu_ratio"],
        "ratio_is": RATIO,
        "ratio_one_batch": equal[BATCHED]["ratio"],
        "ratio_natural_per_token": free[SINGLE]["ratio_per_token"],
        "ratio_whole_trees_per_token": modes["natural"]["trees"][SINGLE]["ratio_per_token"],
        "policy": Path(args.policy).name,
        "questions": args.questions,
        "samples": args.samples,
        "k": args.k,
        "equal_length": EQUAL_LENGTH,
        "natural_tokens": args.natural_tokens,
        "repeats": args.repeats,
        **there,
        "modes": modes,
    }
    report(result, args.json)


if __name__ == "__main__":
    main()
