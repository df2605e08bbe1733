"""Strength, fusions and the two written-out forms of PSA against loops in Python floats."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from i2b_lpo.method.psa import (
    FUSIONS,
    PSA,
    Fusion,
    InputFusion,
    ResidualFusion,
    Shape,
    SoftmaxFusion,
    Strength,
    attend_with_slot,
    slot_gate,
)

SHAPE = Shape(layers=5, hidden=6, kv_heads=2, head_dim=3, vocab=11)
D_Z, B = 4, 3
FULL = Strength(1.0, None)


def latents(rows: int = B, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, D_Z, generator=generator, dtype=torch.float64)


def fusion_of(name: str, shape: Shape = SHAPE) -> Any:
    torch.manual_seed(1)
    return FUSIONS[name](shape, D_Z).double()


def times(matrix: Tensor, z: Tensor) -> list[float]:
    """M z in Python floats."""
    return [
        math.fsum(m * x for m, x in zip(row, z.tolist(), strict=True)) for row in matrix.tolist()
    ]


def assert_equal(actual: Tensor, expected: list[float]) -> None:
    assert actual.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14)


# --- γ(s) -----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.floats(0.0, 1.0),
    st.none() | st.floats(0.01, 1e4),
    st.lists(st.integers(-40, 400), min_size=1, max_size=8),
)
def test_log_gamma_is_the_formula(gamma: float, decay: float | None, since: list[int]) -> None:
    found = Strength(gamma, decay).log_gamma(torch.tensor(since, dtype=torch.float64))
    for s, value in zip(since, found.tolist(), strict=True):
        if s < 0 or gamma == 0:
            assert value == -math.inf
        else:
            expected = math.log(gamma) - (0.0 if decay is None else s / decay)
            assert value == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert not found.exp().isnan().any()


def test_log_gamma_keeps_the_shape_and_takes_whole_numbers() -> None:
    since = torch.arange(-2, 4).view(2, 3)
    found = Strength(0.5, 2.0).log_gamma(since)
    assert found.dtype == torch.float32
    assert found.exp().tolist() == [
        pytest.approx([0.0, 0.0, 0.5]),
        pytest.approx([0.5 * math.exp(-s / 2) for s in (1, 2, 3)]),
    ]
    assert Strength(0.5, 2.0).log_gamma(since.double()).dtype == torch.float64


def test_decay_and_the_constant_form() -> None:
    since = torch.tensor([0.0, 8.0, 80_000.0])
    assert Strength().log_gamma(since).tolist() == [0.0, -1.0, -10_000.0]
    assert Strength(0.25, None).log_gamma(since).tolist() == [pytest.approx(math.log(0.25))] * 3


@pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan, math.inf])
def test_a_strength_outside_0_to_1_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=r"γ_0 is .*from 0 to 1"):
        Strength(gamma)


@pytest.mark.parametrize("decay", [0.0, -3.0, math.inf, math.nan])
def test_a_decay_length_without_meaning_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"s_0 is .*positive number, or None"):
        Strength(1.0, decay)


# --- fusions --------------------------------------------------------------------------------------


def test_fusions_by_name() -> None:
    assert dict(FUSIONS) == {
        "psa": PSA,
        "input": InputFusion,
        "softmax": SoftmaxFusion,
        "residual": ResidualFusion,
    }
    with pytest.raises(TypeError):
        FUSIONS["other"] = PSA  # type: ignore[index]
    with pytest.raises(TypeError, match="abstract"):
        Fusion()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("psa", {"U_k": (5, 6, D_Z), "U_v": (5, 6, D_Z), "U_n": (5, 6, D_Z)}),
        ("input", {"W": (6, D_Z)}),
        ("softmax", {"W": (11, D_Z)}),
        ("residual", {"W": (4, 6, D_Z)}),
    ],
)
def test_every_projection_is_a_parameter(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    fusion = fusion_of(name)
    found = dict(fusion.named_parameters())
    assert {key: tuple(p.shape) for key, p in found.items()} == shapes
    assert all(p.requires_grad for p in found.values())
    for parameter in found.values():  # small, without a bias towards a sign, and not all alike
        assert 0.03 < parameter.std() < 0.08
        assert parameter.mean().abs() < 0.03


def test_psa_projects_z_for_every_layer_and_head() -> None:
    z, strength = latents(), Strength(0.3, 5.0)
    fusion = fusion_of("psa")
    injection = fusion(z, strength)
    assert injection.strength is strength
    assert injection.keys.shape == injection.values.shape == (5, B, 2, 3)
    assert injection.norms.shape == (5, B, 6)
    assert [injection.embedding, injection.residual, injection.logits] == [None] * 3
    for layer in range(SHAPE.layers):
        for row in range(B):
            for head in range(SHAPE.kv_heads):
                own = slice(3 * head, 3 * head + 3)
                assert_equal(
                    injection.keys[layer, row, head], times(fusion.U_k[layer, own], z[row])
                )
                assert_equal(
                    injection.values[layer, row, head], times(fusion.U_v[layer, own], z[row])
                )
            assert_equal(injection.norms[layer, row], times(fusion.U_n[layer], z[row]))


def test_input_softmax_and_residual_project_z() -> None:
    z = latents()
    given = {name: fusion_of(name) for name in ("input", "softmax", "residual")}
    made = {name: fusion(z, FULL) for name, fusion in given.items()}
    filled = {
        name: [f.name for f in fields(made[name]) if getattr(made[name], f.name) is not None]
        for name in made
    }
    assert filled == {
        "input": ["strength", "embedding"],
        "softmax": ["strength", "logits"],
        "residual": ["strength", "residual"],
    }
    for row in range(B):
        assert_equal(made["input"].embedding[row], times(given["input"].W, z[row]))
        one, weight = made["softmax"].logits
        assert_equal(weight @ one[row], times(given["softmax"].W, z[row]))
        for layer in range(4):
            found = made["residual"].residual[layer, row]
            assert_equal(found, times(given["residual"].W[layer], z[row]))


@pytest.mark.parametrize(("layers", "expected"), [(2, 2), (4, 4), (9, 4)])
def test_residual_takes_the_last_4_layers_or_all_there_are(layers: int, expected: int) -> None:
    shape = Shape(layers=layers, hidden=6, kv_heads=2, head_dim=3, vocab=11)
    assert len(fusion_of("residual", shape).W) == expected


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("rows", [[2, 0], [1, 1, 1, 0], []])
def test_selected_rows_are_the_injection_of_those_latents(name: str, rows: list[int]) -> None:
    z, fusion = latents(), fusion_of(name)
    chosen = torch.tensor(rows, dtype=torch.long)
    found, expected = fusion(z, FULL).select(chosen), fusion(z[chosen], FULL)
    assert found.strength is FULL
    for field in fields(expected)[1:]:
        got, want = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "logits" and want is not None:
            assert got[1] is want[1]
            got, want = got[0], want[0]
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", FUSIONS)
def test_an_injection_is_for_as_many_rows_as_it_has_latents(name: str) -> None:
    injection = fusion_of(name)(latents(), FULL)
    injection.check_rows(3)
    for rows in (1, 2, 4):
        with pytest.raises(ValueError, match=rf"^{rows} rows are given 3 latent\(s\); give each"):
            injection.check_rows(rows)


# --- attention over [k_z; K] ----------------------------------------------------------------------

numbers = st.floats(-4.0, 4.0)


@st.composite
def heads(draw: st.DrawFn) -> tuple[list[list[float]], float]:
    """q, k_z, v_z and T rows of K and of V, and log γ."""
    size, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    row = st.lists(numbers, min_size=size, max_size=size)
    return draw(st.lists(row, min_size=3 + 2 * tokens, max_size=3 + 2 * tokens)), draw(
        st.floats(-30.0, 0.0) | st.just(-math.inf)
    )


def by_loop(rows: list[list[float]], log_gamma: float) -> tuple[list[float], float]:
    """Output and weight of the slot: Σ w_t v_t, γ multiplying the slot's exponential."""
    query, key_z, value_z, *rest = rows
    half = len(rest) // 2
    keys, values = [key_z, *rest[:half]], [value_z, *rest[half:]]
    weights = []
    for at, key in enumerate(keys):
        score = sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(len(query))
        weights.append(math.exp(score) * (math.exp(log_gamma) if at == 0 else 1.0))
    total = math.fsum(weights)
    mixed = [
        math.fsum(w * v[i] for w, v in zip(weights, values, strict=True)) / total
        for i in range(len(query))
    ]
    return mixed, weights[0] / total


@settings(max_examples=60)
@given(heads())
def test_both_written_out_forms_equal_the_loop(problem: tuple[list[list[float]], float]) -> None:
    rows, log_gamma = problem
    expected, weight = by_loop(rows, log_gamma)
    states = torch.tensor(rows, dtype=torch.float64)
    query, key_z, value_z = states[:3]
    keys, values = states[3:].chunk(2)
    strength = torch.tensor(log_gamma, dtype=torch.float64)
    output = attend_with_slot(query, keys, values, key_z, value_z, strength)
    assert output.tolist() == pytest.approx(expected, rel=1e-11, abs=1e-12)
    gate = slot_gate(query, keys, key_z, strength)
    assert gate.item() == pytest.approx(weight, rel=1e-11, abs=1e-15)
    # The merge o' = (1 − g) o + g v_z, with o the attention without the slot.
    plain = attend_with_slot(query, keys, values, key_z, value_z, torch.tensor(-math.inf).double())
    merged = (1 - gate) * plain + gate * value_z
    torch.testing.assert_close(output, merged, rtol=1e-11, atol=1e-12)


def random_heads(*batch: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    shapes = ((4,), (6, 4), (6, 4), (4,), (4,))
    return tuple(
        torch.randn(*batch, *s, generator=generator, dtype=torch.float64).requires_grad_()
        for s in shapes
    )


def test_leading_dimensions_are_rows_of_their_own() -> None:
    q, k, v, k_z, v_z = random_heads(2, 3)
    log_gamma = -torch.arange(6.0, dtype=torch.float64).view(2, 3)
    together = attend_with_slot(q, k, v, k_z, v_z, log_gamma)
    gates = slot_gate(q, k, k_z, log_gamma)
    assert together.shape == (2, 3, 4)
    assert gates.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = [t[i, j] for t in (q, k, v, k_z, v_z, log_gamma)]
            alone = attend_with_slot(*one)
            torch.testing.assert_close(together[i, j], alone, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(gates[i, j], slot_gate(*one[:2], *one[3::2]))


@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.01])
def test_gamma_multiplies_the_odds_of_the_slot(gamma: float) -> None:
    # An open slot of score 0 still takes weight: γ on z, on k_z or on the score wouldn't close it.
    q, k, _, k_z, _ = random_heads(3)
    full = slot_gate(q, k, k_z, torch.zeros(3, dtype=torch.float64))
    part = slot_gate(q, k, k_z, torch.full((3,), math.log(gamma), dtype=torch.float64))
    torch.testing.assert_close(part / (1 - part), gamma * full / (1 - full), rtol=1e-10, atol=0)


def test_a_closed_slot_has_no_weight_and_no_gradient() -> None:
    q, k, v, k_z, v_z = random_heads()
    closed = torch.tensor(-math.inf).double()
    output = attend_with_slot(q, k, v, k_z, v_z, closed)
    plain = ((k @ q / 2).softmax(0)[:, None] * v).sum(0)
    torch.testing.assert_close(output, plain, rtol=1e-13, atol=0)
    assert slot_gate(q, k, k_z, closed).item() == 0.0
    (output.sum() + slot_gate(q, k, k_z, closed)).backward()
    gradients = [t.grad for t in (q, k, v, k_z, v_z)]
    for gradient in gradients:
        assert gradient is not None
        assert gradient.isfinite().all()
    for gradient in gradients[3:]:
        assert gradient is not None
        assert gradient.count_nonzero() == 0


def test_the_written_out_form_is_differentiable() -> None:
    q, k, v, k_z, v_z = random_heads()
    log_gamma = torch.tensor(-0.5).double()
    assert torch.autograd.gradcheck(lambda *t: attend_with_slot(*t), (q, k, v, k_z, v_z, log_gamma))
    assert torch.autograd.gradcheck(lambda *t: slot_gate(*t), (q, k, k_z, log_gamma))
