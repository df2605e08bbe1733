"""What latents are reported to know, against distributions whose truth is known."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from test_latent import D, draw
from torch import Tensor

from i2b_lpo.method.probe import active_units, mutual_information, shuffled_information

# --- reports ---------------------------------------------------------------------------------


def test_active_units_compare_the_variance_of_the_means() -> None:
    means = draw(500, 4) * torch.tensor([1.0, 0.2, 0.05, 0.0], dtype=torch.float64) + 7.0
    for d in range(4):
        column = means[:, d].tolist()
        centre = math.fsum(column) / 500
        variance = math.fsum((x - centre) ** 2 for x in column) / 499
        assert bool(active_units(means)[d]) == (variance > 0.01)
    assert active_units(means).tolist() == [True, True, False, False]
    assert active_units(means, threshold=0.5).tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match="N ≥ 2"):
        active_units(means[:1])


def clusters(n: int, distance: float, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Of four labels, shuffled, each `distance` from the origin along an axis of its own."""
    labels = ["split", "grid", "factor", "round"] * (n // 4)
    random.Random(seed).shuffle(labels)
    where = torch.tensor([["split", "grid", "factor", "round"].index(x) for x in labels])
    return torch.nn.functional.one_hot(where, D) * distance + draw(n, D, seed=seed), labels


@pytest.mark.slow
def test_information_of_separable_labels_is_their_entropy_and_of_noise_none() -> None:
    z, labels = clusters(200, 20.0)
    assert math.log(4) - 0.05 < mutual_information(z, labels) <= math.log(4)
    assert -0.03 < shuffled_information(z, labels) < 0.03
    noise, labels = clusters(200, 0.0)
    assert -0.03 < mutual_information(noise, labels) < 0.03


@pytest.mark.slow
def test_information_grows_with_the_distance_and_stays_below_the_truth() -> None:
    # Two labels at ±δ in one dimension; the truth is an integral, here a fine sum.
    delta, n = 1.0, 2000
    labels = ["left", "right"] * (n // 2)
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(n // 2)
    z = torch.stack([signs * delta + draw(n), draw(n, seed=1)], 1)
    grid = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    density = (-((grid - delta) ** 2) / 2).exp() / math.sqrt(2 * math.pi)
    truth = math.log(2) - float((density * (1 + (-2 * delta * grid).exp()).log()).sum() * 1e-3)
    got = mutual_information(z, labels)
    assert truth - 0.05 < got < truth + 0.03
    weaker = mutual_information(z - (signs * 0.5).unsqueeze(1) * torch.tensor([1.0, 0.0]), labels)
    assert shuffled_information(z, labels) < weaker < got


def test_information_is_measured_on_held_out_folds() -> None:
    # 40 examples in 30 dimensions: a classifier can learn noise by heart.
    for seed in range(3):
        z, labels = draw(40, 30, seed=seed), ["a", "b"] * 20
        assert -0.1 < mutual_information(z, labels) < 0.03


@pytest.mark.slow
def test_information_doesnt_depend_on_the_units_of_z_or_the_names() -> None:
    z, labels = clusters(80, 2.0)
    scales = torch.tensor([1e-4, 1.0, 1e4, 3.0, 0.1], dtype=torch.float64)
    got = mutual_information(z, labels, seed=1)
    assert mutual_information(z * scales + 5.0, labels, seed=1) == pytest.approx(got, abs=1e-3)
    names = {"split": "z", "grid": "m", "factor": "a", "round": "k"}  # another order
    renamed = mutual_information(z, [names[x] for x in labels], seed=1)
    assert renamed == pytest.approx(got, abs=0.05)
    assert mutual_information(z, labels, seed=1) == got
    assert mutual_information(z, labels, seed=2) != got


def test_information_uses_the_labels_own_entropy() -> None:
    z, labels = clusters(200, 20.0)
    merged = ["rare" if x == "grid" else "common" for x in labels]
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy - 0.05 < mutual_information(z, merged) <= entropy


@pytest.mark.filterwarnings("error")  # scikit-learn only warns of a label that is too rare
@pytest.mark.parametrize("folds", [3, 5])
def test_a_label_may_be_as_rare_as_there_are_folds(folds: int) -> None:
    for extra in (0, 1):
        labels = ["rare"] * (folds + extra) + ["common"] * 30
        assert math.isfinite(mutual_information(draw(len(labels), 2), labels, folds=folds))


def test_one_label_holds_no_information() -> None:
    assert mutual_information(draw(10, D), ["split"] * 10) == 0.0


@pytest.mark.parametrize("report", [mutual_information, shuffled_information])
def test_information_refuses(report: Any) -> None:
    z = draw(12, D)
    labels = ["a", "b"] * 6
    for bad, names, options, message in (
        (z, labels[:-1], {}, "N labels"),
        (z[0], labels, {}, "N labels"),
        (z[:0], [], {}, "N labels"),
        (z * math.nan, labels, {}, "finite"),
        (z, [*labels[:-2], "c", "d"], {}, r"leave out the labels \['c', 'd'\]"),
        (z, labels, {"folds": 7}, "fewer folds"),
        (z, labels, {"folds": 2}, "at least 3"),
    ):
        with pytest.raises(ValueError, match=message):
            report(bad, names, **options)
