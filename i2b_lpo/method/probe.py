"""What latents know: which dimensions are used, and how much of a label can be read from z."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["active_units", "mutual_information", "shuffled_information"]


def active_units(posterior_means: Tensor, threshold: float = 0.01) -> Tensor:
    """Find the dimensions whose posterior mean has a variance above `threshold` over the data.

    Active units and threshold of Burda et al. 2016 (arXiv 1509.00519). Under a conditional prior a
    dimension can vary with the prefix alone: read it together with `kl_per_dimension`.

    Args:
        posterior_means: μ_q, shape ``(N, d_z)``.
        threshold: in squared units of z.

    Returns:
        bool, shape ``(d_z,)``.

    Raises:
        ValueError: if there are fewer than two examples.

    Example:
        >>> active_units(torch.tensor([[0.0, 1.0], [1.0, 1.1]]))
        tensor([ True, False])
    """
    if posterior_means.dim() != 2 or len(posterior_means) < 2:
        raise ValueError(
            "active_units needs means of shape (N, d_z) with N ≥ 2, "
            f"got {tuple(posterior_means.shape)}."
        )
    return posterior_means.to(torch.float64).var(0) > threshold


def mutual_information(z: Tensor, labels: Sequence[str], *, folds: int = 5, seed: int = 0) -> float:
    r"""Estimate I(z; label) from below, in nats, from what a linear classifier reads in z.

    .. math:: I(z; y) = H(y) - H(y|z) \ge H(y) - E[-\log q(y|z)]

    METHOD §3 [D]: empirical H(y), and as q a multinomial logistic regression on standardised z,
    scored on folds it didn't see, its penalty chosen within the others (else small samples without
    information would give far less than 0). It is a lower bound, since a poor q can only lower it
    (Barber & Agakov 2003); it can fall slightly below 0, and is at most H(y).

    Args:
        z: shape ``(N, d_z)``.
        labels: N labels, each at least `folds` times; with only one label, the result is 0.
        folds: number of parts held out in turn, at least 3.
        seed: of the split.

    Raises:
        ValueError: if the numbers differ, z isn't finite, or a label is rarer than `folds`.
    """
    # Imported here because no other function needs it and it takes as long to import as torch.
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if z.dim() != 2 or not 0 < len(z) == len(labels) or not bool(z.isfinite().all()):
        raise ValueError(
            f"give finite z of shape (N, d_z) and N labels, got {tuple(z.shape)} and {len(labels)}."
        )
    counts = Counter(labels)
    rare = sorted(label for label, count in counts.items() if count < folds)
    if folds < 3 or rare:
        raise ValueError(
            f"folds={folds} must be at least 3 and at most every label's count: "
            f"leave out the labels {rare} or use fewer folds."
        )
    if len(counts) == 1:
        return 0.0
    share = np.array(list(counts.values())) / len(labels)
    classifier = LogisticRegressionCV(
        Cs=[1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0],
        cv=folds - 1,  # what is left of the rarest label when one fold is held out
        scoring="neg_log_loss",
        max_iter=1000,
        l1_ratios=(0,),
        use_legacy_attributes=False,  # as in later versions; unset, it warns
    )
    held_out = cross_val_predict(
        make_pipeline(StandardScaler(), classifier),
        z.detach().to("cpu", torch.float64).numpy(),
        list(labels),
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        method="predict_proba",
    )  # (N, labels in sorted order)
    return float(-share @ np.log(share) - log_loss(list(labels), held_out))


def shuffled_information(
    z: Tensor, labels: Sequence[str], *, folds: int = 5, seed: int = 0
) -> float:
    """Return `mutual_information` with permuted labels (by `seed`), the control near 0."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return mutual_information(z, [labels[i] for i in order], folds=folds, seed=seed)
