"""Decoding speed: `i2b_lpo.model.decode` against `model.generate`, same model and same prompts.

Both draw a fixed number of tokens (there is no end token) at temperature 1 from the whole
vocabulary. Ours also returns each token's entropy and both log-probs; generate returns only ids,
has no logits processor to run, and is measured with each of its two caches.

    python benchmarks/decode.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _paired import interleave, machine, report
from transformers import GenerationConfig

from i2b_lpo.model import Policy, Sampling, decode, left_pad, load_policy
from i2b_lpo.tasks import load_task

RATIO = "seconds of generate (default, dynamic cache) / seconds of ours, medians, 64 prompts x 1"
DEFAULT = "generate, dynamic cache"
SHAPES = ((64, 1), (8, 8))  # prompts, samples of each


def contenders(
    policy: Policy, prompts: Sequence[Sequence[int]], samples: int, tokens: int
) -> dict[str, Callable[[], object]]:
    """Ours and generate with each cache, as calls without arguments."""
    ids, mask = left_pad(prompts, policy.pad_id)
    generator = torch.Generator().manual_seed(0)
    endless = replace(policy, eos_ids=(-1,))
    shape = (len(prompts) * samples, tokens)

    def ours() -> None:
        drawn = decode(endless, prompts, Sampling(tokens), rollouts=samples, generator=generator)
        assert drawn.mask.all() and drawn.ids.shape == shape, "ours drew another number of tokens"

    def generate(cache: str) -> Callable[[], object]:
        settings = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=tokens,
            num_return_sequences=samples,
            pad_token_id=policy.pad_id,
            cache_implementation=cache,
            disable_compile=True,
        )

        def run() -> None:
            found = policy.model.generate(
                input_ids=ids, attention_mask=mask, generation_config=settings
            )
            assert found.shape == (shape[0], ids.shape[1] + tokens), "generate stopped early"

        return run

    return {"ours": ours} | {f"generate, {c} cache": generate(c) for c in ("dynamic", "static")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="tiny-base", help="bundled name or folder")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    there = machine()
    policy = load_policy(args.policy, instruction="")
    # generate fills what its settings leave open from here, and would stop at the end token.
    policy.model.generation_config.eos_token_id = None
    questions = load_task("shop").questions("validation", max(n for n, _ in SHAPES), seed=0)
    prompts = policy.prompts(questions)

    shapes: dict[str, dict[str, Any]] = {}
    for count, samples in SHAPES:
        works = contenders(policy, prompts[:count], samples, args.tokens)
        times = interleave(works, args.repeats)
        mine = times["ours"]
        print(f"{count} prompts x {samples} samples, {args.tokens} tokens each")
        print(f"  {'':24}{'seconds':>9}{'cpu s':>9}{'tokens/s':>10}{'ratio':>7}{'cpu ratio':>11}")
        ratios, cpu_ratios = {}, {}
        for name, found in times.items():
            ratios[name] = median(found.wall) / median(mine.wall)
            cpu_ratios[name] = median(found.cpu) / median(mine.cpu)
            speed = count * samples * args.tokens / median(found.wall)
            print(
                f"  {name:24}{median(found.wall):9.3f}{median(found.cpu):9.3f}{speed:10.0f}"
                f"{ratios[name]:7.2f}{cpu_ratios[name]:11.2f}"
            )
        peers = [name for name in times if name != "ours"]
        shapes[f"{count}x{samples}"] = {
            "ratio": {p: round(ratios[p], 3) for p in peers},
            "cpu_ratio": {p: round(cpu_ratios[p], 3) for p in peers},
            "times": {name: found.to_json() for name, found in times.items()},
        }

    first = shapes["{}x{}".format(*SHAPES[0])]
    result = {
        "benchmark": "decode",
        "ratio": first["ratio"][DEFAULT],
        "cpu_ratio": first["cpu_ratio"][DEFAULT],
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
