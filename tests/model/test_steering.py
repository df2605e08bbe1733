"""Steering: embeddings of spans, latents of a prefix, files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from tiny import tiny_policy
from torch import Tensor

import i2b_lpo.model.steering
from i2b_lpo.method.psa import FUSIONS, Strength
from i2b_lpo.method.samplers import SAMPLERS
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.steering import (
    SETTINGS,
    WEIGHTS,
    Steering,
    embed,
    latest_version,
    load_steering,
    new_steering,
    save_steering,
)

POLICY = tiny_policy(dtype=torch.float64)
ROWS = ([3, 5, 7, 11, 13, 17, 19], [2, 4, 6], [9, 8, 7, 6, 5], [1])
SPANS = ((0, 7), (1, 3), (2, 4), (0, 1))
COMMAND = "i2b-lpo train-latents --policy"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steering_of(policy: Policy = POLICY, fusion: str = "psa", **changes: Any) -> Steering:
    torch.manual_seed(3)
    made = new_steering(policy, fusion=fusion, **{"d_z": 4} | changes)
    with torch.no_grad():  # bfloat16 values, which survive the file
        for part in (made.cvae, made.fusion):
            for parameter in part.parameters():
                parameter.copy_(parameter.bfloat16())
    made.cvae.standardise(embed(policy, ROWS, SPANS))
    return made


# --- embeddings -----------------------------------------------------------------------------------


@torch.no_grad()
def alone(row: list[int], span: tuple[int, int]) -> Tensor:
    """The definition: the row by itself, the model's last hidden states, their mean."""
    output = POLICY.model.get_decoder()(input_ids=torch.tensor([row]))
    states: Tensor = output.last_hidden_state[0]
    return states[span[0] : span[1]].sum(0) / (span[1] - span[0])


@pytest.mark.parametrize("tokens", [1, 8, 14, 16384])
def test_an_embedding_is_the_mean_of_a_span_of_the_row_alone(tokens: int) -> None:
    sizes: list[int] = []
    hook = POLICY.model.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    found = embed(POLICY, ROWS, SPANS, tokens=tokens)
    hook.remove()
    expected = torch.stack([alone(row, span) for row, span in zip(ROWS, SPANS, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    longest = max(map(len, ROWS))
    assert max(sizes) <= max(tokens, longest), "a pass is larger than its bound"
    assert (len(sizes) == 1) == (tokens >= 4 * longest)
    assert not found.requires_grad


@settings(max_examples=15)
@given(st.lists(st.lists(st.integers(0, 250), min_size=1, max_size=9), min_size=1, max_size=6))
def test_rows_come_back_in_their_order(rows: list[list[int]]) -> None:
    spans = [(len(row) // 2, len(row)) for row in rows]
    found = embed(POLICY, rows, spans, tokens=12)
    for row, span, got in zip(rows, spans, found, strict=True):
        torch.testing.assert_close(got, alone(row, span), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("rows", "spans", "message"),
    [
        ([], [], "at least one row, and a span for each"),
        ([[1, 2]], [], "at least one row, and a span for each"),
        ([[1, 2], [3]], [(0, 1)], "at least one row, and a span for each"),
        ([[1, 2], [3, 4]], [(0, 2), (1, 1)], r"Row 1 has 2 tokens, of which 1\.\.1 is no span"),
        ([[1, 2], [3, 4, 5]], [(0, 3), (0, 3)], r"Row 0 has 2 tokens, of which 0\.\.3 is no span"),
        ([[1, 2]], [(-1, 2)], r"-1\.\.2 is no span"),
        ([[]], [(0, 0)], "Row 0 has 0 tokens"),
    ],
)
def test_spans_that_arent_there_are_refused(
    rows: list[list[int]], spans: list[tuple[int, int]], message: str
) -> None:
    # A span beyond its row would take padding into the mean, in silence.
    with pytest.raises(ValueError, match=message):
        embed(POLICY, rows, spans)


# --- latents --------------------------------------------------------------------------------------


def test_the_prior_sees_the_prefix_and_the_posterior_the_continuation_too() -> None:
    steering = steering_of()
    prefixes, rest = [ROWS[0], ROWS[1]], [ROWS[2], ROWS[3]]
    prior = steering.prior(POLICY, prefixes)
    posterior = steering.posterior(POLICY, prefixes, rest)
    before = torch.stack([alone(c, (0, len(c))) for c in prefixes])
    after = torch.stack(
        [alone([*c, *o], (len(c), len(c) + len(o))) for c, o in zip(prefixes, rest, strict=True)]
    )
    with torch.no_grad():
        wanted = steering.cvae.prior(before), steering.cvae.posterior(before, after)
    for got, want in zip((prior, posterior), wanted, strict=True):
        assert got.mean.shape == (2, 4)
        assert not got.mean.requires_grad
        torch.testing.assert_close(got.mean, want.mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(got.stddev, want.stddev, rtol=0, atol=1e-5)
    assert (prior.mean - posterior.mean).abs().max() > 1e-3
    other = steering.posterior(POLICY, prefixes, rest[::-1])
    assert (other.mean - posterior.mean).abs().max() > 1e-4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_are_the_samplers_at_each_prefix(sampler: str) -> None:
    steering, prefixes = steering_of(), [ROWS[0], ROWS[1]]
    z = steering.draw(POLICY, prefixes, 3, sampler=sampler, generator=seeded(5))
    expected = SAMPLERS[sampler](steering.prior(POLICY, prefixes), 3, seeded(5))
    assert z.shape == (2, 3, 4)
    assert torch.equal(z, expected)
    assert not torch.equal(
        z, steering.draw(POLICY, prefixes, 3, sampler=sampler, generator=seeded())
    )


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown sampler 'far'; choose one of independent"):
        steering_of().draw(POLICY, [ROWS[0]], 2, sampler="far", generator=seeded())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_injection_is_the_fusion_at_the_trained_strength(fusion: str) -> None:
    strength = Strength(0.4, 3.0)
    steering = steering_of(fusion=fusion, strength=strength)
    z = torch.randn(2, 4, generator=seeded())
    injection = steering.injection(z)
    assert injection.strength is strength
    injection.check_rows(2)
    assert type(steering.fusion) is FUSIONS[fusion]


def test_new_steering() -> None:
    made = new_steering(POLICY, d_z=7)
    assert (made.policy, made.fusion_name, made.strength) == (POLICY.name, "psa", Strength())
    assert (made.cvae.embedding, made.cvae.d_z, made.card) == (32, 7, {})
    with pytest.raises(ValueError, match="Unknown fusion 'other'; choose one of psa, input"):
        new_steering(POLICY, d_z=7, fusion="other")
    with pytest.raises(ValueError, match="d_z is 0; a latent needs at least 1"):
        new_steering(POLICY, d_z=0)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
def test_steering_survives_the_folder(fusion: str, tmp_path: Path) -> None:
    card = {"objective": "steer", "kl": 1.25, "seeds": [1, 2], "é": None}
    saved = replace(
        steering_of(fusion=fusion, strength=Strength(0.7, None)), card=card, policy="someone's"
    )
    folder = tmp_path / "a" / "latents"
    save_steering(saved, folder)
    assert {path.name for path in folder.iterdir()} == {SETTINGS, WEIGHTS, "sha256.json"}
    loaded = load_steering(POLICY, folder)
    assert (loaded.policy, loaded.fusion_name) == ("someone's", fusion)
    assert loaded.strength == saved.strength
    assert loaded.card == card
    for name in ("cvae", "fusion"):
        got, want = getattr(loaded, name).state_dict(), getattr(saved, name).state_dict()
        assert got.keys() == want.keys()
        for key in want:
            assert got[key].dtype == torch.float32
            assert torch.equal(got[key], want[key]), f"{name}.{key}"
        assert not any(p.requires_grad for p in getattr(loaded, name).parameters())
        assert not getattr(loaded, name).training
    one, two = (
        s.draw(POLICY, [ROWS[0]], 3, sampler="spread", generator=seeded()) for s in (saved, loaded)
    )
    assert torch.equal(one, two)


def test_the_version_survives_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert steering_of().version == 1
    save_steering(replace(steering_of(), version=4), tmp_path / "four")
    assert load_steering(POLICY, tmp_path / "four").version == 4
    save_steering(steering_of(), tmp_path / "old")
    rewrite(tmp_path / "old", version=...)
    (tmp_path / "old" / "sha256.json").unlink()
    assert load_steering(POLICY, tmp_path / "old").version == 1, "a first training"
    monkeypatch.chdir(tmp_path)
    assert latest_version(POLICY) == 0
    save_steering(replace(steering_of(), version=2), f"{POLICY.name}-latents")
    assert latest_version(POLICY) == 2
    assert latest_version(replace(POLICY, name="tiny-base")) == 1


def test_weights_can_be_stored_as_they_are(tmp_path: Path) -> None:
    steering = new_steering(POLICY, d_z=4)
    save_steering(steering, tmp_path, dtype=torch.float32)
    loaded = load_steering(POLICY, tmp_path)
    for part in ("cvae", "fusion"):
        want, got = (dict(getattr(s, part).named_parameters()) for s in (steering, loaded))
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_weights_are_bfloat16_and_the_embeddings_scale_is_exact(tmp_path: Path) -> None:
    steering = steering_of()
    save_steering(steering, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    exact = {"cvae.centre", "cvae.scale"}
    assert {key for key, t in tensors.items() if t.dtype != torch.bfloat16} == exact
    assert torch.equal(tensors["cvae.scale"], steering.cvae.scale)
    assert {"fusion.U_k", "fusion.U_v", "fusion.U_n"} <= tensors.keys()


def test_the_folder_of_a_policy_is_named_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    policy = replace(POLICY, name="Qwen/Qwen3-0.6B")
    save_steering(steering_of(), "Qwen--Qwen3-0.6B-latents")
    assert load_steering(policy).cvae.d_z == 4


def test_latents_are_checked_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[tuple[Path, bool]] = []

    def check(folder: Path, *, bundled: bool = False) -> None:
        checked.append((folder, bundled))

    monkeypatch.setattr(i2b_lpo.model.steering, "asset_path", lambda name: tmp_path / name)
    monkeypatch.setattr(i2b_lpo.model.steering, "check_sums", check)
    folder = tmp_path / "tiny-base-latents"
    save_steering(steering_of(), folder)
    assert load_steering(replace(POLICY, name="tiny-base")).fusion_name == "psa"
    assert checked == [(folder, True)]
    load_steering(replace(POLICY, name="tiny-base"), folder)  # a folder of one's own
    assert checked == [(folder, True), (folder, False)]


def test_missing_latents_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There are no latents for tiny qwen3") as caught:
        load_steering(POLICY, tmp_path / "nothing")
    assert str(caught.value).endswith(
        f"make them with: {COMMAND} 'tiny qwen3' --output {tmp_path / 'nothing'}"
    )


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / SETTINGS
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in data.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")


def cut(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def without(folder: Path, *keys: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({k: t.clone() for k, t in tensors.items() if k not in keys}, folder / WEIGHTS)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / SETTINGS).write_text("{"),
        lambda folder: (folder / SETTINGS).write_text("[1]"),
        lambda folder: (folder / WEIGHTS).unlink(),
        cut,
        lambda folder: without(folder, "fusion.U_n"),
        lambda folder: without(folder, "cvae.centre"),
        lambda folder: rewrite(folder, fusion="other"),
        lambda folder: rewrite(folder, fusion="input"),
        lambda folder: rewrite(folder, fusion=...),
        lambda folder: rewrite(folder, d_z=5),
        lambda folder: rewrite(folder, d_z="4"),
        lambda folder: rewrite(folder, width=...),
        lambda folder: rewrite(folder, strength={"gamma": 7}),
        lambda folder: rewrite(folder, strength={"unknown": 1}),
        lambda folder: rewrite(folder, strength=...),
        lambda folder: rewrite(folder, card=...),
        lambda folder: rewrite(folder, policy=...),
        lambda folder: rewrite(folder, version=0),
        lambda folder: rewrite(folder, version="2"),
        lambda folder: rewrite(folder, version=True),
    ],
)
@pytest.mark.parametrize("summed", [True, False])
def test_damaged_latents_are_refused_in_one_line(
    damage: Callable[[Path], object], summed: bool, tmp_path: Path
) -> None:
    save_steering(steering_of(), tmp_path)
    load_steering(POLICY, tmp_path)
    damage(tmp_path)
    if not summed:
        (tmp_path / "sha256.json").unlink()
    with pytest.raises(ValueError, match="don't fit tiny qwen3 or are damaged") as caught:
        load_steering(POLICY, tmp_path)
    assert "\n" not in str(caught.value)
    assert f"make them again with: {COMMAND} 'tiny qwen3'" in str(caught.value)


@pytest.mark.parametrize(
    ("fusion", "changes"),
    [
        ("psa", {"num_hidden_layers": 3}),
        ("psa", {"hidden_size": 40}),
        ("input", {"hidden_size": 40}),
        ("softmax", {"vocab_size": 400}),
        ("residual", {"num_hidden_layers": 3}),
    ],
)
def test_latents_of_a_policy_of_other_sizes_are_refused(
    fusion: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    save_steering(steering_of(fusion=fusion), tmp_path)
    with pytest.raises(ValueError, match="don't fit"):
        load_steering(tiny_policy(**changes), tmp_path)
