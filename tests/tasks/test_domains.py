"""Domains: one file and one entry are enough, and every stage goes through the entry."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from backwards import BACKWARDS
from test_rollout import hand_made
from tiny import tiny_policy
from transformers import Qwen3ForCausalLM
from verifying import POSIX

import i2b_lpo.rollout.rollouts
from i2b_lpo.config import BranchConfig, IBConfig, PretrainConfig, RolloutConfig, RunConfig
from i2b_lpo.evaluation.measuring import measure
from i2b_lpo.model.policy import Policy, make_policy
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.rollout.example import teacher_force
from i2b_lpo.rollout.rollouts import roll_out
from i2b_lpo.rollout.scoring import answer_logprobs, reasoning_ids, score_traces
from i2b_lpo.tasks.domains import DOMAINS, domain_named, judge
from i2b_lpo.tasks.loading import load_examples, load_task
from i2b_lpo.tasks.maths import BOXED_INSTRUCTION
from i2b_lpo.trace import Question, Trace, read_traces, write_traces
from i2b_lpo.training.learner import Learner
from i2b_lpo.training.loop import _why_nothing, train
from i2b_lpo.training.pretraining import build_model, build_tokenizer, pretrain
from i2b_lpo.training.step import StepRecord

WORD = Question("w", "Spell abcc backwards.", "ccba", "spelling", domain="backwards")
DOUBLE = Question(
    "f",
    "Write a function f(x) that returns x times 2.",
    "def f(x):\n    return x*2",
    domain="functions",
    checks=json.dumps({"call": "f", "inputs": [[1], [2]], "outputs": [2, 4]}),
)
PRODUCT = Question("p", "What is 23*14?", "322")


@pytest.fixture
def backwards() -> Iterator[None]:
    """The entry of a new domain, and none of mathematics: whoever asks for that fails."""
    before = dict(DOMAINS)
    DOMAINS["backwards"] = BACKWARDS
    del DOMAINS["maths"]
    yield
    DOMAINS.clear()
    DOMAINS.update(before)  # in their order


def scripted(policy: Policy, question: Question, texts: Sequence[str]) -> Trace:
    """What `roll_out` makes of a policy that writes these texts."""
    with pytest.MonkeyPatch.context() as patch:
        decoded = hand_made(policy, [f"{text}<|im_end|>" for text in texts])
        patch.setattr(i2b_lpo.rollout.rollouts, "decode", lambda *_, **__: decoded)
        (trace,) = roll_out(policy, [question], Sampling(60), rollouts=len(texts))
    return trace


# --- a scripted policy ----------------------------------------------------------------------------

BLOCK = "```python\n{}\n```"


@POSIX
@pytest.mark.parametrize(
    ("question", "right", "wrong", "hostile"),
    [
        (PRODUCT, r"so \boxed{322}", r"so \boxed{323}", r"\boxed{__import__('os')._exit(0)}"),
        (
            DOUBLE,
            BLOCK.format("def f(x):\n    return 2*x"),
            BLOCK.format("def f(x):\n    return x"),
            BLOCK.format("import os\nos._exit(0)"),
        ),
    ],
    ids=["maths", "functions"],
)
def test_right_scores_1_and_wrong_and_hostile_0(
    question: Question, right: str, wrong: str, hostile: str
) -> None:
    trace = scripted(tiny_policy(max_position_embeddings=512), question, [right, wrong, hostile])
    assert [r.reward for r in trace.rollouts] == [1.0, 0.0, 0.0]
    assert [r.correct for r in trace.rollouts] == [True, False, False]
    assert [r.reason for r in trace.rollouts][:2] == ["correct", "wrong"]


@POSIX
def test_each_text_is_judged_by_the_domain_of_its_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(DOMAINS, "backwards", BACKWARDS)
    questions = [WORD, PRODUCT, DOUBLE, PRODUCT, WORD]
    texts = ["=> ccbb", r"\boxed{322}", BLOCK.format("f = lambda x: 2*x"), "=> ccba", "=> ccba"]
    assert [v.reward for v in judge(questions, texts)] == [0.75, 1.0, 1.0, 0.0, 1.0]
    assert [v.correct for v in judge(questions, texts)] == [False, True, True, False, True]
    assert judge([], []) == []


def test_an_unknown_domain_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown domain 'poetry'; choose one of maths, functions"):
        judge([replace(PRODUCT, domain="poetry")], ["a rose"])
    with pytest.raises(ValueError, match="Unknown domain"):
        domain_named("")


# --- a new domain: one file and one entry ---------------------------------------------------------


def test_a_new_domains_task_is_loaded_by_name(backwards: None) -> None:
    task = load_task("spelling")
    assert {q.domain for q in task.questions("validation", 5, seed=0)} == {"backwards"}
    assert next(load_examples("spelling")(random.Random(0)))[1].startswith("=> ")
    with pytest.raises(ValueError, match="choose one of functions, gym:NAME, spelling, gsm8k"):
        load_task("writing")


def test_a_new_domain_gives_its_own_rewards_in_parts(backwards: None) -> None:
    trace = scripted(tiny_policy(), WORD, ["=> ccba", "=> ccbb", "=> xxxx", "ccba"])
    assert [r.reward for r in trace.rollouts] == [1.0, 0.75, 0.0, 0.0]
    assert [r.reason for r in trace.rollouts] == ["correct", "partly", "wrong", "no_answer"]
    assert [r.correct for r in trace.rollouts] == [True, False, False, False]
    forced = teacher_force(tiny_policy(), WORD, ["=> ccba", "=> ccbb"])
    assert [r.reward for r in forced.rollouts] == [1.0, 0.75]


def test_a_new_domain_is_asked_for_in_its_own_words(backwards: None) -> None:
    def prompt(instruction: str, question: str | Question) -> str:
        policy = replace(tiny_policy(), instruction=instruction)
        return str(policy.tokenizer.decode(policy.prompt_ids(question)))

    assert f"{WORD.text}\n\n{BACKWARDS.instruction}<" in prompt(BOXED_INSTRUCTION, WORD)
    assert f"{WORD.text}<" in prompt("", WORD)
    assert f"{WORD.text}\n\nHm.<" in prompt("Hm.", WORD)
    assert f"{WORD.text}\n\n{BOXED_INSTRUCTION}<" in prompt(BOXED_INSTRUCTION, WORD.text)
    policy = replace(tiny_policy(), instruction=BOXED_INSTRUCTION)
    assert policy.prompts([WORD]) == [policy.prompt_ids(WORD)]


def test_a_new_domains_answer_is_scored_in_its_own_frame(backwards: None) -> None:
    policy = tiny_policy()
    trace = scripted(policy, WORD, ["so => ccba", "ccba", r"\boxed{ccba}"])
    said = [policy.text(reasoning_ids(policy, r, "backwards")) for r in trace.rollouts]
    assert said == ["so ", "ccba\n", "\\boxed{ccba}\n"]
    context = list(trace.prompt_ids)
    form = policy.tokenizer.encode("=> ccba\n", add_special_tokens=False)
    ends = list(accumulate(map(len, policy.pieces(form))))
    row = context + form
    with torch.no_grad():
        logits = policy.model(torch.tensor([row])).logits[0, :, : policy.vocab_size]
    logp = torch.log_softmax(logits.double(), -1)
    own = [t for t, end in enumerate(ends, len(context)) if end > len("=> ")]
    assert 0 < len(own) < len(form)
    expected = sum(float(logp[t - 1, row[t]]) for t in own) / len(own)
    for answer in ("ccba", "=> ccba"):
        (found,) = answer_logprobs(policy, [context], [answer], domains=["backwards"])
        assert found == pytest.approx(expected, rel=1e-5)
    first = score_traces(policy, [trace], IBConfig())[0].rollouts[0]
    assert first.score is not None


def test_a_new_domains_votes_are_its_own(backwards: None) -> None:
    texts = ["=> ccba", "=> ccba", "=> ccbb", "no sign"]
    found = measure([scripted(tiny_policy(), WORD, texts)], load_task("spelling"))
    assert found.metrics["maj@4"].mean == 1.0
    assert found.metrics["pass@1"].mean == 0.5


@POSIX
def test_a_majority_is_right_if_its_own_verdict_says_so() -> None:
    """Not if it is the reference solution, letter by letter."""
    one, other = BLOCK.format("f = lambda x: x+x"), BLOCK.format("def f(x): return 3*x")
    trace = scripted(tiny_policy(max_position_embeddings=512), DOUBLE, [one, other, one])
    found = measure([trace], load_task("functions"))
    assert found.metrics["maj@3"].mean == 1.0


def test_a_new_domain_is_trained_on(backwards: None) -> None:
    config = RunConfig(
        task="spelling",
        steps=1,
        questions=2,
        rollout=RolloutConfig(rollouts=2, max_new_tokens=5),
        branch=BranchConfig(branches=2, fusion="none"),
        ib=IBConfig(),
    )
    seen: list[StepRecord] = []
    with pytest.warns(UserWarning, match="No trajectory of the first steps earned a reward"):
        train(
            config,
            tiny_policy(),
            load_task("spelling"),
            on_step=lambda _, record: seen.append(record),
            progress=False,
        )
    assert all(r.reason == "no_answer" for t in seen[0].traces for r in t.rollouts)
    assert all(r.score is not None for t in seen[0].traces for r in t.rollouts)
    told = _why_nothing(Counter(no_answer=3, wrong=1), 5, "backwards")
    assert "Of 4, 75% ended without the sign; 25% had no letter in its place. If texts" in told


# --- records --------------------------------------------------------------------------------------


def test_a_trace_of_mathematics_is_written_as_ever(tmp_path: Path) -> None:
    trace = Trace(PRODUCT, (1, 2), ())
    assert trace.to_json()["question"] == {
        "id": "p", "text": "What is 23*14?", "answer": "322", "task": "", "level": 0,
    }  # fmt: skip
    other = Trace(DOUBLE, (1, 2), ())
    assert other.to_json()["question"] == asdict(DOUBLE)
    write_traces(tmp_path / "traces.jsonl", [trace, other])
    assert list(read_traces(tmp_path / "traces.jsonl")) == [trace, other]


# --- pretraining on a domain's own examples -------------------------------------------------------


@POSIX
@pytest.mark.slow
def test_a_policy_learns_functions_from_examples_and_goes_on_by_rewards() -> None:
    settings = PretrainConfig(task="functions", steps=150, tokens=1200)
    tokenizer = build_tokenizer(settings)
    small = build_model(tokenizer).config
    small.hidden_size, small.intermediate_size, small.head_dim = 64, 192, 16
    small.num_hidden_layers, small.layer_types = 2, ["full_attention"] * 2
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(small)
    losses = pretrain(model, tokenizer, settings)
    assert losses[0] > 5 > 1 > sum(losses[-10:]) / 10
    policy, task = make_policy(model, tokenizer, name="small"), load_task("functions")

    seen: list[StepRecord] = []

    def look(_: Learner, record: StepRecord) -> None:
        seen.append(record)

    config = RunConfig(
        task="functions",
        steps=10,
        questions=8,
        rollout=RolloutConfig(rollouts=8, max_new_tokens=60),
    )
    train(config, policy, task, on_step=look, progress=False)
    assert len(seen) == 10
    for record in seen:
        assert bool(record.advantages.any()), "no group of this step differs in its rewards"
        rewards = {r.reward for t in record.traces for r in t.rollouts}
        assert rewards == {0.0, 1.0}
        assert record.metrics["grad_norm"] > 0
