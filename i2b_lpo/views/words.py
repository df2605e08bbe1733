"""Which word the policy says next at a fork, with z and without."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from i2b_lpo.views.base import NEUTRAL, STYLES, Style, View, hatched, styled
from i2b_lpo.views.text import escape, number

__all__ = ["next_word"]

OTHER = "any other"
SLACK = 1e-3  # by which rounding may lift a sum of probabilities above 1


def next_word(
    with_z: Mapping[str, float],
    without_z: Mapping[str, float],
    *,
    title: str = "The next word, with z and without",
) -> View:
    """Two bars per word: its probability with z and without, and what is left for any other.

    Args:
        with_z: word → π(word|c, z), from 0 to 1 and at most 1 in all.
        without_z: the same words → π(word|c).
        title: above the figure; plain text.

    Raises:
        ValueError: there is no word, the two hold different words, or not such numbers.

    Example:
        >>> print(next_word({"Split": 0.25, "Guess": 0.75}, {"Split": 1.0, "Guess": 0.0}))
        The next word, with z and without: likeliest with z 'Guess' 0.75, without z 'Split' 1.00. \
With z and without: Split 0.25, 1.00; Guess 0.75, 0.00; any other 0.00, 0.00.
    """
    words = list(with_z)
    if not words or set(words) != set(without_z):
        raise ValueError("Give the probabilities of the same words with z and without, at least 1.")
    bars = {}
    for name, chances in (("with z", with_z), ("without z", without_z)):
        values = [float(chances[word]) for word in words]
        if not all(p >= 0 for p in values) or sum(values) > 1 + SLACK:
            raise ValueError(f"Probabilities {name} must be from 0 up and at most 1 in all.")
        bars[name] = [*values, max(0.0, 1 - sum(values))]
    figure = go.Figure()
    looks = {"without z": Style(NEUTRAL), "with z": STYLES["I²B-LPO"]}
    for (name, style), offset in zip(looks.items(), (-0.4, 0.0), strict=True):
        figure.add_bar(
            x=list(range(len(words) + 1)),
            y=bars[name],
            offset=offset,
            width=0.38,
            name=name,
            marker=hatched(style),
            text=[number(p, 2) for p in bars[name]],
            textposition="outside",
            textfont={"size": 12},
            textangle=0,
            constraintext="none",
            cliponaxis=False,
            hovertext=[
                f"{escape(word, 40)}<br>{name}: {number(p, 3)}"
                for word, p in zip([*words, OTHER], bars[name], strict=True)
            ],
            hoverinfo="text",
        )
    styled(
        figure,
        title=escape(title, 90),
        height=300,
        margin={"t": 70, "b": 40},
        xaxis={
            "tickvals": list(range(len(words) + 1)),
            "ticktext": [escape(word, 16) for word in [*words, OTHER]],
            "range": [-0.6, len(words) + 0.6],
            "showgrid": False,
        },
        yaxis={"title": {"text": "probability"}, "range": [0, 1.12], "tickvals": [0, 0.5, 1]},
    )
    rows = list(zip([*words, OTHER], bars["with z"], bars["without z"], strict=True))
    return View(
        figure,
        f"{title}: likeliest with z {_likeliest(with_z)}, without z {_likeliest(without_z)}. "
        "With z and without: "
        + "; ".join(f"{word} {number(on, 2)}, {number(off, 2)}" for word, on, off in rows)
        + ".",
        (
            ("word", "with z", "without z"),
            *((word, number(on, 3), number(off, 3)) for word, on, off in rows),
        ),
    )


def _likeliest(chances: Mapping[str, float]) -> str:
    word = max(chances, key=lambda name: chances[name])
    return f"'{word}' {number(float(chances[word]), 2)}"
