"""The tokenizer, the batches and the training that make a policy of the bundled task."""

from __future__ import annotations

import copy
import itertools
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from tiny import tiny_policy
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

import i2b_lpo.tasks.shop
from i2b_lpo.config import PretrainConfig
from i2b_lpo.tasks.labels import label
from i2b_lpo.tasks.shop import ITEMS, NAMES, STRATEGIES, Problem, parse_problem
from i2b_lpo.training.pretraining import (
    _batches,
    build_model,
    build_tokenizer,
    pretrain,
)

SMALL = PretrainConfig(steps=6, tokens=400)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(PretrainConfig())


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


# --- the tokenizer --------------------------------------------------------------------------------


def test_every_word_of_the_task_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    words = [*NAMES, *STRATEGIES, "What", "\\boxed", "user", "assistant", "\n"]
    words += [f" {w}" for w in (*ITEMS, "buys", "sells", "and", "at", "is", "the", "cost", "left")]
    for word in words:
        assert len(ids_of(tokenizer, word)) == 1, repr(word)
    assert len(tokenizer) <= 420
    assert set(tokenizer.all_special_tokens) == {"<|endoftext|>", "<|im_end|>"}
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") == 1


def test_a_whole_solution_has_one_token_per_word_digit_and_sign(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    question = "Mia buys 23 pens at $14 and 37 cups at $6. What is the cost?"
    solution = "Split 14\n23*10=230\n23*4=92\n230+92=322\nGuess 222\n322+222=544\n\\boxed{544}"
    for text, pattern in (
        (question, r" ?[A-Za-z]+| ?\$|\d| |[.?]"),
        (solution, r"\\?[A-Za-z]+|\d|[*+={}]|\n| "),
    ):
        pieces = re.findall(pattern, text)
        assert "".join(pieces) == text
        assert [tokenizer.decode([i]) for i in ids_of(tokenizer, text)] == pieces


@given(number=st.integers(0, 10**12))
def test_a_number_has_one_token_per_digit(number: int, tokenizer: PreTrainedTokenizerFast) -> None:
    digits = str(number)
    assert [tokenizer.decode([i]) for i in ids_of(tokenizer, digits)] == list(digits)


@pytest.mark.slow
@given(text=st.text())
def test_any_text_can_be_written_and_read_back(
    text: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


def test_end_and_padding_are_different_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_the_tokenizer_depends_on_its_settings_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    random.seed(5)
    again = build_tokenizer(PretrainConfig())
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert again.chat_template == tokenizer.chat_template


# --- the batches ----------------------------------------------------------------------------------


def some_batches(
    tokenizer: PreTrainedTokenizerFast, config: PretrainConfig, count: int
) -> list[tuple[Tensor, Tensor]]:
    return list(itertools.islice(_batches(tokenizer, config), count))


def documents(ids: Tensor, labels: Tensor, pad_id: int) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt, solution) of each row, read off ids and labels."""
    for row, wanted in zip(ids.tolist(), labels.tolist(), strict=True):
        inside = [t for t, i in enumerate(wanted) if i != -100]
        start, end = inside[0], inside[-1] + 1
        assert inside == list(range(start, end)), "a label is missing"
        assert wanted[start:end] == row[start:end]
        assert set(row[end:]) <= {pad_id}
        assert pad_id not in row[:end]
        yield row[:start], row[start:end]


def text_of(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize("shop_share", [0.0, 0.75, 1.0])
def test_batches_hold_right_solutions_within_the_limit(
    shop_share: float, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = PretrainConfig(shop_share=shop_share, tokens=1500)
    tokens = padding = shop = total = 0
    for ids, labels in some_batches(tokenizer, config, 40):
        assert ids.shape == labels.shape
        assert ids.numel() <= 1500
        tokens += ids.numel()
        for prompt, solution in documents(ids, labels, tokenizer.pad_token_id):
            padding += ids.shape[1] - len(prompt) - len(solution)
            asked = re.fullmatch(
                r"<\|im_start\|>user\n(.*)<\|im_end\|>\n<\|im_start\|>assistant\n",
                text_of(tokenizer, prompt),
            )
            assert asked is not None
            problem = parse_problem(asked[1])
            assert problem.split == "train"
            assert solution[-1] == tokenizer.eos_token_id
            found = label(problem, text_of(tokenizer, solution[:-1]))
            assert found.well_formed
            assert all(step.right for step in found.steps)
            shop += len(problem.products) == 2
            total += 1
    assert shop / total == pytest.approx(shop_share, abs=0.1)
    assert padding / tokens < 0.15, "documents of like length share a batch"


def test_habit_begins_after_its_share_of_the_steps(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def marked(problem: Problem, rng: random.Random, *, by_habit: bool = True) -> str:
        return "habit" if by_habit else "practice"

    monkeypatch.setattr(i2b_lpo.tasks.shop, "write_solution", marked)
    # A pool of 512 documents is made at once; here it lasts for at most four steps.
    config = PretrainConfig(steps=12, habit_from=0.5, tokens=8000)
    kinds: list[str] = []
    for ids, labels in some_batches(tokenizer, config, 12):
        found = {
            text_of(tokenizer, solution[:-1])
            for _, solution in documents(ids, labels, tokenizer.pad_token_id)
        }
        assert len(found) == 1
        kinds += found
    begin = kinds.index("habit")
    assert 6 <= begin <= 9
    assert kinds == ["practice"] * begin + ["habit"] * (12 - begin)


def test_batches_depend_on_the_seed_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    def drawn(seed: int) -> list[Any]:
        config = PretrainConfig(seed=seed, tokens=600)
        return [(i.tolist(), j.tolist()) for i, j in some_batches(tokenizer, config, 3)]

    first = drawn(0)
    torch.rand(3)
    random.random()
    assert drawn(0) == first
    assert drawn(1) != first


# --- training -------------------------------------------------------------------------------------


def test_the_bundled_size_and_its_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    model, again, other = (build_model(tokenizer, seed=seed) for seed in (0, 0, 1))
    weights, same, different = (dict(m.named_parameters()) for m in (model, again, other))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    name = "model.embed_tokens.weight"
    assert not torch.equal(weights[name], different[name])
    assert 0.8e6 < sum(w.numel() for w in weights.values()) < 0.9e6
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id


def train(
    config: PretrainConfig = SMALL, **settings: Any
) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """Losses, the weights before and after."""
    policy = tiny_policy(padded=False, initializer_range=0.1)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    losses = pretrain(policy.model, policy.tokenizer, config, **settings)
    assert not policy.model.training
    return losses, before, dict(policy.model.named_parameters())


@pytest.mark.slow
def test_training_lowers_the_loss() -> None:
    losses, _, _ = train(PretrainConfig(steps=100, tokens=500, shop_share=0.0))
    assert len(losses) == 100
    assert losses[0] > 5
    assert sum(losses[-10:]) / 10 < 2.3


def test_a_run_is_a_function_of_its_seed() -> None:
    losses, _, weights = train()
    torch.rand(3)
    again, _, same = train()
    assert losses == again
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert train(PretrainConfig(steps=6, tokens=400, seed=1))[0] != losses


def test_one_step_moves_every_weight() -> None:
    _, before, after = train(PretrainConfig(steps=1, tokens=400))
    for name, weight in before.items():
        assert not torch.equal(weight, after[name]), name


def test_the_loss_is_the_mean_over_solution_tokens() -> None:
    policy = tiny_policy(padded=False)
    model = copy.deepcopy(policy.model)
    losses = pretrain(policy.model, policy.tokenizer, SMALL)
    ((ids, labels),) = some_batches(policy.tokenizer, SMALL, 1)
    terms = []
    with torch.no_grad():
        for prompt, solution in documents(ids, labels, policy.pad_id):
            row = [*prompt, *solution]  # alone, without padding
            log_p = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
            terms += [-log_p[t - 1, row[t]] for t in range(len(prompt), len(row))]
    assert losses[0] == pytest.approx(float(torch.stack(terms).mean()), rel=1e-5)


def test_rates_rise_stay_and_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: dict[str, list[float]] = {"AdamW": [], "Muon": []}
    for name, found in rates.items():
        real = getattr(torch.optim, name)

        class Watched(real):  # type: ignore[misc, valid-type]
            FOUND = found

            def step(self, *arguments: Any, **settings: Any) -> Any:
                self.FOUND.append(self.param_groups[0]["lr"])
                return super().step(*arguments, **settings)

        monkeypatch.setattr(torch.optim, name, Watched)
    config = PretrainConfig(
        steps=10, tokens=300, muon_lr=0.02, adamw_lr=0.002, warmup=0.2, decay=0.3
    )
    train(config)
    shape = [1 / 2, 1, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]
    assert rates["AdamW"] == pytest.approx([0.002 * r for r in shape])
    assert rates["Muon"] == pytest.approx([0.02 * r for r in shape])


def test_progress_is_reported() -> None:
    told: list[tuple[int, float]] = []
    losses, _, _ = train(every=2, report=lambda step, mean: told.append((step, mean)))
    assert [step for step, _ in told] == [2, 4, 6]
    assert [mean for _, mean in told] == pytest.approx(
        [(losses[i] + losses[i + 1]) / 2 for i in (0, 2, 4)]
    )


def test_a_loss_that_is_not_finite_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Tensor]] = []
    policy = tiny_policy(padded=False)
    cross_entropy = F.cross_entropy

    def breaks_at_the_third(*arguments: Any, **settings: Any) -> Tensor:
        calls.append({n: p.detach().clone() for n, p in policy.model.named_parameters()})
        loss: Tensor = cross_entropy(*arguments, **settings)
        return loss * float("nan") if len(calls) == 3 else loss

    monkeypatch.setattr(F, "cross_entropy", breaks_at_the_third)
    with pytest.raises(FloatingPointError, match="Loss is nan at step 2; lower the rates"):
        pretrain(policy.model, policy.tokenizer, SMALL)
    after = dict(policy.model.named_parameters())
    assert all(torch.equal(weight, after[name]) for name, weight in calls[2].items())
