"""The passes behind S_IB against a row-by-row float64 reference; scores and filter on records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny_policy

from i2b_lpo.config import IBConfig
from i2b_lpo.method.checks import check
from i2b_lpo.method.grpo import advantages
from i2b_lpo.method.ib import ESTIMATORS, reference_length
from i2b_lpo.model.policy import Policy, load_policy
from i2b_lpo.rollout.example import FOUR, QUESTION, teacher_force
from i2b_lpo.rollout.scoring import (
    answer_logprobs,
    conditioned_entropies,
    filter_traces,
    gather_evidence,
    reasoning_ids,
    score_traces,
)
from i2b_lpo.trace import Branch, Question, Rollout, Score, Trace


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(dtype=torch.float64, max_position_embeddings=256)


def written(policy: Policy, text: str, reward: float = 1.0) -> Rollout:
    """A rollout of these tokens, with numbers that differ from token to token."""
    ids = policy.tokenizer.encode(text, add_special_tokens=False)
    numbers = tuple(-0.01 * (i + 1) for i in range(len(ids)))
    return Rollout(
        ids=tuple(ids),
        pieces=policy.pieces(ids),
        entropies=tuple(-x for x in numbers),
        logprobs=numbers,
        logprobs_t1=tuple(2 * x for x in numbers),
        text=policy.text(ids),
        finished=bool(ids) and ids[-1] in policy.eos_ids,
        reward=reward,
    )


def traced(policy: Policy, texts: Sequence[str], rewards: Sequence[float]) -> Trace:
    question = Question("q", "What is 23*14?", "322")
    rollouts = tuple(written(policy, t, r) for t, r in zip(texts, rewards, strict=True))
    return Trace(question, tuple(policy.prompt_ids(question.text)), rollouts)


def log_softmax(policy: Policy, ids: Sequence[int]) -> torch.Tensor:
    """(T, V) log-probs of one unpadded row by the plain model, padded ids excluded."""
    with torch.no_grad():
        logits = policy.model(torch.tensor([list(ids)])).logits[0, :, : policy.vocab_size]
    return torch.log_softmax(logits.double(), -1)


SOLVED = "Split 14\n23*10=230\n23*4=92\n230+92=322\n\\boxed{322}<|im_end|>"
TEXTS = [
    SOLVED,
    "Guess 321\n\\boxed{321}<|im_end|>",
    "Split 14\n23*10=230\n23*",
    "\\boxed{322}<|im_end|>",
]
REWARDS = [1.0, 0.0, 0.0, 1.0]


# --- the context --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "context"),
    [
        (SOLVED, "Split 14\n23*10=230\n23*4=92\n230+92=322\n"),
        ("Guess 321\n\\boxed{321}<|im_end|>", "Guess 321\n"),
        ("\\boxed{322}", ""),
        ("Split 14\n23*", "Split 14\n23*\n"),  # cut off: its answer would come on a new line
        ("Guess 321\n", "Guess 321\n"),
        ("Guess 321<|im_end|>", "Guess 321\n"),
        ("<|im_end|>", ""),
        ("a\n\\boxed{1}\nno\n\\boxed{2}", "a\n\\boxed{1}\nno\n"),
        ("a\n\\boxed{1}\n\\boxed{2", "a\n"),  # what is verified is the closed box
        ("a\n\\boxed{32", "a\n"),
        ("a\n\\boxed{\\boxed{1}", "a\n\\boxed{"),
        ("a \\boxed{1}", "a "),
        ("", ""),
    ],
)
def test_the_box_is_cut_off_where_the_answer_begins(
    policy: Policy, text: str, context: str
) -> None:
    rollout = written(policy, text)
    found = reasoning_ids(policy, rollout)
    assert "".join(policy.pieces(found)) == context
    kept = len(found) - (context.endswith("\n") and not text.startswith(context))
    assert found[:kept] == rollout.ids[:kept]


def test_the_cut_goes_through_a_token_that_the_box_shares(policy: Policy) -> None:
    tokens = policy.tokenizer.encode("Guess 9", add_special_tokens=False)
    rollout = Rollout(
        ids=(*tokens, 5, 6),
        pieces=(*policy.pieces(tokens), "$ \\bo", "xed{9}"),  # a tokenizer that merges these
        entropies=(0.0,) * (len(tokens) + 2),
        logprobs=(0.0,) * (len(tokens) + 2),
        logprobs_t1=(0.0,) * (len(tokens) + 2),
        text="",
        finished=False,
    )
    found = reasoning_ids(policy, rollout)
    assert found[: len(tokens)] == tuple(tokens)
    assert policy.text(found) == "Guess 9$ "


def test_tokens_are_not_encoded_again(policy: Policy) -> None:
    """A policy may spell a word in letters; its own tokens are what it must be asked after."""
    letters = [policy.tokenizer.convert_tokens_to_ids(c) for c in "Split"]
    rest = policy.tokenizer.encode("\n\\boxed{1}", add_special_tokens=False)
    assert policy.tokenizer.encode("Split", add_special_tokens=False) != letters
    nothing = (0.0,) * (len(letters) + len(rest))
    rollout = replace(
        written(policy, "x"),
        ids=(*letters, *rest),
        pieces=policy.pieces([*letters, *rest]),
        entropies=nothing,
        logprobs=nothing,
        logprobs_t1=nothing,
    )
    assert reasoning_ids(policy, rollout) == (*letters, rest[0])


# --- log π(a | context) -------------------------------------------------------------------------


def slow_answer_logprob(policy: Policy, context: Sequence[int], answer: str) -> float:
    frame = policy.tokenizer.encode("\\boxed{", add_special_tokens=False)
    own = policy.tokenizer.encode(f"{answer}}}", add_special_tokens=False)
    row = [*context, *frame, *own]
    log_p = log_softmax(policy, row)
    start = len(context) + len(frame)
    return sum(float(log_p[t - 1, row[t]]) for t in range(start, len(row))) / len(own)


def test_answer_logprobs_against_one_row_at_a_time(policy: Policy) -> None:
    trace = traced(policy, TEXTS, REWARDS)
    contexts = [trace.prompt_ids] + [
        (*trace.prompt_ids, *reasoning_ids(policy, r)) for r in trace.rollouts
    ]
    answers = ["322", "7", "-45", "1072", "0"]
    expected = [slow_answer_logprob(policy, c, a) for c, a in zip(contexts, answers, strict=True)]
    assert answer_logprobs(policy, contexts, answers) == pytest.approx(expected, rel=1e-10)
    boxed = answer_logprobs(policy, contexts, [f"\\boxed{{{a}}}" for a in answers])
    assert boxed == pytest.approx(expected, rel=1e-10)


def test_batch_composition_does_not_change_an_answer(policy: Policy) -> None:
    trace = traced(policy, TEXTS, REWARDS)
    contexts = [(*trace.prompt_ids, *reasoning_ids(policy, r)) for r in trace.rollouts]
    alone = [answer_logprobs(policy, [c], ["322"])[0] for c in contexts]
    for micro in (1, 100, 4096):
        found = answer_logprobs(
            policy, [*contexts, *contexts[::-1]], ["322"] * 8, micro_tokens=micro
        )
        assert found == pytest.approx([*alone, *alone[::-1]], rel=1e-10)


def test_equal_rows_are_read_once(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    import i2b_lpo.model.logprobs as logprobs

    rows: list[int] = []
    real = logprobs.policy_logprobs

    def counting(model: Any, ids: Any, *rest: Any, **named: Any) -> Any:
        assert not torch.is_grad_enabled()  # a graph of all these rows would fill the memory
        rows.append(len(ids))
        return real(model, ids, *rest, **named)

    monkeypatch.setattr(logprobs, "policy_logprobs", counting)
    answer_logprobs(policy, [(1, 2), (1, 2), (1, 3), (1, 2)], ["5", "5", "5", "6"])
    assert sum(rows) == 3


def test_no_gradient_and_no_change_of_the_model(policy: Policy) -> None:
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    policy.model.train()
    score_traces(policy, [traced(policy, TEXTS, REWARDS)], IBConfig())
    assert policy.model.training
    policy.model.eval()
    assert all(torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())
    assert all(p.grad is None for p in policy.model.parameters())


def test_what_cant_be_asked(policy: Policy) -> None:
    with pytest.raises(ValueError, match="as many answers"):
        answer_logprobs(policy, [(1,)], [])
    with pytest.raises(ValueError, match="empty answer"):
        answer_logprobs(policy, [(1,)], [" "])
    with pytest.raises(ValueError, match="no token"):
        answer_logprobs(policy, [()], ["5"])
    with pytest.raises(ValueError, match=r"256 positions; lower the length limit"):
        answer_logprobs(policy, [(1,) * 256], ["5"])
    assert answer_logprobs(policy, [], []) == []


# --- H(o_t | q, a) ------------------------------------------------------------------------------


def test_conditioned_entropies_against_one_row_at_a_time(policy: Policy) -> None:
    trace = traced(policy, TEXTS, REWARDS)
    (found,) = conditioned_entropies(policy, [trace])
    prompt = policy.prompt_ids("What is 23*14?\nThe answer is 322.")
    for rollout, row in zip(trace.rollouts, found, strict=True):
        log_p = log_softmax(policy, [*prompt, *rollout.ids])
        entropy = -(log_p.exp() * log_p).sum(-1)
        expected = entropy[len(prompt) - 1 : -1].tolist()
        assert row == pytest.approx(expected, rel=1e-9)
        assert len(row) == len(rollout)


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("partial", [0.0, 0.3, 0.5, 0.7, 0.99])
def test_the_reference_length_is_of_right_trajectories(policy: Policy, partial: float) -> None:
    texts = ["Guess", "Split 14\n", "Split 14\n23*10=230\n", "Grid 3 and much more of it\n"]
    trace = traced(policy, texts, [partial, 1.0, partial, 1.5])
    lengths = [len(r) for r in trace.rollouts]
    assert len(set(lengths)) == 4
    ((evidence, *_),) = gather_evidence(policy, [trace], "advantage_entropy")
    assert evidence.reference == (lengths[1] + lengths[3]) / 2


def test_every_estimator_on_records_against_a_slow_reference(policy: Policy) -> None:
    traces = [
        traced(policy, TEXTS, REWARDS),
        traced(policy, [TEXTS[1], TEXTS[2], SOLVED], [0.0, 0.0, 0.0]),
    ]
    beta, cost, clip = 2.0, 0.7, 0.5
    for name in ESTIMATORS:
        settings = IBConfig(estimator=name, beta_ib=beta, cost_weight=cost, clip_nats=clip)
        scored = score_traces(policy, traces, settings)
        for before, after in zip(traces, scored, strict=True):
            lengths = [len(r) for r in before.rollouts]
            rewards = torch.tensor([r.reward for r in before.rollouts])
            group = advantages(rewards)
            right = [n for n, r in zip(lengths, rewards, strict=True) if r > 0] or lengths
            middle = sorted(right)
            reference = (middle[(len(middle) - 1) // 2] + middle[len(middle) // 2]) / 2
            assert reference == reference_length(lengths, [bool(r > 0) for r in rewards])
            told = policy.prompt_ids("What is 23*14?\nThe answer is 322.")
            for at, (rollout, done) in enumerate(zip(before.rollouts, after.rollouts, strict=True)):
                assert replace(done, score=None) == rollout
                assert done.score is not None
                count = len(rollout)
                if name.startswith("answer_") and name != "answer_conditioned":
                    context = [*before.prompt_ids, *reasoning_ids(policy, rollout)]
                    answer = slow_answer_logprob(policy, context, "322")
                    prior = slow_answer_logprob(policy, before.prompt_ids, "322")
                    gain = answer - prior
                    if name == "answer_information":
                        gain = math.exp(answer) - math.exp(prior)
                    grams = [rollout.ids[t : t + 4] for t in range(count - 3)]
                    excess = sum(min(-x, clip) for x in rollout.logprobs_t1) / reference
                    excess += 1 - len(set(grams)) / len(grams) if grams else 0.0
                    excess += max(0.0, count / reference - 1)
                    parts = beta * gain, cost * min(excess, 4.0)
                elif name == "advantage_entropy":
                    parts = float(group[at]) * sum(rollout.entropies) / count, 0.0
                else:
                    log_p = log_softmax(policy, [*told, *rollout.ids])
                    entropy = -(log_p.exp() * log_p).sum(-1)[len(told) - 1 : -1]
                    free = sum(rollout.entropies) / count
                    parts = beta * (free - float(entropy.mean())), (beta - 1) * free
                assert done.score.answer == pytest.approx(parts[0], rel=1e-6, abs=1e-9), name
                assert done.score.cost == pytest.approx(parts[1], rel=1e-9, abs=1e-12), name


def test_a_bare_box_tells_nothing(policy: Policy) -> None:
    """Its answer is cut off, right or wrong, and nothing is left."""
    texts = ["\\boxed{322}<|im_end|>", "\\boxed{5}<|im_end|>", SOLVED]
    scored = score_traces(policy, [traced(policy, texts, [1.0, 0.0, 1.0])], IBConfig())[0]
    parts = [r.score.answer for r in scored.rollouts if r.score]
    assert parts[:2] == [0.0, 0.0]
    assert parts[2] != 0.0


def test_what_is_boxed_does_not_matter(policy: Policy) -> None:
    said = SOLVED.split("\\boxed")[0]
    texts = [said + "\\boxed{322}<|im_end|>", said + "\\boxed{999}<|im_end|>"]
    found = gather_evidence(policy, [traced(policy, texts, [1.0, 0.0])], "answer_information")[0]
    assert found[0].answer == found[1].answer


def test_scores_do_not_depend_on_the_other_questions(policy: Policy) -> None:
    one = traced(policy, TEXTS, REWARDS)
    two = replace(
        traced(policy, TEXTS[:2], [0.0, 1.0]), question=Question("p", "What is 7*6?", "42")
    )
    for name in ESTIMATORS:
        settings = IBConfig(estimator=name)
        together = score_traces(policy, [two, one, two], settings, micro_tokens=256)
        alone = score_traces(policy, [one], settings)[0]
        for a, b in zip(together[1].rollouts, alone.rollouts, strict=True):
            assert a.score is not None and b.score is not None
            assert a.score.value == pytest.approx(b.score.value, rel=1e-9), name


def test_a_pass_is_made_only_if_the_estimator_reads_it(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    import i2b_lpo.model.logprobs as logprobs

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pass that nobody needs")

    monkeypatch.setattr(logprobs, "policy_logprobs", never)
    settings = IBConfig(estimator="advantage_entropy")
    score_traces(policy, [traced(policy, TEXTS, REWARDS)], settings)


def test_scoring_needs_verified_traces(policy: Policy) -> None:
    trace = traced(policy, TEXTS, REWARDS)
    bare = replace(trace, rollouts=(replace(trace.rollouts[0], reward=None),))
    for unverified in (bare, replace(trace, rollouts=())):
        with pytest.raises(ValueError, match=r"'q'.*verify them first"):
            score_traces(policy, [unverified], IBConfig())


def test_the_running_example_is_ranked_as_it_reads() -> None:
    """Right before wrong, and a plain step by step above a round-about one; with real weights."""
    bundled = load_policy("tiny-base")
    trace = score_traces(bundled, [teacher_force(bundled, QUESTION, FOUR)], IBConfig())[0]
    values = [r.score.value for r in trace.rollouts if r.score]
    assert min(values[0], values[3]) > 0.8 > 0.1 > max(values[1], values[2])
    assert values[3] > values[0]


# --- the filter ---------------------------------------------------------------------------------


def tree(policy: Policy, values: Sequence[float | None], rewards: Sequence[float]) -> Trace:
    """Two roots, then three branches of each, forked after the first token."""
    texts = [SOLVED[: len(SOLVED) - 3 * at] for at in range(len(values))]  # no two of one length
    trace = traced(policy, texts, rewards)
    prefix = len(trace.prompt_ids) + 1
    rollouts = []
    for at, (rollout, value) in enumerate(zip(trace.rollouts, values, strict=True)):
        branch = None if at < 2 else Branch(parent=(at - 2) // 3, p=prefix)
        score = None if value is None else Score(value, value, 0.0)
        rollouts.append(replace(rollout, branch=branch, score=score))
    return replace(trace, rollouts=tuple(rollouts))


VALUES = [-9.0, -9.0, 0.3, 0.1, 0.2, 0.5, 0.5, 0.5]
OUTCOMES = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "keep", "kept"),
    [
        ("top_n", 2, [1, 1, 1, 0, 1, 1, 1, 0]),
        ("top_n", 1, [1, 1, 1, 0, 0, 1, 0, 0]),
        ("top_n", 3, [1] * 8),
        ("within_outcome", 2, [1, 1, 1, 1, 1, 1, 1, 0]),
        ("within_outcome", 1, [1, 1, 1, 0, 1, 1, 0, 0]),
        ("none", 1, [1] * 8),
    ],
)
def test_filter_marks_branches_and_spares_roots(
    policy: Policy, name: str, keep: int, kept: list[int]
) -> None:
    trace = tree(policy, VALUES, OUTCOMES)
    filtered = filter_traces([trace, trace], IBConfig(filter=name, keep=keep))
    for after in filtered:
        assert [int(r.kept) for r in after.rollouts] == kept
        assert [replace(r, kept=True) for r in after.rollouts] == list(trace.rollouts)


def test_filter_needs_scores_of_branches_and_of_nobody_else(policy: Policy) -> None:
    roots = tree(policy, [None, None, *VALUES[2:]], OUTCOMES)
    assert filter_traces([roots], IBConfig())[0].rollouts[0].kept
    with pytest.raises(ValueError, match=r"Branch 4 has no score; call score_traces first"):
        filter_traces([tree(policy, [*VALUES[:4], None, *VALUES[5:]], OUTCOMES)], IBConfig())


def test_a_filtered_trace_scores_as_before(policy: Policy) -> None:
    """Advantages, T_ref and scores are the whole group's, whoever was pruned."""
    trace = tree(policy, VALUES, OUTCOMES)
    for name in ESTIMATORS:
        settings = IBConfig(estimator=name)
        once = score_traces(policy, [trace], settings)
        again = score_traces(policy, filter_traces(once, settings), settings)
        assert [r.score for r in again[0].rollouts] == [r.score for r in once[0].rollouts]


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_ib": -1.0}, r"ib.beta_ib is -1.0; give a finite number"),
        ({"beta_ib": math.nan}, "ib.beta_ib is nan"),
        ({"cost_weight": math.inf}, "ib.cost_weight is inf"),
        ({"clip_nats": 0.0}, "ib.clip_nats is 0.0; give a finite number of nats above 0"),
        ({"keep": 0}, "ib.keep is 0; keep at least 1"),
        ({"estimator": "length"}, "Unknown ib.estimator 'length'; choose one of answer_info"),
        ({"filter": "best"}, "Unknown ib.filter 'best'; choose one of top_n"),
    ],
)
def test_settings_say_what_to_do(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(IBConfig(**changes))
