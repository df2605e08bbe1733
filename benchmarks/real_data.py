"""The path a real run takes, on real data with a real tokenizer and a model of real shape.

Folder → policy → chat template → rollouts → verdicts → evaluation, on GSM8K and MATH-500, with the
Qwen3 tokenizer and a Qwen3 of the 0.6B configuration. The weights are random: this checks shapes,
masks, memory and the reading of answers; accuracy is zero and says nothing.

DATA holds `gsm8k/test.jsonl`, `gsm8k/train.jsonl` and `math500/test.jsonl` (rows as on the Hugging
Face hub), TOKENIZER the tokenizer files of any Qwen3.

    python benchmarks/real_data.py --data DATA --tokenizer TOKENIZER
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _paired import machine, report
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from i2b_lpo.evaluation import evaluate
from i2b_lpo.model import Policy, Sampling, load_policy
from i2b_lpo.rollout import roll_out
from i2b_lpo.tasks import load_task
from i2b_lpo.trace import Question, Trace
from i2b_lpo.verify import verify_batch

TEST_SETS = {"gsm8k": 1319, "math500": 500}  # rows of each test set


class Stages:
    """Seconds of each stage, and the most memory the process had held when it ended."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB on Linux
        self.rows[name] = {"seconds": round(seconds, 3), "peak_gib": round(peak / unit, 2)}
        print(f"{name:34}{seconds:9.2f}{peak / unit:10.2f}", flush=True)


def build_folder(tokenizer_folder: Path, folder: Path, dtype: torch.dtype) -> None:
    """A random Qwen3 of the 0.6B configuration and the tokenizer, as an ordinary model folder."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        dtype=dtype,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM._from_config(config, dtype=dtype)
    with torch.no_grad():
        # Loud rows beyond the tokenizer: whoever forgets to leave them out draws little else.
        model.get_output_embeddings().weight[len(tokenizer) :] *= 50.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def boxed(answer: str) -> str:
    return rf"So the answer is \boxed{{{answer}}}."


def check_gold(questions: Sequence[Question]) -> tuple[list[dict[str, str]], int, list[str]]:
    """Judge every gold answer against itself and, as a control, against its neighbour's.

    Returns:
        The gold answers that do not verify as correct; the number of neighbours that differ as
        texts; and those of them that are accepted all the same, which must mean the same.
    """
    gold = [question.answer for question in questions]
    own = verify_batch(gold, [boxed(answer) for answer in gold])
    failures = [
        {"id": question.id, "answer": question.answer, "reason": verdict.reason}
        for question, verdict in zip(questions, own, strict=True)
        if not verdict.correct
    ]
    pairs = [(a, b) for a, b in pairwise(gold) if a != b]
    judged = verify_batch([a for a, _ in pairs], [boxed(b) for _, b in pairs])
    accepted = [f"{a} = {b}" for (a, b), v in zip(pairs, judged, strict=True) if v.correct]
    return failures, len(pairs), accepted


def check_prompts(policy: Policy, questions: Sequence[Question]) -> list[int]:
    """Prompt lengths; fails where a rendered prompt lacks the question, its role or the box."""
    lengths = []
    for question in questions:
        ids = policy.prompt_ids(question.text)
        text = policy.tokenizer.decode(ids)
        user = f"<|im_start|>user\n{question.text}\n\n{policy.instruction}<|im_end|>"
        assert user in text, f"{question.id}: the prompt doesn't hold the user's turn:\n{text}"
        assert "<|im_start|>assistant\n" in text.split(user)[1], (
            f"{question.id}: the prompt doesn't open the assistant's turn:\n{text}"
        )
        lengths.append(len(ids))
    return lengths


@torch.no_grad()
def loudest_id(policy: Policy, question: Question) -> int:
    """The id that the bare model, padded ids included, finds most likely next."""
    ids = torch.tensor([policy.prompt_ids(question.text)])
    return int(policy.model(input_ids=ids, logits_to_keep=1).logits[0, -1].argmax())


def check_ids(policy: Policy, traces: Sequence[Trace]) -> int:
    """Number of tokens drawn; fails if one of them isn't in the tokenizer."""
    drawn = [i for trace in traces for rollout in trace.rollouts for i in rollout.ids]
    size = len(policy.tokenizer)
    assert max(drawn) < size, f"id {max(drawn)} was drawn; the tokenizer has {size} ids"
    return len(drawn)


def run_set(stages: Stages, policy: Policy, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All stages on one test set."""
    with stages.stage(f"{name}: load the questions"):
        task = load_task(name, path=args.data / name)
        questions = task.questions("test", TEST_SETS[name], seed=0)
    with stages.stage(f"{name}: verify {2 * len(questions) - 1} answers"):
        failures, others, accepted = check_gold(questions)
    with stages.stage(f"{name}: render {len(questions)} prompts"):
        lengths = check_prompts(policy, questions)
    chosen = questions[: args.rows]
    loud = loudest_id(policy, chosen[0])
    assert loud >= len(policy.tokenizer), (
        f"the bare model's favourite is id {loud}, so the check on drawn ids could not fail"
    )
    with stages.stage(f"{name}: roll out {args.rows} x 2"):
        traces = roll_out(
            policy,
            chosen,
            Sampling(args.tokens),
            rollouts=2,
            generator=torch.Generator().manual_seed(0),
        )
    drawn = check_ids(policy, traces)
    with stages.stage(f"{name}: evaluate {args.rows} x (1 + 2)"):
        found, measured = evaluate(policy, task, chosen, sampling=Sampling(args.tokens), samples=2)
    drawn += check_ids(policy, measured)
    rollouts = [r for trace in (*traces, *measured) for r in trace.rollouts]
    return {
        "questions": len(questions),
        "gold_failures": failures,
        "neighbours": {"different_texts": others, "accepted": accepted},
        "prompt_tokens": {
            "shortest": min(lengths),
            "median": median(lengths),
            "longest": max(lengths),
        },
        "tokens_drawn": drawn,
        "ids_beyond_tokenizer": 0,
        "reasons": dict(Counter(r.reason for r in rollouts)),
        "mean_entropy_nats": round(sum(sum(r.entropies) for r in rollouts) / drawn, 3),
        "metrics": sorted(found.metrics),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k and math500")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a Qwen3 tokenizer")
    parser.add_argument("--rows", type=int, default=2, help="questions rolled out of each set")
    parser.add_argument("--tokens", type=int, default=16, help="new tokens of a rollout")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    there = machine("tokenizers", "math-verify")
    stages = Stages()
    print(f"{'stage':34}{'seconds':>9}{'peak GiB':>10}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "qwen3-0.6b-random"
        with stages.stage("build and save the model folder"):
            build_folder(args.tokenizer, folder, dtype)
        with stages.stage("load the policy"):
            policy = load_policy(folder, dtype=dtype)
        sets = {name: run_set(stages, policy, name, args) for name in TEST_SETS}

    print()
    print(
        f"{'':12}{'questions':>10}{'gold wrong':>11}{'others right':>13}{'prompt tokens':>20}"
        "  verdicts of the rollouts"
    )
    for name, row in sets.items():
        spread = " / ".join(f"{length:g}" for length in row["prompt_tokens"].values())
        reasons = ", ".join(f"{reason} {n}" for reason, n in row["reasons"].items())
        others = f"{len(row['neighbours']['accepted'])}/{row['neighbours']['different_texts']}"
        print(
            f"{name:12}{row['questions']:10}{len(row['gold_failures']):11}{others:>13}{spread:>20}"
            f"  {reasons}"
        )
    wrong = [failure for row in sets.values() for failure in row["gold_failures"]]
    for failure in wrong:
        print(f"  gold answer of {failure['id']} is {failure['reason']}: {failure['answer']}")
    result = {
        "benchmark": "real_data",
        "model": "Qwen3 of the 0.6B configuration, random weights",
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "vocabulary": {"embedding": 151_936, "tokenizer": len(policy.tokenizer)},
        "dtype": args.dtype,
        "rows": args.rows,
        "tokens": args.tokens,
        "gold_failures": len(wrong),
        "peak_gib": max(row["peak_gib"] for row in stages.rows.values()),
        **there,
        "stages": stages.rows,
        "sets": sets,
    }
    report(result, args.json)
    assert not wrong, f"{len(wrong)} gold answers don't verify as correct; they are listed above"


if __name__ == "__main__":
    main()
