"""Does z steer? What the latents of a bundled policy do on validation questions.

    python benchmarks/steering.py --policy tiny-grpo     # 2 minutes on one core
    python benchmarks/steering.py --policy tiny-base

Traces come from the base policy. At each fork whose next token names a strategy, z is inferred
from the trace (posterior), and the policy decodes from the same prefix with that z. Controls: plain
re-sampling from the fork, z from the prior, z ~ N(0, I), and a random direction with the norm of
a prior draw.

* agreement: share of decodes that choose the strategy z was inferred from;
* accuracy of a strategy chosen by z, beside the same prefixes with that strategy's word forced;
* I(z; strategy) with a shuffled control, active units, ELBO: `train_latents.steering_report`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from i2b_lpo.config import LatentConfig
from i2b_lpo.method import SAMPLERS, bootstrap_interval
from i2b_lpo.model import (
    Policy,
    Prefix,
    Sampling,
    decode,
    decode_branches,
    load_policy,
    load_steering,
)
from i2b_lpo.tasks import STRATEGIES, load_task
from i2b_lpo.training import Example, collect, next_strategy, steering_report
from i2b_lpo.verify import verify_batch

RESULTS = Path(__file__).parent / "results"
MAX_NEW_TOKENS, EACH, LEAST = 160, 250, 50


def continue_from(
    policy: Policy,
    prefixes: Sequence[tuple[int, ...]],
    z: torch.Tensor | None,
    steering: Any,
    generator: torch.Generator,
    batch: int = 64,
) -> list[str]:
    """Text of the answer from each prompt's end, continued once from each prefix."""
    texts = []
    sampling = Sampling(MAX_NEW_TOKENS)
    for start in tqdm(range(0, len(prefixes), batch), desc="decode", unit="batch"):
        part = prefixes[start : start + batch]
        # One token is drawn and thrown away: it brings the keys and values of each prefix.
        read = decode(policy, part, Sampling(1), generator=generator, keep_kv=True).kv
        decoded = decode_branches(
            policy,
            [Prefix(ids, row) for ids, row in zip(part, read, strict=True)],
            [MAX_NEW_TOKENS] * len(part),
            sampling,
            injection=None if z is None else steering.injection(z[start : start + batch]),
            generator=generator,
        )
        for row, n in zip(decoded.ids.tolist(), decoded.lengths.tolist(), strict=True):
            texts.append(policy.text(row[:n]))
    return texts


def main() -> None:
    """Measure one policy's latents and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="tiny-grpo")
    parser.add_argument("--latents", default=None, help="folder; default: the bundled ones")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base, policy, task = load_policy("tiny-base"), load_policy(arguments.policy), load_task("shop")
    steering = load_steering(policy, arguments.latents)
    config = LatentConfig(**{k: v for k, v in steering.card["config"].items()})
    examples, _ = collect(
        base, task, replace(config, seed=1), split="validation", questions=arguments.questions
    )
    report = steering_report(steering, policy, examples, config)
    word_id = {
        name: policy.tokenizer.encode(name, add_special_tokens=False)[0] for name in STRATEGIES
    }
    chosen = [e for e in examples if e.label and e.rest[0] == word_id[e.label]]
    # As many of each strategy, so that the commonest doesn't decide.
    rng = torch.Generator().manual_seed(0)
    by_label: dict[str, list[Example]] = defaultdict(list)
    for i in torch.randperm(len(chosen), generator=rng).tolist():
        if len(by_label[chosen[i].label]) < EACH:
            by_label[chosen[i].label].append(chosen[i])
    chosen = [e for rows in by_label.values() for e in rows]
    prefixes = [e.prefix for e in chosen]
    prompts = [len(policy.prompt_ids(e.question.text)) for e in chosen]
    posterior = steering.posterior(policy, prefixes, [e.rest[: config.horizon] for e in chosen])
    prior = steering.prior(policy, prefixes)
    torch.manual_seed(0)
    drawn = {
        "posterior": posterior.sample(),
        "prior": SAMPLERS["independent"](prior, 1, rng)[:, 0],
        "standard_normal": SAMPLERS["standard_normal"](prior, 1, rng)[:, 0],
        "matched": SAMPLERS["matched"](prior, 1, rng)[:, 0],
        "re-sampling": None,
    }

    def judged(
        texts: list[str], starts: Sequence[tuple[int, ...]]
    ) -> list[tuple[str, bool, float]]:
        """Strategy chosen at the fork, whether its product came out right, reward."""
        found = []
        heads = [policy.text(c[n:]) for c, n in zip(prefixes, prompts, strict=True)]
        before = [policy.text(c[n:]) for c, n in zip(starts, prompts, strict=True)]
        whole = [a + b for a, b in zip(before, texts, strict=True)]
        verdicts = verify_batch([e.question.answer for e in chosen], whole)
        for e, head, text, verdict in zip(chosen, heads, whole, verdicts, strict=True):
            labels = task.label(e.question, text)
            assert labels is not None
            name = next_strategy(labels.strategies, head)
            at = (
                len(labels.strategies)
                if not name
                else sum(head.count(word) for word in set(labels.strategies))
            )
            right = at < len(labels.uses) and labels.uses[at].right
            found.append((name, right, float(verdict.correct)))
        return found

    results: dict[str, list[tuple[str, bool, float]]] = {}
    agreement: dict[str, Any] = {}
    lengths: dict[str, float] = {}
    for name, z in drawn.items():
        results[name] = judged(
            continue_from(policy, prefixes, z, steering, torch.Generator().manual_seed(1)), prefixes
        )
        hits = [float(r[0] == e.label) for r, e in zip(results[name], chosen, strict=True)]
        agreement[name] = str(bootstrap_interval(hits))
        if z is not None:
            lengths[name] = round(z.norm(dim=-1).mean().item(), 1)
    per_strategy = {
        name: str(
            bootstrap_interval(
                [
                    float(r[0] == e.label)
                    for r, e in zip(results["posterior"], chosen, strict=True)
                    if e.label == name
                ]
            )
        )
        for name in by_label
    }
    # Accuracy: force the word that z led to, at the same prefix.
    forced_starts = [
        (*c, word_id[r[0]]) if r[0] else c
        for c, r in zip(prefixes, results["posterior"], strict=True)
    ]
    forced = judged(
        continue_from(policy, forced_starts, None, steering, torch.Generator().manual_seed(2)),
        forced_starts,
    )
    accuracy = {}
    for name in STRATEGIES:
        rows = [(a, b) for a, b in zip(results["posterior"], forced, strict=True) if a[0] == name]
        if len(rows) < LEAST:
            continue
        accuracy[name] = {
            "decodes": len(rows),
            **{
                what: {
                    "with z": str(bootstrap_interval([float(a[at]) for a, _ in rows])),
                    "word forced": str(bootstrap_interval([float(b[at]) for _, b in rows])),
                    "difference": str(
                        bootstrap_interval([float(a[at]) - float(b[at]) for a, b in rows])
                    ),
                }
                for what, at in (("product right", 1), ("answer right", 2))
            },
        }
    found = {
        "policy": arguments.policy,
        "forks": len(chosen),
        "length of z": lengths,
        "agreement": agreement,
        "agreement_per_strategy": per_strategy,
        "accuracy": accuracy,
        "report": report,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread",
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"steering_{arguments.policy}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
