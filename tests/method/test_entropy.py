"""Token entropy against a loop in Python floats, the properties every entropy has, and forks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from i2b_lpo.method.entropy import FORK_RULES, choose_fork, token_entropy, top_fraction


def slow_entropy(logits: list[float]) -> float:
    """−Σ p log p in Python floats; tokens of probability 0 left out."""
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    total = math.fsum(weights)
    return -math.fsum(w / total * math.log(w / total) for w in weights if w > 0)


def random_logits(*shape: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0, 50.0])
def test_equals_the_loop(scale: float) -> None:
    logits = random_logits(6, 37, scale=scale)
    expected = torch.tensor([slow_entropy(row) for row in logits.tolist()], dtype=torch.float64)
    torch.testing.assert_close(token_entropy(logits), expected, rtol=1e-12, atol=1e-12)


def test_leading_shape_is_kept() -> None:
    logits = random_logits(2, 3, 5)
    assert token_entropy(logits).shape == (2, 3)
    assert token_entropy(logits)[1, 2].item() == pytest.approx(slow_entropy(logits[1, 2].tolist()))
    assert token_entropy(logits[0, 0]).shape == ()
    assert token_entropy(logits[:0]).shape == (0, 3)


def test_padded_ids_have_no_part() -> None:
    logits = random_logits(4, 12)
    padded = torch.cat([logits, torch.full((4, 3), 1e4, dtype=torch.float64)], -1)
    padded[0, -1] = float("nan")
    assert torch.equal(token_entropy(padded, vocab_size=12), token_entropy(logits))


def test_minus_infinity_is_probability_zero() -> None:
    logits = random_logits(1, 6)
    masked = logits.clone()
    masked[0, [1, 4]] = -math.inf
    expected = slow_entropy(logits[0, [0, 2, 3, 5]].tolist())
    assert token_entropy(masked).item() == pytest.approx(expected, rel=1e-12)
    certain = torch.full((1, 6), -math.inf)
    certain[0, 2] = 7.0
    assert str(token_entropy(certain)) == "tensor([0.])"  # neither NaN nor −0


def test_gradient_is_the_closed_form_and_finite_beside_minus_infinity() -> None:
    logits = random_logits(2, 6)
    logits[0, 3] = -math.inf
    logits.requires_grad_()
    entropy = token_entropy(logits)
    entropy.sum().backward()
    p = logits.detach().softmax(-1)
    log_p = torch.where(p > 0, p.log(), 0.0)
    expected = -p * (log_p + entropy.detach()[:, None])
    torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=1e-14)


def test_large_offset_costs_no_accuracy_in_float32() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    shifted = token_entropy(logits + 2.0**14)  # exact in float32
    assert shifted.item() == pytest.approx(slow_entropy([0.0, 1.0, 2.0, 3.0]), rel=1e-6)


def test_dtype_of_the_computation() -> None:
    logits = random_logits(3, 50)
    half = logits.bfloat16()
    assert token_entropy(half).dtype == torch.float32
    assert torch.equal(token_entropy(half), token_entropy(half.float()))
    assert token_entropy(logits.float()).dtype == torch.float32
    assert token_entropy(logits).dtype == torch.float64


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-60.0, 60.0), min_size=1, max_size=20), st.floats(-30.0, 30.0))
def test_bounds_and_symmetries(values: list[float], shift: float) -> None:
    logits = torch.tensor([values], dtype=torch.float64)
    entropy = token_entropy(logits).item()
    assert 0.0 <= entropy <= math.log(len(values)) + 1e-12
    assert token_entropy(logits + shift).item() == pytest.approx(entropy, abs=1e-10)
    assert token_entropy(logits.flip(-1)).item() == pytest.approx(entropy, abs=1e-12)


@pytest.mark.parametrize("vocab_size", [0, -1, 6])
def test_vocab_size_out_of_range(vocab_size: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the 5 logits"):
        token_entropy(torch.zeros(2, 5), vocab_size=vocab_size)


@pytest.mark.parametrize("logits", [torch.zeros(2, 5, dtype=torch.long), torch.tensor(1.0)])
def test_not_logits(logits: Tensor) -> None:
    with pytest.raises(ValueError, match="floating-point logits"):
        token_entropy(logits)


# --- forks ----------------------------------------------------------------------------------------

rollouts = st.lists(st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0.0, 6.0), min_size=1, max_size=60)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(rollouts, st.sampled_from([0.05, 0.1, 1 / 3, 0.5, 1.0]))
def test_omega_holds_the_highest_entropies_and_of_equal_ones_the_earlier(
    entropies: list[float], fraction: float
) -> None:
    omega = top_fraction(entropies, fraction)
    # ⌈fraction·T⌉ without the rounding of floats
    shares = {0.05: 20, 0.1: 10, 1 / 3: 3, 0.5: 2, 1.0: 1}
    assert len(omega) == -(-len(entropies) // shares[fraction])
    assert omega == sorted(set(omega))
    left = [t for t in range(len(entropies)) if t not in omega]
    for t in omega:
        for other in left:
            assert entropies[t] > entropies[other] or (
                entropies[t] == entropies[other] and t < other
            )


@pytest.mark.parametrize(("tokens", "expected"), [(1, 1), (19, 1), (20, 1), (21, 2), (100, 5)])
def test_five_percent_is_at_least_one_token_and_rounds_up(tokens: int, expected: int) -> None:
    assert len(top_fraction([0.1] * tokens)) == expected


def test_the_first_token_of_the_answer_can_be_the_fork() -> None:
    assert top_fraction([2.0, 0.1, 0.3]) == [0]
    assert choose_fork([2.0, 0.1, 0.3], generator=seeded()) == 0
    assert choose_fork([0.0], generator=seeded()) == 0


def test_candidates_by_rule() -> None:
    entropies = [0.5, 2.0, 0.1, 1.0, 2.0]
    assert list(FORK_RULES) == ["top_fraction", "argmax", "uniform"]
    found = {name: rule(entropies, 0.4) for name, rule in FORK_RULES.items()}
    assert found == {"top_fraction": [1, 4], "argmax": [1], "uniform": [0, 1, 2, 3, 4]}


@pytest.mark.parametrize("rule", FORK_RULES)
def test_the_fork_is_uniform_over_the_candidates(rule: str) -> None:
    entropies = [0.5, 2.0, 0.1, 1.0, 2.0, 0.7]
    generator, count = seeded(3), 3000
    drawn = [choose_fork(entropies, rule, fraction=0.5, generator=generator) for _ in range(count)]
    omega = FORK_RULES[rule](entropies, 0.5)
    assert set(drawn) == set(omega)
    for t in omega:
        # 5 standard deviations of a binomial count
        share = 1 / len(omega)
        assert abs(drawn.count(t) - count * share) <= 5 * math.sqrt(count * share * (1 - share))


def test_the_default_rule_and_fraction_are_the_papers() -> None:
    entropies = [float(t % 37) for t in range(100)]
    drawn = {choose_fork(entropies, generator=seeded(seed)) for seed in range(200)}
    assert drawn == set(top_fraction(entropies, 0.05)) == {35, 36, 72, 73, 34}


def test_one_generator_gives_one_fork() -> None:
    entropies = [0.1] * 50
    one, again = (
        [choose_fork(entropies, "uniform", generator=g) for _ in range(9)]
        for g in (seeded(7), seeded(7))
    )
    assert one == again
    assert len(set(one)) > 5


@pytest.mark.parametrize(
    ("entropies", "rule", "fraction", "message"),
    [
        ([0.1], "highest", 0.05, "Unknown fork rule 'highest'; choose one of top_fraction, argmax"),
        ([], "top_fraction", 0.05, "at least one token and a fraction above 0"),
        ([], "argmax", 0.05, "at least one token"),
        ([], "uniform", 0.05, "at least one token"),
        ([0.1], "top_fraction", 0.0, "got 1 tokens and 0.0"),
        ([0.1], "top_fraction", 1.01, "got 1 tokens and 1.01"),
        ([0.1], "top_fraction", math.nan, "fraction above 0 and up to 1"),
    ],
)
def test_forks_that_cant_be_chosen(
    entropies: list[float], rule: str, fraction: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_fork(entropies, rule, fraction=fraction, generator=seeded())
