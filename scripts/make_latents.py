"""Train the latents of the bundled policies and write their cards.

    python scripts/make_latents.py tiny-base     # 6 minutes on one core
    python scripts/make_latents.py tiny-grpo     # 6 minutes on one core

Both learn from the rollouts of the base policy; each is decoded by its own policy, frozen.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from datetime import date

import torch

from i2b_lpo.config import LatentConfig
from i2b_lpo.infra import write_sums
from i2b_lpo.model import BUNDLED, asset_path, load_policy
from i2b_lpo.model.steering import SETTINGS, WEIGHTS, latest_version, save_steering
from i2b_lpo.tasks import load_task
from i2b_lpo.training import collect, steering_report, train_latents

CARD = """# Latents of {policy}

CVAE (prior P(z|c), posterior Q(z|c, continuation)) and PSA projections U_k, U_v, U_n for the
bundled policy `{policy}`; {numbers:,} numbers, stored in bfloat16. An independent reconstruction of
I²B-LPO, not the authors' code.

| | |
|---|---|
| version | {version} |
| made by | `python scripts/make_latents.py {policy}` |
| learnt from | {examples:,} forks in {tokens:,} tokens that `{source}` sampled |
| asked | {questions} train questions × {samples}, seed {seed} |
| decoder | `{policy}`, frozen; the policy's own hidden states are the embedder |
| objective | {objective}, fusion {fusion}, d_z = {d_z}, γ_0 = {gamma}, s_0 = {decay} tokens |
| schedule | {selector_steps} steps `selector`, {steps} steps `steer`, batch {batch} |
| time | {minutes:.1f} minutes, {machine}, {date} |

On {held_out} forks of validation questions (nats, first {horizon} tokens of a continuation):

| | |
|---|---|
| log π(continuation) without z | {without} |
| with z ~ P(z\\|c) | {prior} |
| with z ~ Q(z\\|c, continuation) | {posterior} |
| KL(Q‖P) | {kl} |
| ELBO | {elbo} |
| active units | {active_units} of {d_z} |
| I(z; strategy), lower bound | {information} (shuffled labels: {information_shuffled}) |

What z does when the policy decodes with it: `benchmarks/results/steering_{policy}.json`.
"""


def main() -> None:
    """Train, measure and write one policy's latents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", choices=BUNDLED)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    begin = time.perf_counter()
    source, policy, task = (
        load_policy("tiny-base"),
        load_policy(arguments.policy),
        load_task("shop"),
    )
    config = LatentConfig(policy=policy.name, source=source.name)
    examples, tokens = collect(source, task, config)
    steering = train_latents(policy, examples, config, version=latest_version(policy) + 1)
    minutes = (time.perf_counter() - begin) / 60
    other = dataclasses.replace(config, seed=config.seed + 1)
    held_out, _ = collect(source, task, other, split="validation", questions=200)
    report = steering_report(steering, policy, held_out, config)
    steering.card.update(rollout_tokens=tokens, validation=report)
    folder = asset_path(f"{arguments.policy}-latents")
    save_steering(steering, folder)
    values = dataclasses.asdict(config) | report["log_prob"] | report
    values |= {
        "policy": arguments.policy,
        "version": steering.version,
        "numbers": sum(
            p.numel() for part in (steering.cvae, steering.fusion) for p in part.parameters()
        ),
        "tokens": tokens,
        "examples": len(examples),
        "held_out": report["examples"],
        "minutes": minutes,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads} thread",
        "date": date.today().isoformat(),
    }
    (folder / "README.md").write_text(CARD.format(**values), encoding="utf-8")
    write_sums(folder, (SETTINGS, WEIGHTS, "README.md"))
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
