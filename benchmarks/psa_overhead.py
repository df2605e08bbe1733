"""What a latent costs while decoding: `decode_branches` with PSA against plain re-sampling.

Same prefixes, same rows, same number of tokens (there is no end token). The controls of PSA are
timed beside it, and PSA with the drawing of its latents, which happens once for each branch.

    python benchmarks/psa_overhead.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _paired import REST, against, interleave, machine, report

from i2b_lpo.config import BranchConfig
from i2b_lpo.method import FUSIONS, Injection, Strength
from i2b_lpo.model import (
    Decoded,
    Policy,
    Prefix,
    Sampling,
    Steering,
    decode_branches,
    load_policy,
    new_steering,
)
from i2b_lpo.rollout import choose_forks, sample
from i2b_lpo.tasks import load_task

REQUIRED = 1.10
RATIO = "seconds per decoded token with PSA / without z, medians, 64 rows"
SHAPES = ((16, 2, 2), (8, 2, 3))  # questions, M rollouts of each, K branches of each
PLAIN, DRAWN = "none", "psa, latents drawn too"


def forked(policy: Policy, questions: int, samples: int) -> list[Prefix]:
    """A prefix of each rollout, up to a fork of the default rule."""
    generator = torch.Generator().manual_seed(0)
    asked = load_task("shop").questions("validation", questions, seed=0)
    trees, rows = sample(
        policy, asked, Sampling(96), rollouts=samples, generator=generator, keep_kv=True
    )
    where = [(i // samples, i % samples) for i in range(len(rows))]
    forks = choose_forks(trees, where, BranchConfig(branches=1), generator)
    return [
        Prefix((*trees[f.tree].prompt_ids, *trees[f.tree].rollouts[f.parent].ids[: f.t]), row)
        for f, row in zip(forks, rows, strict=True)
    ]


def branches(
    policy: Policy, prefixes: list[Prefix], k: int, tokens: int, injection: Injection | None
) -> Decoded:
    """K branches of exactly `tokens` tokens from each prefix; the same random numbers each time."""
    found = decode_branches(
        replace(policy, eos_ids=(-1,)),
        prefixes,
        [tokens] * len(prefixes),
        Sampling(tokens),
        branches=k,
        injection=injection,
        generator=torch.Generator().manual_seed(0),
    )
    assert found.mask.all() and found.ids.shape == (len(prefixes) * k, tokens), "other work"
    return found


def contenders(
    policy: Policy, prefixes: list[Prefix], k: int, tokens: int, strength: Strength
) -> dict[str, Callable[[], Decoded]]:
    """Every fusion by name, and what is timed: a call without arguments."""
    works: dict[str, Callable[[], Decoded]] = {
        PLAIN: lambda: branches(policy, prefixes, k, tokens, None)
    }
    z = torch.randn(len(prefixes) * k, 8, generator=torch.Generator().manual_seed(0))
    for name in FUSIONS:
        torch.manual_seed(0)
        steering = new_steering(policy, d_z=8, fusion=name, strength=strength)
        steering.cvae.to(policy.model.dtype)
        steering.fusion.to(policy.model.dtype).requires_grad_(False)
        injection = steering.injection(z.to(policy.model.dtype))

        def fixed(injection: Injection = injection) -> Decoded:
            return branches(policy, prefixes, k, tokens, injection)

        works[name] = fixed
        if name == "psa":

            def drawn(own: Steering = steering) -> Decoded:
                latents = own.draw(
                    policy,
                    [prefix.ids for prefix in prefixes],
                    k,
                    sampler="spread",
                    generator=torch.Generator().manual_seed(0),
                )
                return branches(policy, prefixes, k, tokens, own.injection(latents.flatten(0, 1)))

            works[DRAWN] = drawn
    return works


def check(name: str) -> None:
    """With γ_0 = 0 every fusion draws the plain branches (float64); with γ_0 = 1 none does."""
    exact = load_policy(name, instruction="", dtype=torch.float64)
    prefixes = forked(exact, questions=2, samples=2)
    plain = branches(exact, prefixes, 2, 8, None)
    for gamma in (0.0, 1.0):
        works = contenders(exact, prefixes, 2, 8, Strength(gamma))
        for fusion in FUSIONS:
            found = works[fusion]()
            same = torch.equal(found.ids, plain.ids) and torch.allclose(
                found.logprob_t1, plain.logprob_t1, rtol=0, atol=1e-9
            )
            assert same == (gamma == 0.0), f"{fusion} with γ_0 = {gamma:g}: same as plain: {same}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="tiny-base", help="bundled name or folder")
    parser.add_argument("--tokens", type=int, default=48, help="of each branch")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    there = machine()
    policy = load_policy(args.policy, instruction="")

    check(args.policy)
    shapes: dict[str, dict[str, Any]] = {}
    for questions, samples, k in SHAPES:
        prefixes = forked(policy, questions, samples)
        works = contenders(policy, prefixes, k, args.tokens, Strength())
        times = interleave(works, args.repeats, rest=REST)
        rows = questions * samples * k
        print(f"{rows} rows ({questions} questions, M={samples}, K={k}), {args.tokens} tokens each")
        print(f"  {'':24}{'seconds':>9}{'us/token':>10}{'ratio':>7}{'turns':>7}{'cpu ratio':>11}")
        plain, found = times[PLAIN], {}
        for name, one in times.items():
            per_token = median(one.wall) / (rows * args.tokens)
            found[name] = against(one, plain) | {
                "microseconds_per_token": round(1e6 * per_token, 2)
            }
            print(
                f"  {name:24}{median(one.wall):9.3f}{1e6 * per_token:10.1f}"
                f"{found[name]['ratio']:7.3f}{found[name]['ratio_of_turns']:7.3f}"
                f"{found[name]['cpu_ratio']:11.3f}"
            )
        shapes[f"{rows} rows"] = {
            "questions": questions,
            "samples": samples,
            "k": k,
            "works": found,
        }

    first = shapes[f"{SHAPES[0][0] * SHAPES[0][1] * SHAPES[0][2]} rows"]["works"]["psa"]
    result = {
        "benchmark": "psa_overhead",
        "ratio": first["ratio"],
        "required": f"<= {REQUIRED:.2f}",
        "met": first["ratio"] <= REQUIRED,
        "ratio_of_turns": first["ratio_of_turns"],
        "cpu_ratio": first["cpu_ratio"],
        "ratio_is": RATIO,
        "policy": Path(args.policy).name,
        "tokens": args.tokens,
        "repeats": args.repeats,
        **there,
        "shapes": shapes,
    }
    report(result, args.json)


if __name__ == "__main__":
    main()
