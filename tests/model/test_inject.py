"""What METHOD §4 says of z inside a model, one fact a test, against slow loops and the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tiny import tiny_policy
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from i2b_lpo.method.psa import FUSIONS, Injection, Shape, Strength, attend_with_slot, slot_gate
from i2b_lpo.model.cache import KeyValues, gather
from i2b_lpo.model.decoding import Prefix, decode_branches
from i2b_lpo.model.inject import MASKED, check_injectable, injected, shape_of, slot_mask
from i2b_lpo.model.logprobs import policy_logprobs
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.sampling import Sampling

D_Z = 5
NEVER = (10**6,)  # an end token that no policy can draw
KINDS = ("qwen3", "qwen2")
SETTLED = Strength(0.8, 3.0)
GREEDY = Sampling(6, temperature=0)
# Three rows: prompt and answer together, and the number p of tokens before the fork.
LENGTHS, FORKS = (9, 14, 6), (4, 9, 1)
kinds = pytest.mark.parametrize("kind", KINDS)
fusions = pytest.mark.parametrize("name", FUSIONS)


def policy_of(kind: str = "qwen3", dtype: torch.dtype = torch.float64, **changes: Any) -> Policy:
    """A tiny policy of 3 layers that never ends, with norm weights that aren't all 1."""
    policy = tiny_policy(kind, dtype=dtype, **{"num_hidden_layers": 3} | changes)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.4 * torch.randn(parameter.shape))
    return replace(policy, eos_ids=NEVER)


def fusion_of(policy: Policy, name: str, loud: float = 8.0) -> Any:
    """A fusion whose every projection has something to say."""
    torch.manual_seed(6)
    fusion = FUSIONS[name](shape_of(policy.model), D_Z)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.mul_(loud)
    return fusion.to(policy.model.dtype)


def latents(policy: Policy, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(rows, D_Z, generator=generator, dtype=torch.float64).to(policy.model.dtype)


def sequences(policy: Policy, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randint(policy.vocab_size, (n,), generator=generator).tolist() for n in lengths]


def batch(
    policy: Policy, rows: Sequence[Sequence[int]], forks: Sequence[int], side: str = "right"
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and s of padded rows; s = 0 at token p − 1, which predicts a branch's first."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), policy.pad_id)
    mask, since = torch.zeros_like(ids), torch.full(ids.shape, -99)
    for at, (row, p) in enumerate(zip(rows, forks, strict=True)):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[at, place] = torch.tensor(row)
        mask[at, place] = 1
        since[at, place] = torch.arange(len(row)) - (p - 1)
    return ids, mask, since


def scores(
    policy: Policy,
    rows: Sequence[Sequence[int]],
    forks: Sequence[int],
    injection: Injection | None,
    *,
    side: str = "right",
    temperature: float = 1.0,
    **extra: Any,
) -> list[Tensor]:
    """Log-prob and entropy of every token but the first, (2, T − 1) for each row."""
    ids, mask, since = batch(policy, rows, forks, side)
    new = mask.clone()
    new[torch.arange(len(rows)), mask.argmax(1)] = 0
    outputs = torch.stack(
        policy_logprobs(
            policy.model, ids, mask, new, temperature=temperature, vocab_size=policy.vocab_size,
            injection=injection, since=None if injection is None else since, **extra,
        )
    )  # fmt: skip
    return [outputs[:, at][:, new[at].bool()] for at in range(len(rows))]


@torch.no_grad()
def plain_logits(policy: Policy) -> Tensor:
    ids, mask, _ = batch(policy, sequences(policy), FORKS)
    logits: Tensor = policy.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits


def assert_close(got: Tensor, want: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


# --- without z the model is what it was -----------------------------------------------------------


def state(model: Any) -> dict[str, Any]:
    """Everything that a block could leave behind, module by module."""
    found = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            inner = dict(value) if isinstance(value, dict) else value
            found[f"{name}.{key}"] = inner if not isinstance(value, torch.Tensor) else id(value)
        found[f"{name}()"] = getattr(module.forward, "__func__", module.forward)
    return found


@kinds
@fusions
@pytest.mark.parametrize("raising", [False, True])
def test_after_the_block_the_model_is_bit_for_bit_as_before(
    kind: str, name: str, raising: bool
) -> None:
    policy = policy_of(kind, torch.float32)
    injection = fusion_of(policy, name)(latents(policy, 3), SETTLED)
    before, logits = state(policy.model), plain_logits(policy)
    log_gamma = SETTLED.log_gamma(torch.zeros(3, 14))
    try:
        with injected(policy.model, injection, log_gamma):
            inside = state(policy.model)
            if raising:
                raise KeyError("in the block")
    except KeyError:
        assert raising
    assert (inside != before) == (name != "softmax"), "nothing was put into the model"
    assert state(policy.model) == before
    assert torch.equal(plain_logits(policy), logits)


@fusions
def test_scoring_and_decoding_leave_nothing_behind_even_when_they_fail(name: str) -> None:
    policy = policy_of()
    rows, z = sequences(policy), latents(policy, 3)
    injection = fusion_of(policy, name)(z, SETTLED)
    before = state(policy.model)
    scores(policy, rows, FORKS, injection)
    branch(policy, rows, FORKS, injection)
    assert state(policy.model) == before

    def fail(*_: Any) -> None:
        raise ArithmeticError("in the last layer")

    hook = policy.model.model.layers[-1].register_forward_pre_hook(fail)
    before = state(policy.model)
    with pytest.raises(ArithmeticError):
        scores(policy, rows, FORKS, injection)
    with pytest.raises(ArithmeticError):
        branch(policy, rows, FORKS, injection, kv=[read_of(policy_of(), row) for row in rows])
    assert state(policy.model) == before
    hook.remove()


def test_no_latent_changes_no_bit() -> None:
    policy = policy_of(dtype=torch.float32)
    logits, before = plain_logits(policy), state(policy.model)
    with injected(policy.model, None, torch.empty(0)):
        assert state(policy.model) == before
        assert torch.equal(plain_logits(policy), logits)
    rows = sequences(policy)
    one, other = (scores(policy, rows, forks, None) for forks in (FORKS, (1,) * 3))
    assert all(map(torch.equal, one, other))


def test_blocks_can_be_nested() -> None:
    policy = policy_of()
    rows = sequences(policy)
    fusion = fusion_of(policy, "psa")
    outer, inner = (fusion(latents(policy, 3) * f, SETTLED) for f in (1.0, -1.0))
    expected = scores(policy, rows, FORKS, outer)
    before = state(policy.model)
    ids, mask, since = batch(policy, rows, FORKS)
    log_gamma = SETTLED.log_gamma(since, torch.float64)
    with injected(policy.model, outer, log_gamma):
        with injected(policy.model, inner, log_gamma):
            pass
        hidden = policy.model.get_decoder()(
            input_ids=ids, attention_mask=slot_mask(mask, log_gamma, torch.float64), use_cache=False
        ).last_hidden_state
    assert state(policy.model) == before
    logits = policy.model.lm_head(hidden)[:, :, : policy.vocab_size].log_softmax(-1)
    for at, row in enumerate(rows):
        chosen = logits[at, torch.arange(len(row) - 1), row[1:]]
        assert_close(chosen, expected[at][0], 1e-12)


# --- strength -------------------------------------------------------------------------------------


@kinds
@fusions
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("decay", [None, 2.0])
def test_gamma_zero_through_the_active_path_is_the_base(
    kind: str, name: str, dtype: torch.dtype, tolerance: float, decay: float | None
) -> None:
    policy = policy_of(kind, dtype)
    rows = sequences(policy)
    injection = fusion_of(policy, name)(latents(policy, 3), Strength(0.0, decay))
    for got, want in zip(
        scores(policy, rows, FORKS, injection), scores(policy, rows, FORKS, None), strict=True
    ):
        assert_close(got, want, tolerance)
    decoded = [branch(policy, rows, FORKS, i) for i in (injection, None)]
    assert decoded[0].ids.tolist() == decoded[1].ids.tolist()
    assert_close(decoded[0].logprob, decoded[1].logprob, tolerance)
    assert_close(decoded[0].entropy, decoded[1].entropy, tolerance)


@kinds
@fusions
def test_z_acts_from_the_row_of_the_fork_on_and_on_no_earlier_row(kind: str, name: str) -> None:
    policy = policy_of(kind)
    rows = sequences(policy)
    fusion = fusion_of(policy, name)
    base = scores(policy, rows, FORKS, None)
    found = scores(policy, rows, FORKS, fusion(latents(policy, 3), SETTLED))
    other = scores(policy, rows, FORKS, fusion(2 * latents(policy, 3), SETTLED))
    for at, p in enumerate(FORKS):
        # Entry t is the prediction of token t + 1: the row of token p − 1 predicts token p.
        assert_close(found[at][:, : p - 1], base[at][:, : p - 1], 1e-12)
        changed = (found[at] - base[at]).abs()[:, p - 1 :]
        assert changed[:, 0].min() > 1e-3, "the first token of the branch was decided without z"
        assert changed.amax(0).min() > 1e-6
        assert (other[at] - found[at]).abs()[:, p - 1].min() > 1e-3


@kinds
@fusions
def test_far_from_the_fork_the_base_returns(kind: str, name: str) -> None:
    policy = policy_of(kind)
    rows = sequences(policy)
    base = scores(policy, rows, FORKS, None)
    injection = fusion_of(policy, name)(latents(policy, 3), Strength(1.0, 2.0))
    away = tuple(p - 100 for p in FORKS)  # every row is 100 tokens = 50 s_0 further on
    for got, want in zip(scores(policy, rows, away, injection), base, strict=True):
        assert_close(got, want, 1e-12)
    near = replace(injection, strength=Strength(1.0, None))
    for got, want in zip(scores(policy, rows, away, near), base, strict=True):
        assert (got - want).abs().max() > 1e-2, "a constant strength doesn't decay"


@kinds
@fusions
@torch.no_grad()
def test_a_small_effect_is_proportional_to_gamma(kind: str, name: str) -> None:
    policy = policy_of(kind, initializer_range=0.1)
    rows = sequences(policy)
    injection = fusion_of(policy, name, loud=2.0)(latents(policy, 3), SETTLED)
    base = scores(policy, rows, FORKS, None)
    effects = []
    for gamma in (1e-3, 1e-4):
        found = scores(policy, rows, FORKS, replace(injection, strength=Strength(gamma, None)))
        effects.append(max(float((f - b).abs().max()) for f, b in zip(found, base, strict=True)))
    # The norm's float32 blurs the smaller effect by 1e-7.
    assert effects[0] / effects[1] == pytest.approx(10, rel=0.05)


# --- rows of a batch ------------------------------------------------------------------------------


@kinds
@fusions
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_has_its_own_z_and_fork_and_equals_the_row_alone(
    kind: str, name: str, side: str
) -> None:
    policy = policy_of(kind)
    rows, z, fusion = sequences(policy), latents(policy, 3), fusion_of(policy, name)
    together = scores(policy, rows, FORKS, fusion(z, SETTLED), side=side)
    for at, (row, p) in enumerate(zip(rows, FORKS, strict=True)):
        (alone,) = scores(policy, [row], [p], fusion(z[at : at + 1], SETTLED))
        assert_close(together[at], alone, 1e-12)
        (swapped,) = scores(policy, [row], [p], fusion(z[at - 1][None], SETTLED))
        assert (swapped - alone).abs().max() > 1e-3


def test_eager_attention_gives_the_same() -> None:
    found = []
    for kind in ("sdpa", "eager"):
        policy = policy_of(attn_implementation=kind)
        assert policy.model.config._attn_implementation == kind
        injection = fusion_of(policy, "psa")(latents(policy, 3), SETTLED)
        found.append(scores(policy, sequences(policy), FORKS, injection, side="left"))
    for got, want in zip(*found, strict=True):
        # Eager attention takes its softmax in float32, whose steps grow with the number.
        assert_close(got, want, 1e-6 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize("name", ["psa", "input"])
def test_under_autocast_z_acts_as_in_full_precision(name: str) -> None:
    policy = policy_of(dtype=torch.float32, initializer_range=0.1)
    rows = sequences(policy)
    injection = fusion_of(policy, name)(latents(policy, 3), SETTLED)
    base, full = (scores(policy, rows, FORKS, i) for i in (None, injection))
    with torch.autocast("cpu", torch.bfloat16):
        half = scores(policy, rows, FORKS, injection)
    for b, f, h in zip(base, full, half, strict=True):
        assert (h - f).abs().mean() < 0.2 * (b - f).abs().mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_policies_take_z(dtype: torch.dtype) -> None:
    found = []
    for d in (dtype, torch.float32):
        policy = policy_of(dtype=d, initializer_range=0.1)
        injection = fusion_of(policy, "psa", loud=2.0)(latents(policy, 3), SETTLED)
        found.append(scores(policy, sequences(policy), FORKS, injection, side="left"))
        assert branch(policy, sequences(policy), FORKS, injection).logprob.isfinite().all()
    for half, full in zip(*found, strict=True):
        assert (half - full).abs().mean() < 0.05


# --- decoding and teacher forcing -----------------------------------------------------------------


@torch.no_grad()
def read_of(policy: Policy, row: Sequence[int]) -> KeyValues:
    """Keys and values of a row, by the model's own cache and without z."""
    layers = policy.model(input_ids=torch.tensor([row]), use_cache=True).past_key_values.layers
    return KeyValues(
        torch.stack([layer.keys[0] for layer in layers]),
        torch.stack([layer.values[0] for layer in layers]),
    )


def branch(
    policy: Policy,
    rows: Sequence[Sequence[int]],
    forks: Sequence[int],
    injection: Injection | None,
    *,
    sampling: Sampling = GREEDY,
    branches: int = 1,
    limits: Sequence[int] | None = None,
    kv: Sequence[KeyValues] | None = None,
) -> Any:
    kv = kv or [read_of(policy, row) for row in rows]
    prefixes = [Prefix(tuple(row[:p]), r) for row, p, r in zip(rows, forks, kv, strict=True)]
    return decode_branches(
        policy, prefixes, limits or [99] * len(rows), sampling, branches=branches,
        injection=injection, generator=torch.Generator().manual_seed(9),
    )  # fmt: skip


@kinds
@fusions
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("strength", [SETTLED, Strength(0.5, None)], ids=["decay", "constant"])
def test_decoding_measures_what_a_teacher_forced_pass_measures(
    kind: str, name: str, dtype: torch.dtype, tolerance: float, strength: Strength
) -> None:
    policy = policy_of(kind, dtype)
    rows, samples, temperature = sequences(policy), 2, 0.7
    z = latents(policy, len(rows) * samples)
    injection = fusion_of(policy, name)(z, strength)
    # Rows end at different steps, so that the batch shrinks and z must follow its rows.
    decoded = branch(
        policy, rows, FORKS, injection,
        sampling=Sampling(12, temperature), branches=samples, limits=[9, 4, 12],
    )  # fmt: skip
    assert decoded.lengths.tolist() == [9, 9, 4, 4, 12, 12]
    whole = [
        rows[at // samples][: FORKS[at // samples]] + ids[:n]
        for at, (ids, n) in enumerate(
            zip(decoded.ids.tolist(), decoded.lengths.tolist(), strict=True)
        )
    ]
    forks = [p for p in FORKS for _ in range(samples)]
    warm, raw, base = (
        scores(policy, whole, forks, i, temperature=t)
        for i, t in ((injection, temperature), (injection, 1.0), (None, 1.0))
    )
    for at, p in enumerate(forks):
        new = slice(p - 1, None)
        length = len(whole[at]) - p
        assert_close(decoded.logprob[at, :length], warm[at][0, new], tolerance)
        assert_close(decoded.entropy[at, :length], warm[at][1, new], tolerance)
        assert_close(decoded.logprob_t1[at, :length], raw[at][0, new], tolerance)
        assert (decoded.logprob_t1[at, 0] - base[at][0, p - 1]).abs() > 1e-3
    assert len({tuple(row) for row in decoded.ids.tolist()}) == len(whole)


@torch.no_grad()
def token_by_token(
    policy: Policy, row: Sequence[int], p: int, z: Injection, gamma: float, decay: float
) -> list[float]:
    """Log π of a row's tokens from its third on: each read by itself, γ(s) a number of Python's."""
    model, found = policy.model, []
    layers, cache = model.get_decoder().layers, DynamicCache()
    kept: list[Any] = cache.layers
    model(input_ids=torch.tensor([row[:1]]), past_key_values=cache)
    if z.keys is not None and z.values is not None:
        for at, layer in enumerate(kept):
            layer.keys = torch.cat([z.keys[at][:, :, None].double(), layer.keys], 2)
            layer.values = torch.cat([z.values[at][:, :, None].double(), layer.values], 2)
    for t in range(1, len(row) - 1):
        s = t - (p - 1)
        g = gamma * math.exp(-s / decay) if s >= 0 else 0.0
        mask = torch.zeros(1, 1, 1, t + 1 + (z.keys is not None), dtype=torch.float64)
        if z.keys is not None:
            mask[..., 0] = math.log(g) if g else MASKED
        state = model.get_input_embeddings()(torch.tensor([[row[t]]]))
        if z.embedding is not None:
            state = state + g * z.embedding.double()
        with ExitStack() as stack:
            for at, layer in enumerate(layers):
                if z.norms is not None:
                    own = layer.input_layernorm.weight.clone()
                    layer.input_layernorm.weight += g * z.norms[at, 0].double()
                    stack.callback(layer.input_layernorm.weight.copy_, own)
                if z.residual is not None and at >= len(layers) - len(z.residual):
                    shift = g * z.residual[at - len(layers), 0].double()
                    hook = layer.register_forward_hook(lambda _m, _a, out, shift=shift: out + shift)
                    stack.callback(hook.remove)
            logits = model(
                inputs_embeds=state, attention_mask=mask, position_ids=torch.tensor([[t]]),
                past_key_values=cache,
            ).logits[0, -1]  # fmt: skip
        if z.logits is not None:
            logits = logits + g * (z.logits[1].double() @ z.logits[0][0].double())
        found.append(float(logits[: policy.vocab_size].log_softmax(-1)[row[t + 1]]))
    return found


@kinds
@fusions
def test_gamma_is_as_exact_as_the_policy(kind: str, name: str) -> None:
    """Latents are loaded in float32 whatever the policy's type; γ(s) itself isn't rounded to it."""
    policy, gamma, decay = policy_of(kind), 0.7, 3.3
    row, p = sequences(policy)[1], FORKS[1]
    injection = fusion_of(policy, name).float()(latents(policy, 1).float(), Strength(gamma, decay))
    (forced,) = scores(policy, [row], [p], injection)
    exact = token_by_token(policy, row, p, injection, gamma, decay)
    assert forced[0, 1:].tolist() == pytest.approx(exact, abs=1e-12)
    decoded = branch(policy, [row], [p], injection)
    whole = row[:p] + decoded.ids[0].tolist()
    exact = token_by_token(policy, whole, p, injection, gamma, decay)[p - 2 :]
    assert decoded.logprob[0].tolist() == pytest.approx(exact, abs=1e-12)


@kinds
@torch.no_grad()
def test_with_the_slot_in_the_cache_and_without_a_cache_agree(kind: str) -> None:
    # Any split of the branch's tokens into passes, not only one token at a time.
    policy = policy_of(kind)
    rows = sequences(policy, (9, 11, 6))
    forks, more = (4, 6, 1), 5  # all have 5 tokens after the prefix's last
    injection = fusion_of(policy, "psa")(latents(policy, 3), SETTLED)
    expected = scores(policy, rows, forks, injection)
    cache, mask = gather(
        [read_of(policy, row).crop(p - 1) for row, p in zip(rows, forks, strict=True)], 1, injection
    )
    at = 0
    for width in (1, 3, 2):
        ids = torch.tensor(
            [row[p - 1 :][at : at + width] for row, p in zip(rows, forks, strict=True)]
        )
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        log_gamma = SETTLED.log_gamma(torch.arange(at, at + width).expand(3, -1), torch.float64)
        with injected(policy.model, injection, log_gamma, slot_in_cache=True):
            logits = policy.model(
                input_ids=ids,
                attention_mask=slot_mask(mask, log_gamma, torch.float64),
                position_ids=torch.tensor([[p - 1 + at] for p in forks]) + torch.arange(width),
                past_key_values=cache,
                use_cache=True,
            ).logits[:, :, : policy.vocab_size]
        for i, (row, p) in enumerate(zip(rows, forks, strict=True)):
            for j in range(width):
                if at + j < more:
                    token = row[p + at + j]
                    got = logits[i, j].log_softmax(-1)[token]
                    assert_close(got, expected[i][0, p - 1 + at + j], 1e-12)
        at += width


# --- the formulas, seen from inside the model -----------------------------------------------------


def watched(policy: Policy, injection: Injection | None) -> list[dict[str, Any]]:
    """What goes in and out of the parts of each layer, for one padded batch."""
    seen: list[dict[str, Any]] = [{} for _ in policy.model.model.layers]
    hooks = []
    for found, layer in zip(seen, policy.model.model.layers, strict=True):

        def keep(
            name: str, found: dict[str, Any] = found, take: Any = lambda output: output
        ) -> Any:
            def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
                found[name] = args, kwargs, take(output)

            return hook

        parts = {
            "norm": layer.input_layernorm,
            "later norm": layer.post_attention_layernorm,
            "attention": layer.self_attn,
            "layer": layer,
        }
        for name, part in parts.items():
            take = (lambda output: output[0]) if name == "attention" else (lambda output: output)
            hooks.append(part.register_forward_hook(keep(name, take=take), with_kwargs=True))
    decoder = policy.model.get_decoder()

    def last(_: Any, args: Any) -> None:
        seen[-1]["after"] = args[0]

    hooks.append(decoder.norm.register_forward_pre_hook(last))
    ids, mask, since = batch(policy, sequences(policy), FORKS)
    new = mask.clone()
    new[:, 0] = 0
    with torch.no_grad():
        policy_logprobs(
            policy.model, ids, mask, new, temperature=1.0, vocab_size=policy.vocab_size,
            injection=injection, since=since.double(),
        )  # fmt: skip
    for hook in hooks:
        hook.remove()
    for at, found in enumerate(seen[1:]):
        seen[at]["after"] = found["layer"][0][0]
    return seen


def gammas(strength: Strength) -> list[list[float]]:
    """γ(s) of every row, in Python floats; 0 before the fork."""
    assert strength.decay is not None
    return [
        [
            strength.gamma * math.exp(-(t - p + 1) / strength.decay) if t >= p - 1 else 0.0
            for t in range(max(LENGTHS))
        ]
        for p in FORKS
    ]


def loop_attention(
    query: list[float], keys: list[list[float]], values: list[list[float]], slot: Any, gamma: float
) -> list[float]:
    key_z, value_z = slot
    scale = 1 / math.sqrt(len(query))
    weights = [
        math.exp(scale * math.fsum(a * b for a, b in zip(query, key, strict=True))) for key in keys
    ]
    weights.append(
        gamma * math.exp(scale * math.fsum(a * b for a, b in zip(query, key_z, strict=True)))
    )
    rows = [*values, value_z]
    return [
        math.fsum(w * v[i] for w, v in zip(weights, rows, strict=True)) / math.fsum(weights)
        for i in range(len(query))
    ]


@kinds
def test_every_attention_layer_is_a_softmax_over_the_slot_and_the_tokens(kind: str) -> None:
    policy = policy_of(kind)
    z = latents(policy, 3)
    fusion = fusion_of(policy, "psa")
    size, groups = 8, 2  # per head, and query heads to a KV head
    for layer, found, u_k, u_v in zip(
        policy.model.model.layers, watched(policy, fusion(z, SETTLED)), fusion.U_k, fusion.U_v,
        strict=True,
    ):  # fmt: skip
        attention = layer.self_attn
        _, given, output = found["attention"]
        hidden = given["hidden_states"]
        shape = (*hidden.shape[:2], -1, size)
        query, keys, values = (
            part(hidden).view(shape)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if kind == "qwen3":
            query, keys = attention.q_norm(query), attention.k_norm(keys)
        query, keys, values = (t.transpose(1, 2) for t in (query, keys, values))
        query, keys = apply_rotary_pos_emb(query, keys, *given["position_embeddings"])
        mixed = torch.zeros(*hidden.shape[:2], 4, size, dtype=torch.float64)
        for row, length in enumerate(LENGTHS):
            for head in range(4):
                own = slice(head // groups * size, (head // groups + 1) * size)
                k, v = keys[row, head // groups], values[row, head // groups]
                k_z, v_z = u_k[own] @ z[row], u_v[own] @ z[row]
                for t in range(length):
                    gamma = gammas(SETTLED)[row][t]
                    slow = loop_attention(
                        query[row, head, t].tolist(), k[: t + 1].tolist(), v[: t + 1].tolist(),
                        (k_z.tolist(), v_z.tolist()), gamma,
                    )  # fmt: skip
                    mixed[row, t, head] = torch.tensor(slow, dtype=torch.float64)
                    log_gamma = torch.tensor(gamma, dtype=torch.float64).log()
                    q, seen = query[row, head, t], (k[: t + 1], v[: t + 1])
                    written = attend_with_slot(q, *seen, k_z, v_z, log_gamma)
                    assert_close(written, mixed[row, t, head], 1e-12)
                    g = slot_gate(q, seen[0], k_z, log_gamma)
                    plain = (seen[0] @ q / math.sqrt(size)).softmax(0) @ seen[1]
                    assert_close((1 - g) * plain + g * v_z, mixed[row, t, head], 1e-12)
        expected = attention.o_proj(mixed.flatten(2))
        for row, length in enumerate(LENGTHS):
            assert_close(output[row, :length], expected[row, :length], 1e-12)


@kinds
def test_the_norm_before_attention_has_the_weight_w_plus_gamma_u_n_z(kind: str) -> None:
    policy = policy_of(kind)
    z, fusion = latents(policy, 3), fusion_of(policy, "psa")
    gamma = torch.tensor(gammas(SETTLED), dtype=torch.float64)[..., None]
    for layer, found, u_n in zip(
        policy.model.model.layers, watched(policy, fusion(z, SETTLED)), fusion.U_n, strict=True
    ):
        shift = gamma * torch.stack([u_n @ row for row in z])[:, None]
        assert shift.abs().max() > 1
        for name, norm, moved in (
            ("norm", layer.input_layernorm, shift),
            ("later norm", layer.post_attention_layernorm, 0.0),
        ):
            ((hidden,), _, output) = found[name]
            rms = (hidden.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
            expected = hidden / rms * (norm.weight + moved)
            for row, length in enumerate(LENGTHS):
                # transformers takes the norm in float32
                torch.testing.assert_close(
                    output[row, :length], expected[row, :length], rtol=1e-6, atol=1e-6
                )


@kinds
def test_input_adds_to_the_embedding_only(kind: str) -> None:
    policy = policy_of(kind)
    z, fusion = latents(policy, 3), fusion_of(policy, "input")
    ids, _, _ = batch(policy, sequences(policy), FORKS)
    gamma = torch.tensor(gammas(SETTLED), dtype=torch.float64)[..., None]
    found = watched(policy, fusion(z, SETTLED))
    expected = policy.model.model.embed_tokens(ids) + gamma * (z @ fusion.W.T)[:, None]
    for row, length in enumerate(LENGTHS):
        assert_close(found[0]["layer"][0][0][row, :length], expected[row, :length], 1e-12)
    for layer in found:
        assert torch.equal(layer["after"], layer["layer"][2])


@kinds
def test_residual_adds_after_each_of_the_last_4_layers(kind: str) -> None:
    policy = policy_of(kind, num_hidden_layers=6)
    z, fusion = latents(policy, 3), fusion_of(policy, "residual")
    gamma = torch.tensor(gammas(SETTLED), dtype=torch.float64)[..., None]
    found = watched(policy, fusion(z, SETTLED))
    plain = policy.model.model.embed_tokens(batch(policy, sequences(policy), FORKS)[0])
    assert torch.equal(found[0]["layer"][0][0], plain)
    for at, layer in enumerate(found):
        expected = layer["layer"][2]  # this hook came first, so it sees the layer's own output
        if at >= 2:
            expected = expected + gamma * (z @ fusion.W[at - 2].T)[:, None]
        for row, length in enumerate(LENGTHS):
            assert_close(layer["after"][row, :length], expected[row, :length], 1e-12)


@kinds
@torch.no_grad()
def test_softmax_adds_to_the_logits_only(kind: str) -> None:
    policy = policy_of(kind)
    rows = sequences(policy)
    z, fusion = latents(policy, 3), fusion_of(policy, "softmax")
    gamma = torch.tensor(gammas(SETTLED), dtype=torch.float64)[..., None]
    logits = plain_logits(policy) + gamma * (z @ fusion.W.T)[:, None]
    log_p = (logits[..., : policy.vocab_size] / 0.7).log_softmax(-1)
    found = scores(policy, rows, FORKS, fusion(z, SETTLED), temperature=0.7)
    for at, row in enumerate(rows):
        # Since the strength's logarithm is float32 for whole numbers s.
        chosen = log_p[at, torch.arange(len(row) - 1), row[1:]]
        assert_close(found[at][0], chosen, 1e-5)
    for layer, base in zip(watched(policy, fusion(z, SETTLED)), watched(policy, None), strict=True):
        assert torch.equal(layer["after"], base["after"])


# --- gradients ------------------------------------------------------------------------------------


def loss_of(policy: Policy, injection: Injection, **extra: Any) -> Tensor:
    rows = scores(policy, sequences(policy), FORKS, injection, **extra)
    return sum(((i + 1.0) * row[0] + 0.3 * row[1]).sum() for i, row in enumerate(rows))  # type: ignore[return-value]


@kinds
@fusions
def test_gradients_reach_z_and_every_projection_and_one_step_changes_them(
    kind: str, name: str
) -> None:
    policy = policy_of(kind)
    policy.model.requires_grad_(False)
    fusion, z = fusion_of(policy, name), latents(policy, 3).requires_grad_()
    optimizer = torch.optim.AdamW(fusion.parameters(), lr=1e-2, weight_decay=0.0)
    before = {key: p.detach().clone() for key, p in fusion.named_parameters()}
    loss_of(policy, fusion(z, SETTLED)).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert (z.grad.abs().amax(1) > 1e-6).all()
    optimizer.step()
    for key, parameter in fusion.named_parameters():
        assert parameter.grad.isfinite().all()
        by_layer = parameter.grad if parameter.dim() == 3 else parameter.grad[None]
        moved = (parameter.detach() - before[key]).view_as(by_layer)
        assert (by_layer.abs().amax((1, 2)) > 1e-6).all(), f"a layer of {key} gets no gradient"
        assert (moved.abs().amax((1, 2)) > 1e-3).all(), f"a layer of {key} stays"


@fusions
def test_the_gradient_in_z_is_the_slope(name: str) -> None:
    policy = policy_of(initializer_range=0.1)
    fusion, z = fusion_of(policy, name, loud=2.0), latents(policy, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(policy, fusion(z, SETTLED)), z)
    step = 1e-3 * torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        ends = [float(loss_of(policy, fusion(z + sign * step, SETTLED))) for sign in (1, -1)]
    assert (ends[0] - ends[1]) / 2 == pytest.approx(float((gradient * step).sum()), rel=2e-3)


@kinds
@fusions
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_with_hold_gives_the_same_gradients(kind: str, name: str) -> None:
    found, passes = [], []
    for checkpointing in (False, True):
        policy = policy_of(kind)
        policy.model.train()
        if checkpointing:
            policy.model.gradient_checkpointing_enable()
        before = state(policy.model)
        passes.append(0)

        def count(*_: Any) -> None:
            passes[-1] += 1

        hook = policy.model.model.layers[0].mlp.register_forward_pre_hook(count)
        fusion, z = fusion_of(policy, name), latents(policy, 3).requires_grad_()
        with ExitStack() as hold:
            extra = {"hold": hold} if checkpointing else {}
            loss = loss_of(policy, fusion(z, SETTLED), **extra)
            inside = state(policy.model)
            loss.backward()
        hook.remove()
        assert state(policy.model) == before
        if checkpointing:
            assert inside.keys() >= before.keys()
        parameters = {**dict(policy.model.named_parameters()), **dict(fusion.named_parameters())}
        found.append({key: p.grad for key, p in parameters.items()} | {"z": z.grad, "loss": loss})
    assert passes == [1, 2]
    assert found[0].keys() == found[1].keys()
    for key, expected in found[0].items():
        assert expected is not None
        scale = max(1.0, float(expected.detach().abs().max()))
        assert_close(found[1][key], expected, 1e-11 * scale)


@fusions
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_without_hold_is_refused(name: str) -> None:
    policy = policy_of()
    policy.model.gradient_checkpointing_enable()
    injection = fusion_of(policy, name)(latents(policy, 3), SETTLED)
    scores(policy, sequences(policy), FORKS, injection)  # in eval mode nothing is checkpointed
    policy.model.train()
    before = state(policy.model)
    with pytest.raises(ValueError, match="give hold= and close it after backward"):
        scores(policy, sequences(policy), FORKS, injection)
    assert state(policy.model) == before
    scores(policy, sequences(policy), FORKS, None)


# --- the mask -------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3),
    st.integers(1, 4),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_mask_by_brute_force(attended: list[list[bool]], rows: int, dtype: torch.dtype) -> None:
    log_gamma = torch.randn(len(attended), rows, generator=torch.Generator().manual_seed(rows))
    log_gamma[0, 0] = -math.inf
    mask = slot_mask(torch.tensor(attended), log_gamma, dtype)
    assert mask.shape == (len(attended), 1, rows, 5)
    assert mask.dtype == dtype
    assert mask.isfinite().all()
    for b, row in enumerate(attended):
        for t in range(rows):
            slot = mask[b, 0, t, 0]
            assert slot.exp() == 0 if (b, t) == (0, 0) else slot == log_gamma[b, t].to(dtype)
            for c in range(4):
                visible = row[c] and c <= 4 - rows + t
                entry = mask[b, 0, t, 1 + c]
                assert entry == 0 if visible else entry.exp() == 0
    whole = torch.tensor(attended).long()
    assert torch.equal(slot_mask(whole, log_gamma, dtype), mask)


def test_a_row_that_sees_nothing_gives_numbers() -> None:
    assert math.exp(MASKED) == 0
    assert not torch.full((3,), MASKED).softmax(0).isnan().any()


# --- what can't be done ---------------------------------------------------------------------------


@kinds
def test_the_sizes_of_a_policy(kind: str) -> None:
    policy = policy_of(kind)
    assert shape_of(policy.model) == Shape(3, 32, 2, 8, policy.vocab_size + 20)
    unusual = policy_of("qwen3", hidden_size=48, num_attention_heads=6, num_key_value_heads=3)
    assert shape_of(unusual.model) == Shape(3, 48, 3, 8, policy.vocab_size + 20)


def refused(policy: Policy, injection: Injection, message: str) -> None:
    """Both ways into a model refuse before anything is changed."""
    rows = sequences(policy)
    before = state(policy.model)
    read = [read_of(policy_of(), row) for row in rows]
    for attempt in (
        lambda: check_injectable(policy.model, injection),
        lambda: scores(policy, rows, FORKS, injection),
        lambda: branch(policy, rows, FORKS, injection, kv=read),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert state(policy.model) == before


@pytest.mark.parametrize("name", ["psa", "input", "residual", "softmax"])
@pytest.mark.parametrize(
    "changes", [{"hidden_size": 40}, {"num_hidden_layers": 2}, {"vocab_size": 777}], ids=str
)
def test_latents_of_a_policy_of_other_sizes_are_refused(name: str, changes: dict[str, Any]) -> None:
    policy = policy_of()
    other = policy_of("qwen3", **changes)
    matters = {
        "psa": ("hidden_size", "num_hidden_layers"),
        "input": ("hidden_size",),
        "residual": ("hidden_size",),
        "softmax": ("vocab_size",),
    }
    injection = fusion_of(other, name)(latents(policy, 3), SETTLED)
    if not set(changes) & set(matters[name]):
        check_injectable(policy.model, injection)
        return
    refused(policy, injection, "another vocabulary|use latents that were trained for it")


def test_more_residual_layers_than_the_policy_has_are_refused() -> None:
    policy = policy_of()
    injection = fusion_of(policy_of(num_hidden_layers=4), "residual")(latents(policy, 3), SETTLED)
    refused(policy, injection, r"residual have shape \(4, 3, 32\), but this model needs .* 3, rows")


@pytest.mark.parametrize("kind", ["flash_attention_2", "flex_attention"])
def test_kernels_without_an_additive_mask_are_refused(kind: str) -> None:
    policy = policy_of()
    made = {name: fusion_of(policy, name)(latents(policy, 3), SETTLED) for name in FUSIONS}
    policy.model.config._attn_implementation = kind
    for name, injection in made.items():
        if name != "psa":
            check_injectable(policy.model, injection)
    with pytest.raises(ValueError, match=f"not '{kind}': load the model with attn_impl.*sdpa"):
        check_injectable(policy.model, made["psa"])


@kinds
def test_a_sliding_window_is_refused(kind: str) -> None:
    policy = policy_of(kind, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert "sliding_attention" in policy.model.config.layer_types
    injection = fusion_of(policy, "psa")(latents(policy, 3), SETTLED)
    refused(policy, injection, "full attention only; set use_sliding_window=False")


@pytest.mark.parametrize("count", [1, 2, 4])
@fusions
def test_a_latent_is_needed_for_every_row(name: str, count: int) -> None:
    # One latent would otherwise be spread over the batch in silence.
    policy = policy_of()
    rows, before = sequences(policy), state(policy.model)
    injection = fusion_of(policy, name)(latents(policy, count), SETTLED)
    for attempt in (
        lambda: scores(policy, rows, FORKS, injection),
        lambda: branch(policy, rows, FORKS, injection),
    ):
        with pytest.raises(ValueError, match=rf"3 rows are given {count} latent"):
            attempt()
    assert state(policy.model) == before


def test_the_tokens_since_the_fork_are_needed() -> None:
    policy = policy_of()
    ids, mask, since = batch(policy, sequences(policy), FORKS)
    new = mask.clone()
    new[:, 0] = 0
    injection = fusion_of(policy, "psa")(latents(policy, 3), SETTLED)
    for wrong in (None, since[:, 1:], since[0]):
        with pytest.raises(ValueError, match=r"An injection needs since.*\(B, T\)"):
            policy_logprobs(
                policy.model, ids, mask, new, temperature=1.0, vocab_size=policy.vocab_size,
                injection=injection, since=wrong,
            )  # fmt: skip
