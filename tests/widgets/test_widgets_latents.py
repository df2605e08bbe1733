"""Latent explorer: its numbers against a slow model, its controls, its words, what it refuses."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
from test_widgets import HOSTILE, click, data, everything
from tiny import tiny_policy
from torch import Tensor
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from i2b_lpo.method.psa import Strength
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.steering import Steering, new_steering
from i2b_lpo.rollout import example
from i2b_lpo.views import latent_map, next_word
from i2b_lpo.widgets import LatentExplorer
from i2b_lpo.widgets.base import Clickable, Shown
from i2b_lpo.widgets.latents import BETWEEN, PRIOR

pytestmark = pytest.mark.slow

D_Z = 4
WORDS = ("Guess", "Split", "Round", "Factor", "Grid")  # here of 1 and of 5 tokens


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(seed=1, dtype=torch.float64)


@pytest.fixture(scope="module")
def steering(policy: Policy) -> Steering:
    torch.manual_seed(0)
    made = new_steering(policy, d_z=D_Z, strength=Strength(1.0, 2.0))
    with torch.no_grad():
        for parameter in made.fusion.parameters():
            parameter.mul_(20)
    made.fusion.double(), made.cvae.double()
    return made


def some_latents() -> dict[str, Tensor]:
    torch.manual_seed(2)
    spread = {"Split": 5, "Guess": 3, "Round": 1}
    return {name: torch.randn(n, D_Z).double() + n for name, n in spread.items()}


@pytest.fixture
def widget(policy: Policy, steering: Steering) -> LatentExplorer:
    return LatentExplorer(policy, steering, some_latents())


# --- the numbers --------------------------------------------------------------------------------


def normed(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = hidden.float()  # as transformers does, in every precision
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).double()


@torch.no_grad()
def slow_logits(
    policy: Policy, ids: Sequence[int], p: int, fusion: Any, z: Tensor, strength: Strength
) -> Tensor:
    """Logits of every row, (T, V), head by head and row by row with METHOD §4's formulas."""
    model, config = policy.model.model, policy.model.config
    d, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    place = torch.arange(len(ids))
    gamma = torch.tensor(
        [
            strength.gamma * math.exp(-(t - p + 1) / (strength.decay or 1)) if t >= p - 1 else 0.0
            for t in place.tolist()
        ]
    ).double()
    h = model.embed_tokens(torch.tensor(ids))  # (T, hidden)
    cos, sin = model.rotary_emb(h[None], place[None])
    for at, layer in enumerate(model.layers):
        heads, norm = layer.self_attn, layer.input_layernorm
        weight = norm.weight + gamma[:, None] * (fusion.U_n[at] @ z)
        x = normed(h, weight, norm.variance_epsilon)
        q, k, v = (
            part(x).view(len(ids), -1, d) for part in (heads.q_proj, heads.k_proj, heads.v_proj)
        )
        q, k = (
            normed(states, by.weight, by.variance_epsilon)
            for states, by in ((q, heads.q_norm), (k, heads.k_norm))
        )
        q, k = (
            states[0].transpose(0, 1)
            for states in apply_rotary_pos_emb(
                q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin
            )
        )
        k_z, v_z = ((u[at] @ z).view(-1, d) for u in (fusion.U_k, fusion.U_v))
        rows = []
        for t in place.tolist():
            out = []
            for head in range(config.num_attention_heads):
                kv = head // group
                slot = gamma[t] * (q[t, head] @ k_z[kv] / d**0.5).exp()
                terms = (k[: t + 1, kv] @ q[t, head] / d**0.5).exp()
                mixed = slot * v_z[kv] + (terms[:, None] * v[: t + 1, kv]).sum(0)
                out.append(mixed / (slot + terms.sum()))
            rows.append(torch.cat(out))
        h = h + heads.o_proj(torch.stack(rows))
        norm = layer.post_attention_layernorm
        h = h + layer.mlp(normed(h, norm.weight, norm.variance_epsilon))
    h = normed(h, model.norm.weight, model.norm.variance_epsilon)
    logits: Tensor = h @ policy.model.lm_head.weight.t()
    return logits[:, : policy.vocab_size]


def slow_chances(
    policy: Policy, steering: Steering, z: Tensor, gamma: float, words: Sequence[str] = WORDS,
    question: str = example.QUESTION.text, prefix: str = example.PREFIX,
) -> dict[str, float]:  # fmt: skip
    encode = policy.tokenizer.encode
    c = [*policy.prompt_ids(question), *encode(prefix, add_special_tokens=False)]
    found = {}
    for word in words:
        rest = encode(word, add_special_tokens=False)
        strength = Strength(gamma, steering.strength.decay)
        logits = slow_logits(policy, [*c, *rest], len(c), steering.fusion, z, strength)
        shares = logits.softmax(-1)
        found[word] = math.prod(
            shares[len(c) - 1 + at, token].item() for at, token in enumerate(rest)
        )
    return found


def assert_same(got: Mapping[str, float], want: Mapping[str, float]) -> None:
    assert list(got) == list(want)
    for word, chance in want.items():
        # A word of five tokens is rare, so the ratio counts as well.
        assert abs(got[word] - chance) < 1e-6 and got[word] == pytest.approx(chance, rel=1e-5)


@pytest.mark.parametrize(("share", "gamma"), [(0.0, 1.0), (0.35, 0.6), (1.0, 0.05)])
def test_the_probabilities_are_those_of_a_slow_model(
    policy: Policy, steering: Steering, widget: LatentExplorer, share: float, gamma: float
) -> None:
    widget.share.value, widget.gamma.value = share, gamma
    given = some_latents()
    z = (1 - share) * given["Split"].mean(0) + share * given["Guess"].mean(0)
    assert torch.allclose(widget.z, z, atol=1e-12)
    assert_same(widget.with_z, slow_chances(policy, steering, z, gamma))
    assert_same(widget.without_z, slow_chances(policy, steering, z, 0.0))
    assert max(abs(widget.with_z[w] - widget.without_z[w]) for w in WORDS) > 1e-4


def test_question_prefix_and_words_may_be_others(policy: Policy, steering: Steering) -> None:
    texts: dict[str, Any] = {"question": "What is 23*14?", "prefix": "Split 14\n", "words": ["2"]}
    widget = LatentExplorer(policy, steering, some_latents(), **texts)
    assert_same(widget.with_z, slow_chances(policy, steering, widget.z, 1.0, **texts))


def test_without_strength_z_changes_no_bit(steering: Steering) -> None:
    # In float32 a slot of weight 0 moves the last bit: the numbers are equal if nothing is there.
    widget = LatentExplorer(tiny_policy(seed=1), steering, some_latents())
    widget.gamma.value = 0.0
    for share in (0.0, 0.5, 1.0):
        widget.share.value = share
        assert widget.with_z == widget.without_z
    widget.draw.click()
    assert widget.with_z == widget.without_z
    widget.gamma.value = 0.05
    assert widget.with_z != widget.without_z


def test_at_its_ends_the_slider_gives_the_named_latents(policy: Policy, steering: Steering) -> None:
    given = some_latents() | {"one": torch.arange(D_Z).double()}
    widget = LatentExplorer(policy, steering, given, between=("Guess", "one"))
    for share, name in ((0.0, "Guess"), (1.0, "one")):
        widget.share.value = share
        assert torch.equal(widget.z, given[name].reshape(-1, D_Z).mean(0))
    widget.first.value = "Split"
    widget.share.value = 0.0
    assert torch.equal(widget.z, given["Split"].mean(0))


def test_a_draw_is_the_priors_and_its_seed_gives_it_again(
    policy: Policy, steering: Steering, widget: LatentExplorer
) -> None:
    between = widget.z
    encode = policy.tokenizer.encode
    c = [*policy.prompt_ids(example.QUESTION.text), *encode(example.PREFIX)]
    prior = steering.prior(policy, [c])
    drawn = []
    for seed in range(3):
        widget.draw.click()
        assert (widget.source.value, widget.seed.value) == (PRIOR, seed)
        chance = torch.Generator().manual_seed(seed)
        noise = torch.empty(1, D_Z, dtype=torch.float64).normal_(generator=chance)[0]
        assert torch.allclose(widget.z, prior.mean[0] + prior.stddev[0] * noise, atol=1e-12)
        drawn.append((widget.z, widget.with_z, widget.describe()))
    assert not torch.equal(drawn[0][0], drawn[1][0])
    widget.seed.value = 1
    assert torch.equal(widget.z, drawn[1][0])
    assert (widget.with_z, widget.describe()) == drawn[1][1:]
    widget.source.value = BETWEEN
    assert torch.equal(widget.z, between)


# --- controls -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "value"),
    [("source", PRIOR), ("first", "Round"), ("second", "Round"), ("share", 0.2), ("gamma", 0.5)],
)
def test_each_control_changes_bars_map_and_words(
    widget: LatentExplorer, part: str, value: Any
) -> None:
    def shown() -> tuple[str, str, str]:
        return data(widget), str(json.loads(widget._map.figure.to_json())), widget.describe()

    before, control = shown(), getattr(widget, part)
    first = control.value
    control.value = value
    after = shown()
    assert after[0] != before[0] and after[2] != before[2]
    assert (after[1] != before[1]) == (part != "gamma"), "z stands elsewhere, but not for γ_0"
    bars: Any = widget.bars.outputs[0]
    assert bars["data"]["text/plain"] in widget.describe()
    assert widget.map.figure.data[-1].x == widget._map.figure.data[-1].x
    control.value = first
    assert shown() == before


def test_what_has_no_effect_is_disabled(widget: LatentExplorer) -> None:
    for source in (PRIOR, BETWEEN):
        widget.source.value = source
        between = widget.first, widget.second, widget.share
        assert {part.disabled for part in between} == {source == PRIOR}
        assert widget.seed.disabled == (source == BETWEEN) and not widget.gamma.disabled


def test_a_click_on_any_point_is_the_selector(widget: LatentExplorer) -> None:
    names = {f"{name} ({len(rows)})": name for name, rows in some_latents().items()}
    clicked = 0
    for at, drawn in enumerate(widget.map.figure.data):
        for point in range(len(drawn.x) if drawn.hoverinfo != "skip" else 0):
            widget.draw.click()  # the click has to leave the prior too
            click(widget.map.figure, at, point)
            by_click = widget.describe()
            assert (widget.source.value, widget.second.value) == (BETWEEN, names[drawn.name])
            widget.second.value = "Split" if widget.second.value == "Round" else "Round"
            assert widget.describe() != by_click
            widget.second.value = names[drawn.name]
            assert widget.describe() == by_click
            clicked += 1
    assert clicked == sum(map(len, some_latents().values()))
    at = next(i for i, d in enumerate(widget.map.figure.data) if d.name == "Round (1)")
    widget.second.value = "Guess"
    click(widget.map.figure, at, 0, shift=True)
    assert (widget.first.value, widget.second.value) == ("Round", "Guess")


def test_each_control_has_a_label_and_a_help_text(widget: LatentExplorer) -> None:
    controls = [
        part for part in everything(widget.panel)
        if isinstance(part, (ipywidgets.Button, ipywidgets.ValueWidget))
    ]  # fmt: skip
    assert len(controls) == 7
    assert all(part.description and part.tooltip for part in controls)


# --- words and figures --------------------------------------------------------------------------


def test_it_says_z_and_the_likeliest_words(
    policy: Policy, steering: Steering, widget: LatentExplorer
) -> None:
    widget.share.value = 0.25
    said = widget.describe()
    numbers = re.search(r"γ_0 = 1\.00, z = \(([^)]*)\)\.", said)
    assert numbers
    told = [float(x.replace("−", "-")) for x in numbers[1].split(", ")]
    assert told == pytest.approx(widget.z.tolist(), abs=0.0051)
    assert "The word at the fork, z = 0.75 Split + 0.25 Guess: " in said
    for name, chances in (("with z", widget.with_z), ("without z", widget.without_z)):
        word, most = sorted(chances.items(), key=lambda item: -item[1])[0]
        assert f"{name} '{word}' {most:.2f}" in said
    again = LatentExplorer(policy, steering, some_latents())
    again.share.value = 0.25
    assert again.describe() == said == repr(again)
    bundle = again._repr_mimebundle_()
    assert bundle["text/plain"] == said and "application/vnd.plotly.v1+json" in bundle
    assert "\n" not in said


def test_z_is_a_mark_of_its_own_on_axes_that_stay() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 3)) * [4, 2, 1] + 5
    labels = ["Split", "Guess", "other"] * 3
    here = np.array([1.0, -2.0, 3.0])
    plain, marked = latent_map(rows, labels), latent_map(rows, labels, here=here)
    *points, halo, mark = marked.figure.data
    assert [d.to_plotly_json() for d in points] == [d.to_plotly_json() for d in plain.figure.data]
    _, axes = np.linalg.eigh(np.cov(rows.T))  # another way to the same axes
    place = []
    for axis in axes[:, ::-1].T[:2]:
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        place.append(float((here - rows.mean(0)) @ axis))
    for drawn in (halo, mark):
        assert (drawn.x[0], drawn.y[0]) == pytest.approx(place)
        assert drawn.hoverinfo == "skip" and drawn.name == "z now"
    assert mark.showlegend is not False and halo.showlegend is False
    assert mark.marker.symbol not in {d.marker.symbol for d in points}
    x, y = (f"{value:+.2f}".replace("-", "−") for value in place)
    assert marked.describe() == plain.describe()[:-1] + f"; z now at ({x}, {y})."
    assert marked.table == (*plain.table, ("z now", "1", x, y))
    flat = latent_map([[0, 1], [2, 3]], ["a", "b"], here=[5, 6]).figure.data[-1]
    assert (flat.x, flat.y) == ((5.0,), (6.0,))


def test_the_bars_are_the_two_distributions() -> None:
    with_z, without_z = {"a": 0.2, "b": 0.5}, {"b": 0.0, "a": 1.0}
    view = next_word(with_z, without_z, title="Mine")
    assert view.describe() == (
        "Mine: likeliest with z 'b' 0.50, without z 'a' 1.00. With z and without: a 0.20, 1.00; "
        "b 0.50, 0.00; any other 0.30, 0.00."
    )
    assert view.table[1:] == (
        ("a", "0.200", "1.000"), ("b", "0.500", "0.000"), ("any other", "0.300", "0.000")
    )  # fmt: skip
    off, on = view.figure.data
    assert list(off.y) == [1.0, 0.0, 0.0] and list(on.y) == pytest.approx([0.2, 0.5, 0.3])
    assert on.marker.pattern.shape and not off.marker.pattern.shape
    assert view.figure.layout.xaxis.ticktext == ("a", "b", "any other")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_never_acts(
    policy: Policy, steering: Steering, text: str
) -> None:
    given = {text: torch.ones(D_Z), "Guess": torch.zeros(D_Z)}
    widget = LatentExplorer(policy, steering, given, words=[text, "Guess"])
    parts = everything(widget.panel)
    assert not any(isinstance(part, ipywidgets.HTML) for part in parts)
    assert not any(getattr(part, "description_allow_html", False) for part in parts)
    shown = [widget.describe(), *(label for label, _ in widget.second.options)]
    drawn = [view.figure.to_json() for view in (widget._view, widget._map)]
    assert any(text[:8] in said for said in shown)
    for said in drawn:
        assert "<img" not in said and "<script" not in said and "$\\" not in said
    assert not any(hidden in said for said in shown for hidden in "\0\u202e\n")


# --- what it refuses ----------------------------------------------------------------------------

LATENTS = some_latents()


@pytest.mark.parametrize(
    ("latents", "more", "message"),
    [
        ({}, {}, "at least two strategies, got 0"),
        ({"a": torch.ones(D_Z)}, {}, "at least two strategies, got 1"),
        (
            LATENTS,
            {"between": ("Split", "Grid")},
            "no latents of 'Grid'; choose from 'Split', 'Gue",
        ),
        (LATENTS | {"a": torch.ones(D_Z + 1)}, {}, r"'a' have the shape \(5,\).*needs \(n, 4\)"),
        (LATENTS | {"a": torch.ones(1, 1, D_Z)}, {}, "'a' have the shape"),
        (LATENTS | {"a": torch.tensor(1.0)}, {}, "'a' have the shape"),
        (LATENTS | {"a": torch.ones(0, D_Z)}, {}, "'a' have the shape"),
        (LATENTS | {"a": torch.full((D_Z,), math.nan)}, {}, "'a' must be finite"),
        ({"a": torch.ones(D_Z), "b": torch.ones(D_Z)}, {}, "All latents are equal"),
        ({f"{i}": torch.eye(8)[i, :D_Z] for i in range(8)}, {}, "can't be told apart"),
        (LATENTS, {"words": []}, "at least one word"),
        (LATENTS, {"words": ["Split", ""]}, "no empty one"),
        (LATENTS, {"words": ["Split", "Split 3"]}, "'Split 3' begins with 'Split'"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_shown(
    policy: Policy, steering: Steering, monkeypatch: pytest.MonkeyPatch,
    latents: dict[str, Tensor], more: dict[str, Any], message: str,
) -> None:  # fmt: skip
    shown: list[Any] = []
    for place in (Shown, Clickable):
        monkeypatch.setattr(place, "show", lambda *views: shown.append(views))
    with pytest.raises(ValueError, match=message):
        LatentExplorer(policy, steering, latents, **more)
    assert shown == []


@pytest.mark.parametrize("here", [[1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], [1.0, math.inf]])
def test_the_map_refuses_a_mark_it_cannot_place(here: Any) -> None:
    with pytest.raises(ValueError, match="needs 2 finite numbers"):
        latent_map([[0, 1], [1, 0]], "ab", here=here)


@pytest.mark.parametrize(
    ("with_z", "without_z", "message"),
    [
        ({}, {}, "same words"),
        ({"a": 0.5}, {"b": 0.5}, "same words"),
        ({"a": -0.1}, {"a": 0.5}, "with z must be from 0 up"),
        ({"a": 0.1}, {"a": math.nan}, "without z must be from 0 up"),
        ({"a": math.inf}, {"a": 0.1}, "with z must be from 0 up"),
        ({"a": 0.6, "b": 0.6}, {"a": 0.5, "b": 0.5}, "with z .* at most 1 in all"),
    ],
)
def test_the_bars_refuse_what_is_no_distribution(
    with_z: dict[str, float], without_z: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        next_word(with_z, without_z)
