"""Do forks and latents add diversity? Equal budgets of generated tokens, on validation questions.

    python benchmarks/forks.py --policy tiny-base     # 10 minutes on one core
    python benchmarks/forks.py --policy tiny-grpo

Ways to spend one budget per question (trajectories are taken in the order they were made until the
next one would exceed it; a branch costs only its own tokens):

* independent samples;
* rollouts with K = 3 branches from a uniform fork, plain re-sampling (control);
* the same from an entropy-chosen fork (top 5 %);
* the same at equal depth (control): each rollout forks at the depth of another's entropy fork, as
  a share of its length, so that only H_t itself is removed from the choice;
* entropy forks with latents: PSA, K latents by `independent`, `spread`, and two controls: N(0, I),
  which is quieter than z, and `matched`, a random direction with the norm of a prior draw.

These are whole trees: a rollout's own tokens are paid for too. Branch sets compare re-sampling with
PSA, from the same rollouts and forks, at one budget of branch tokens alone. We count distinct
strategies among well-formed trajectories, distinct strategies among correct ones, and whether any
is correct. Means over questions with 95 % bootstrap intervals; differences are paired by question.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm.auto import tqdm

from i2b_lpo.config import BranchConfig
from i2b_lpo.method import bootstrap_interval
from i2b_lpo.model import Policy, Sampling, Steering, load_policy, load_steering
from i2b_lpo.rollout import branch_out, choose_forks, grow_trees, sample, verified
from i2b_lpo.tasks import Task, load_task
from i2b_lpo.trace import Question, Trace

RESULTS = Path(__file__).parent / "results"
SAMPLING = Sampling(160)
BUDGET, SET_BUDGET = 640, 360  # tokens a question; of branch tokens a question
ROOTS, K = 6, 3
CONTROL, PLAIN = "uniform forks", "entropy forks"
DEALT, MATCHED = "equal depth", "PSA, matched"


def spend(trace: Trace, order: Iterable[int], budget: int) -> tuple[list[int], int]:
    """The trajectories that fit the budget, in order, and the tokens they cost."""
    taken, cost = [], 0
    for i in order:
        own = len(trace.rollouts[i]) - trace.start(i)
        if cost + own > budget:
            break
        taken.append(i)
        cost += own
    return taken, cost


def counts(task: Task, trace: Trace, taken: Sequence[int]) -> dict[str, float]:
    """What the taken trajectories hold."""
    strategies, correct = set(), set()
    for i in taken:
        labels = task.label(trace.question, trace.rollouts[i].text)
        assert labels is not None
        if labels.well_formed:
            strategies.add(labels.signature)
            if trace.rollouts[i].correct:
                correct.add(labels.signature)
    return {
        "distinct strategies": float(len(strategies)),
        "distinct-correct": float(len(correct)),
        "any-correct": float(any(trace.rollouts[i].correct for i in taken)),
        "trajectories": float(len(taken)),
    }


def tree_order(trace: Trace) -> list[int]:
    """Each rollout, then its branches."""
    roots = [i for i, r in enumerate(trace.rollouts) if r.branch is None]
    children: dict[int, list[int]] = {i: [] for i in roots}
    for i, rollout in enumerate(trace.rollouts):
        if rollout.branch is not None:
            children[rollout.branch.parent].append(i)
    return [i for root in roots for i in (root, *children[root])]


def branch_order(trace: Trace) -> list[int]:
    """The first branch of each fork, then the second of each, …; no roots."""
    sets = trace.branch_sets()
    return [members[k] for k in range(len(sets[0])) for members in sets]


def depth(trees: Sequence[Trace]) -> float:
    """Mean place of the forks, as a share of the forked rollout."""
    return fmean(
        t.start(members[0]) / len(t.rollouts[branch.parent])
        for t in trees
        for members in t.branch_sets()
        if (branch := t.rollouts[members[0]].branch) is not None
    )


def at_equal_depth(
    policy: Policy,
    questions: Sequence[Question],
    config: BranchConfig,
    generator: torch.Generator,
    at_once: int = 7,
) -> list[Trace]:
    """Trees whose forks lie where the entropy forks of other rollouts do."""
    grown: list[Trace] = []
    for start in tqdm(range(0, len(questions), at_once), desc=DEALT):
        part = questions[start : start + at_once]
        found, read = sample(
            policy, part, SAMPLING, rollouts=ROOTS, generator=generator, keep_kv=True
        )
        places = [(tree, i) for tree in range(len(part)) for i in range(ROOTS)]
        forks = choose_forks(found, places, config, generator)
        lengths = [len(found[f.tree].rollouts[f.parent]) for f in forks]
        order = torch.randperm(len(forks), generator=generator).tolist()
        dealt = [
            replace(fork, t=forks[other].t * length // lengths[other])
            for fork, length, other in zip(forks, lengths, order, strict=True)
        ]
        kept = dict(zip(places, read, strict=True))
        grown += verified(
            branch_out(policy, found, kept, SAMPLING, config, None, generator, forks=dealt)
        )
    return grown


def table(rows: Sequence[dict[str, float]]) -> dict[str, str]:
    """Means with intervals."""
    return {name: str(bootstrap_interval([row[name] for row in rows])) for name in rows[0]}


def difference(
    one: Sequence[dict[str, float]], other: Sequence[dict[str, float]]
) -> dict[str, str]:
    """one − other, paired by question."""
    return {
        name: str(bootstrap_interval([a[name] - b[name] for a, b in zip(one, other, strict=True)]))
        for name in one[0]
    }


def main() -> None:
    """Measure one policy and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="tiny-grpo")
    parser.add_argument("--latents", default=None, help="folder; default: the bundled ones")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy, task = load_policy(arguments.policy), load_task("shop")
    steering = load_steering(policy, arguments.latents)
    questions = task.questions("validation", arguments.questions, seed=0)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(arguments.seed)

    def trees(config: BranchConfig, roots: int) -> list[Trace]:
        with tqdm(total=len(questions), desc=f"{config.rule} {config.fusion}") as bar:
            return grow_trees(
                policy,
                questions,
                SAMPLING,
                config,
                rollouts=roots,
                steering=None if config.fusion == "none" else steering,
                generator=generator(),
                on_batch=bar.update,
            )

    def measure(found: Sequence[Trace], order: Callable[[Trace], Iterable[int]], budget: int):  # type: ignore[no-untyped-def]
        taken = [spend(t, order(t), budget) for t in found]
        rows = [counts(task, t, got) for t, (got, _) in zip(found, taken, strict=True)]
        return rows, fmean(cost for _, cost in taken)

    plain = BranchConfig(branches=K, fusion="none")
    arms = {
        "independent samples": (replace(plain, branches=0), 3 * ROOTS),
        CONTROL: (replace(plain, rule="uniform"), ROOTS),
        PLAIN: (plain, ROOTS),
        "PSA, independent": (replace(plain, fusion="psa", sampler="independent"), ROOTS),
        "PSA, spread": (replace(plain, fusion="psa", sampler="spread"), ROOTS),
        "PSA, N(0, I)": (replace(plain, fusion="psa", sampler="standard_normal"), ROOTS),
        MATCHED: (replace(plain, fusion="psa", sampler="matched"), ROOTS),
        DEALT: (plain, ROOTS),
    }
    rows: dict[str, list[dict[str, float]]] = {}
    whole: dict[str, dict[str, Any]] = {}
    for name, (config, roots) in arms.items():
        if name == DEALT:
            grown = at_equal_depth(policy, questions, config, generator())
        else:
            grown = trees(config, roots)
        rows[name], cost = measure(grown, tree_order, BUDGET)
        whole[name] = table(rows[name]) | {"tokens": round(cost, 1)}
        if config.branches:
            whole[name]["depth"] = round(depth(grown), 3)
        print(name, whole[name], flush=True)
    sets, set_rows = branch_sets(policy, steering, questions, generator, measure)
    found: dict[str, Any] = {
        "policy": arguments.policy,
        "questions": len(questions),
        "seed": arguments.seed,
        "budget": BUDGET,
        "whole": whole,
        **{
            f"{PLAIN} - {other}": difference(rows[PLAIN], rows[other])
            for other in (CONTROL, DEALT, "independent samples")
        },
        **{
            f"{name} - {other}": difference(rows[name], rows[other])
            for name in ("PSA, independent", "PSA, spread")
            for other in (PLAIN, MATCHED, "independent samples")
        },
        f"{MATCHED} - {PLAIN}": difference(rows[MATCHED], rows[PLAIN]),
        "branch sets": {"budget": SET_BUDGET, **sets},
        **{
            f"branch sets, {name} - re-sampling": difference(found, set_rows["re-sampling"])
            for name, found in set_rows.items()
            if name != "re-sampling"
        },
        **{
            f"branch sets, {name} - {MATCHED}": difference(set_rows[name], set_rows[MATCHED])
            for name in ("PSA, independent", "PSA, spread")
        },
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread",
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"forks_{arguments.policy}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


def branch_sets(
    policy: Policy,
    steering: Steering,
    questions: Sequence[Question],
    generator: Callable[[], torch.Generator],
    measure: Callable[..., tuple[list[dict[str, float]], float]],
) -> tuple[dict[str, Any], dict[str, list[dict[str, float]]]]:
    """The same two rollouts and forks a question, branched in different ways."""
    plain = BranchConfig(branches=8, fusion="none")
    ways = {
        "re-sampling": plain,
        "PSA, independent": replace(plain, fusion="psa", sampler="independent"),
        "PSA, antithetic": replace(plain, fusion="psa", sampler="antithetic"),
        "PSA, spread": replace(plain, fusion="psa", sampler="spread"),
        "PSA, N(0, I)": replace(plain, fusion="psa", sampler="standard_normal"),
        MATCHED: replace(plain, fusion="psa", sampler="matched"),
    }
    grown: dict[str, list[Trace]] = {name: [] for name in ways}
    for start in tqdm(range(0, len(questions), 8), desc="branch sets"):
        part = questions[start : start + 8]
        found, read = sample(
            policy, part, SAMPLING, rollouts=2, generator=generator(), keep_kv=True
        )
        roots = {(tree, i): read[tree * 2 + i] for tree in range(len(part)) for i in range(2)}
        for name, config in ways.items():
            # The generator draws the forks first: the same ones for every way.
            grown[name] += verified(
                branch_out(policy, found, roots, SAMPLING, config, steering, generator())
            )
    table_of, rows = {}, {}
    for name, trees in grown.items():
        rows[name], cost = measure(trees, branch_order, SET_BUDGET)
        table_of[name] = table(rows[name]) | {"tokens": round(cost, 1)}
        print("branch sets,", name, table_of[name], flush=True)
    return table_of, rows


if __name__ == "__main__":
    main()
