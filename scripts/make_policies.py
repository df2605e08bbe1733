"""Make the bundled policies from scratch, measure them and write their cards.

    python scripts/make_policies.py base     # pretrain from random weights      10 min, 1 core
    python scripts/make_policies.py grpo     # GRPO from the base to its plateau 10 min, 1 core
    python scripts/make_policies.py cards    # measure both, write cards          2 min, 1 core

Minutes on one thread of a 2-core AMD EPYC. Weights are stored in bfloat16 and measured as stored.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from datetime import date
from pathlib import Path

import torch

from i2b_lpo.config import PretrainConfig, preset, read_run
from i2b_lpo.evaluation import entropy_profile, evaluate
from i2b_lpo.infra import write_sums
from i2b_lpo.model import Sampling, asset_path, load_policy, make_policy, save_policy
from i2b_lpo.tasks import STRATEGIES, load_task
from i2b_lpo.training import build_model, build_tokenizer, pretrain, train

COLLAPSE_STEPS = 250
CARD_QUESTIONS = 400
SUMMED = (
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "instruction.txt",
)


def make_base() -> None:
    config = PretrainConfig()
    tokenizer = build_tokenizer(config)
    model = build_model(tokenizer, seed=config.seed)
    losses = pretrain(model, tokenizer, config, report=lambda s, x: print(f" step {s}: {x:.4f}"))
    folder = asset_path("tiny-base")
    module: torch.nn.Module = model
    module.to(torch.bfloat16)
    save_policy(make_policy(model, tokenizer, name="tiny-base"), folder)
    record = {**dataclasses.asdict(config), "last_250_loss": sum(losses[-250:]) / 250}
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    write_sums(folder, SUMMED)


def make_grpo(run: Path) -> None:
    config = dataclasses.replace(preset("tiny"), steps=COLLAPSE_STEPS)
    finished = run / "policy"
    if finished.is_dir():  # pilot B's first seed is this very run: don't train it twice
        if read_run(run) != config:
            raise SystemExit(f"{run} was trained with other settings; name another folder.")
    else:
        train(config, load_policy(config.policy), load_task(config.task), output=run)
    policy = load_policy(finished, dtype=torch.bfloat16, instruction="")
    folder = asset_path("tiny-grpo")
    save_policy(policy, folder)
    (folder / "training.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
    write_sums(folder, SUMMED)


def measure(name: str) -> None:
    policy, task = load_policy(name), load_task("shop")
    questions = task.questions("validation", CARD_QUESTIONS, seed=0)
    sampling = Sampling(preset("tiny").rollout.max_new_tokens)
    result, traces = evaluate(policy, task, questions, sampling=sampling, seed=1, progress=name)
    profile = entropy_profile(traces, tuple(STRATEGIES))
    folder = asset_path(name)
    training = (folder / "training.json").read_text()
    shown = ("greedy", "pass@1", "pass@8", "maj@8")
    levels = [
        f"| {level} | " + " | ".join(str(metrics[m]) for m in shown) + " |"
        for level, metrics in result.levels.items()
    ]
    strategies = [
        f"| {s} | {use.share:.3f} | {use.product_right:.3f} | {use.trace_right:.3f} | {use.count} |"
        for s, use in result.strategies.items()
    ]
    how = (
        "trained from random weights on solutions written by `i2b_lpo.tasks.shop` "
        "(`python scripts/make_policies.py base`)"
        if name == "tiny-base"
        else "`tiny-base` trained with GRPO to its plateau, where it has collapsed "
        "(`python scripts/make_policies.py grpo`)"
    )
    size = sum(p.numel() for p in policy.model.parameters())
    card = f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A Qwen3 with {size / 1e6:.2f} million parameters, bfloat16: {how}. It solves the shopping questions
of i2b-lpo on a laptop CPU, and nothing else.

## Measured

{date.today().isoformat()}, {platform.machine()} CPU, one thread, float32 from the stored bfloat16
weights; {result.questions} validation questions (seed 0) × {result.samples} samples at
temperature 1 (seed 1), at most {sampling.max_new_tokens} new tokens; mean [95 % bootstrap interval
over questions].

```
{result.table()}
```

| level | {" | ".join(shown)} |
|---|---|---|---|---|
{chr(10).join(levels)}

| strategy | share of uses | its product right | its trace right | uses |
|---|---|---|---|---|
{chr(10).join(strategies)}

## Entropy at each token

{profile.describe()}

## Training

```json
{training}```
"""
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "evaluation.json").write_text(
        json.dumps({k: v for k, v in result.to_json().items() if k != "values"}, indent=1) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("base", "grpo", "cards"))
    parser.add_argument("--run", type=Path, default=Path("runs/make-grpo"), help="run folder")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "base":
        make_base()
    elif arguments.what == "grpo":
        make_grpo(arguments.run)
    else:
        for name in ("tiny-base", "tiny-grpo"):
            measure(name)


if __name__ == "__main__":
    main()
