"""What H_t costs while decoding: the decode loop as it is against the same loop without H_t.

The entropy is removed from outside: a function that returns zeros replaces it. Both loops keep both
log-probs, draw the same tokens and stop nowhere. A second row has a vocabulary of Qwen's size on a
two-layer model with random weights: it does the smallest part of a real model's forward pass, so
that the entropy's share is the largest.

    python benchmarks/entropy_overhead.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from _paired import REST, against, interleave, machine, report
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

import i2b_lpo.model.sampling
from i2b_lpo.model import Decoded, Policy, Sampling, decode, load_policy
from i2b_lpo.tasks import load_task

REQUIRED = 1.05
RATIO = "seconds of the decode loop with the entropy / without it, medians, 64 prompts x 1"
WITH, WITHOUT = "with entropy", "without entropy"
QWEN_VOCABULARY = 151936


def no_entropy(log_p: Tensor, _: Tensor) -> Tensor:
    """In place of `expected_surprisal`."""
    return log_p.new_zeros(log_p.shape[:-1])


def contenders(
    policy: Policy, prompts: Sequence[Sequence[int]], samples: int, tokens: int
) -> dict[str, Callable[[], Decoded]]:
    """The loop with and without the entropy; the same random numbers each time."""
    endless = replace(policy, eos_ids=(-1,))

    def run() -> Decoded:
        return decode(
            endless,
            prompts,
            Sampling(tokens),
            rollouts=samples,
            generator=torch.Generator().manual_seed(0),
        )

    def without() -> Decoded:
        with mock.patch.object(i2b_lpo.model.sampling, "expected_surprisal", no_entropy):
            return run()

    return {WITH: run, WITHOUT: without}


def check(works: dict[str, Callable[[], Decoded]], shape: tuple[int, int]) -> None:
    """Both draw the same tokens with the same log-probs; one of them has entropies."""
    one, other = works[WITH](), works[WITHOUT]()
    assert one.mask.all() and one.ids.shape == shape, "another number of tokens was drawn"
    for name in ("ids", "logprob", "logprob_t1"):
        assert torch.equal(getattr(one, name), getattr(other, name)), f"{name} differ"
    assert (one.entropy > 0).any(1).all() and not other.entropy.any(), (
        "the entropy wasn't taken out"
    )


def wide_policy(policy: Policy) -> Policy:
    """A Qwen3 with random weights, hidden size 896, two layers and Qwen's vocabulary."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=QWEN_VOCABULARY,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=2,
        num_attention_heads=14,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    )
    model: Any = Qwen3ForCausalLM(config)
    return replace(policy, name="2 layers, wide", model=model.eval(), vocab_size=QWEN_VOCABULARY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="tiny-base", help="bundled name or folder")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--wide-tokens", type=int, default=16, help="with Qwen's vocabulary")
    parser.add_argument("--wide-repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    there = machine()
    policy = load_policy(args.policy, instruction="")
    prompts = policy.prompts(load_task("shop").questions("validation", 64, seed=0))

    shapes: dict[str, dict[str, Any]] = {}

    def measure(
        name: str, subject: Policy, count: int, samples: int, tokens: int, repeats: int
    ) -> None:
        works = contenders(subject, prompts[:count], samples, tokens)
        check(works, (count * samples, tokens))
        times = interleave(works, repeats, rest=REST)
        one, other = times[WITH], times[WITHOUT]
        found = against(one, other)
        print(
            f"{name:28}{median(one.wall):9.3f}{median(other.wall):9.3f}{found['ratio']:8.3f}"
            f"{found['ratio_of_turns']:8.3f}{found['cpu_ratio']:11.3f}"
        )
        shapes[name] = {
            "vocabulary": subject.vocab_size,
            "tokens": tokens,
            "with": found,
            "without": other.to_json(),
        }

    print(f"{'':28}{'with s':>9}{'without':>9}{'ratio':>8}{'turns':>8}{'cpu ratio':>11}")
    measure("64x1", policy, 64, 1, args.tokens, args.repeats)
    measure("8x8", policy, 8, 8, args.tokens, args.repeats)
    wide = wide_policy(policy)
    measure(f"8x1, V={QWEN_VOCABULARY}", wide, 8, 1, args.wide_tokens, args.wide_repeats)

    first = shapes["64x1"]["with"]
    result = {
        "benchmark": "entropy_overhead",
        "ratio": first["ratio"],
        "required": f"<= {REQUIRED:.2f}",
        "met": first["ratio"] <= REQUIRED,
        "ratio_of_turns": first["ratio_of_turns"],
        "cpu_ratio": first["cpu_ratio"],
        "ratio_is": RATIO,
        "policy": Path(args.policy).name,
        "repeats": args.repeats,
        **there,
        "shapes": shapes,
    }
    report(result, args.json)


if __name__ == "__main__":
    main()
