"""The decode loop against `generate`, a teacher-forced pass and brute force."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from tiny import PADDING, tiny_policy
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from i2b_lpo.model.cache import RoomyLayer
from i2b_lpo.model.decoding import Decoded, decode
from i2b_lpo.model.padding import left_pad
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.sampling import Sampling, _inverse, _keep_nucleus

QUESTIONS = (
    "What is 23*14?",
    "hi",
    "Mia buys 23 pens at $14 and 37 cups at $6. What is the cost?",
    "What is 9*88? Now",
)
NEVER = (10**6,)  # an end token that no policy can draw


def prompts_of(policy: Policy) -> list[list[int]]:
    prompts = [policy.prompt_ids(question) for question in QUESTIONS]
    assert len({len(prompt) for prompt in prompts}) == len(prompts)
    return prompts


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(decoded: Decoded) -> list[list[int]]:
    return [row[:n] for row, n in zip(decoded.ids.tolist(), decoded.lengths.tolist(), strict=True)]


def occurring_ends(
    policy: Policy, prompts: Sequence[Sequence[int]], sampling: Sampling, rollouts: int = 1
) -> Policy:
    """`policy` with end tokens that stop some rows early, at different times, and others never."""
    endless = replace(policy, eos_ids=NEVER)
    drawn = rows(decode(endless, prompts, sampling, rollouts=rollouts, generator=seeded()))
    for ends in product(drawn[0][2:], drawn[-1][2:]):
        stops = {next((t for t, i in enumerate(row) if i in ends), -1) for row in drawn}
        if len(stops) >= 3 and -1 in stops:
            return replace(policy, eos_ids=tuple(sorted(set(ends))))
    raise AssertionError("no two tokens stop these rows at different times")


@torch.no_grad()
def teacher_forced(policy: Policy, prompt: Sequence[int], new: Sequence[int]) -> Tensor:
    """Raw logits (T, vocab) that predict `new`: one dense pass, one row, no padding, no cache."""
    ids = torch.tensor([[*prompt, *new]])
    logits: Tensor = policy.model(input_ids=ids, use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1, : policy.vocab_size].double()


# --- greedy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
@pytest.mark.parametrize("padded", [True, False])
def test_greedy_equals_generate_while_rows_end_at_different_times(kind: str, padded: bool) -> None:
    policy = tiny_policy(kind, padded)
    prompts = prompts_of(policy)
    sampling = Sampling(24, temperature=0)
    policy = occurring_ends(policy, prompts, sampling)
    ids, mask = left_pad(prompts, policy.pad_id)
    beyond = list(range(policy.vocab_size, policy.model.config.vocab_size))
    expected = policy.model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=24,
        eos_token_id=list(policy.eos_ids),
        pad_token_id=policy.pad_id,
        suppress_tokens=beyond or None,
    )[:, ids.shape[1] :]
    decoded = decode(policy, prompts, sampling)
    assert decoded.ids.tolist() == expected.tolist()
    assert not decoded.finished.all()
    assert decoded.finished.sum() >= 2
    for row, length, finished in zip(
        decoded.ids.tolist(), decoded.lengths.tolist(), decoded.finished.tolist(), strict=True
    ):
        ends = [i in policy.eos_ids for i in row[:length]]
        assert sum(ends) == (ends[-1] if finished else 0) == finished
        assert row[length:] == [policy.pad_id] * (len(row) - length)


def test_the_loop_stops_when_every_row_has_ended_and_reports_each_step() -> None:
    policy = tiny_policy()
    prompts = prompts_of(policy)
    full = decode(replace(policy, eos_ids=NEVER), prompts, Sampling(24, temperature=0))
    policy = replace(policy, eos_ids=tuple({row[5] for row in full.ids.tolist()}))
    seen: list[tuple[int, int]] = []
    sizes: list[int] = []
    hook = policy.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    decoded = decode(
        policy, prompts, Sampling(24, temperature=0), on_step=lambda *step: seen.append(step)
    )
    hook.remove()
    assert decoded.finished.all()
    assert decoded.ids.shape[1] == decoded.lengths.max() <= 6
    live = [int((decoded.lengths > step).sum()) for step in range(1, len(seen) + 1)]
    assert seen == list(zip(range(1, len(seen) + 1), live, strict=True))
    assert seen[-1][1] == 0
    assert sizes == [len(prompts), *live[:-1]], "an ended row still went through the model"


# --- log-probs and entropies ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)], ids=["f32", "f64"]
)
@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.7, 0.8), (1.0, 0.5), (0, 1.0)]
)
def test_numbers_equal_a_teacher_forced_pass(
    kind: str, dtype: torch.dtype, tolerance: float, temperature: float, top_p: float
) -> None:
    policy = tiny_policy(kind, dtype=dtype)
    prompts = prompts_of(policy)
    sampling = Sampling(14, temperature, top_p)
    policy = occurring_ends(policy, prompts, sampling, rollouts=2)
    decoded = decode(policy, prompts, sampling, rollouts=2, generator=seeded())
    assert decoded.entropy.dtype == decoded.logprob.dtype == decoded.logprob_t1.dtype == dtype
    assert len(set(decoded.lengths.tolist())) > 1
    for at, new in enumerate(rows(decoded)):
        logits = teacher_forced(policy, prompts[at // 2], new)
        steps = range(len(new))
        log_p = logits.log_softmax(-1)
        log_q = (logits / (temperature or 1)).log_softmax(-1)
        expected = {
            "entropy": -(log_p.exp() * log_p).sum(-1),
            "logprob": log_q[steps, new],
            "logprob_t1": log_p[steps, new],
        }
        for name, want in expected.items():
            got = getattr(decoded, name)[at]
            torch.testing.assert_close(
                got[: len(new)].double(), want, atol=tolerance, rtol=0, msg=name.__add__
            )
            assert not got[len(new) :].any(), f"{name} is not 0 on padding"
    assert decoded.mask.sum(1).tolist() == decoded.lengths.tolist()


def test_half_precision_policies_are_measured_in_float32() -> None:
    policy = tiny_policy(dtype=torch.bfloat16)
    decoded = decode(policy, prompts_of(policy), Sampling(4), generator=seeded())
    assert decoded.entropy.dtype == decoded.logprob.dtype == torch.float32


@pytest.mark.parametrize("temperature", [0, 1.0, 0.5])
def test_ids_beyond_the_tokenizer_count_as_impossible(temperature: float) -> None:
    policy = tiny_policy()
    prompts = prompts_of(policy)
    sampling = Sampling(12, temperature)
    expected = decode(policy, prompts, sampling, rollouts=3, generator=seeded())

    def enlarge(_module: Any, _inputs: Any, logits: Tensor) -> Tensor:
        beyond = torch.arange(logits.shape[-1]) >= policy.vocab_size
        assert beyond.sum() == PADDING
        return logits + 1e4 * beyond

    hook = policy.model.lm_head.register_forward_hook(enlarge)
    decoded = decode(policy, prompts, sampling, rollouts=3, generator=seeded())
    hook.remove()
    assert decoded.ids.max() < policy.vocab_size
    for name in ("ids", "lengths", "entropy", "logprob", "logprob_t1"):
        assert torch.equal(getattr(decoded, name), getattr(expected, name)), name


# --- rows don't touch each other ------------------------------------------------------------------


def test_samples_equal_repeated_prompts_and_each_prompt_is_read_once() -> None:
    policy = tiny_policy(dtype=torch.float64)
    prompts = prompts_of(policy)
    sampling = Sampling(12, temperature=0.8)
    policy = occurring_ends(policy, prompts, sampling)
    shapes: list[tuple[int, ...]] = []
    hook = policy.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    together = decode(policy, prompts, sampling, rollouts=3, generator=seeded(1))
    hook.remove()
    longest = max(map(len, prompts))
    assert shapes[0] == (len(prompts), longest)
    assert all(width == 1 for _, width in shapes[1:]), "a prompt was read again"
    repeated = decode(policy, [p for p in prompts for _ in range(3)], sampling, generator=seeded(1))
    assert together.ids.tolist() == repeated.ids.tolist()
    assert together.finished.tolist() == repeated.finished.tolist()
    torch.testing.assert_close(together.logprob, repeated.logprob, atol=1e-12, rtol=0)
    torch.testing.assert_close(together.entropy, repeated.entropy, atol=1e-12, rtol=0)
    assert len({tuple(row) for row in rows(together)}) > len(prompts), "samples are copies"


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_row_is_the_same_whichever_other_rows_end(temperature: float) -> None:
    policy = tiny_policy(dtype=torch.float64)
    prompts = prompts_of(policy)
    sampling = Sampling(16, temperature)
    ending = occurring_ends(policy, prompts, sampling, rollouts=2)
    endless = replace(policy, eos_ids=NEVER)
    full = decode(endless, prompts, sampling, rollouts=2, generator=seeded())
    cut = decode(ending, prompts, sampling, rollouts=2, generator=seeded())
    assert full.lengths.tolist() == [16] * 8
    assert not full.finished.any()
    assert cut.finished.any()
    for at, length in enumerate(cut.lengths.tolist()):
        assert cut.ids[at, :length].tolist() == full.ids[at, :length].tolist()
        for name in ("entropy", "logprob", "logprob_t1"):
            got, want = getattr(cut, name)[at, :length], getattr(full, name)[at, :length]
            torch.testing.assert_close(got, want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
def test_left_padding_changes_nothing(kind: str) -> None:
    policy = replace(tiny_policy(kind), eos_ids=NEVER)
    prompts = prompts_of(policy)
    together = decode(policy, prompts, Sampling(10, temperature=0))
    for at, prompt in enumerate(prompts):
        alone = decode(policy, [prompt], Sampling(10, temperature=0))
        assert together.ids[at].tolist() == alone.ids[0].tolist()
        for name in ("entropy", "logprob", "logprob_t1"):
            got, want = getattr(together, name)[at], getattr(alone, name)[0]
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_left_pad_puts_tokens_at_the_right_edge() -> None:
    ids, mask = left_pad([[5], [6, 7, 8]], 9)
    assert ids.tolist() == [[9, 9, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]


def test_one_seed_gives_one_result() -> None:
    policy = tiny_policy()
    prompts = prompts_of(policy)
    first, again, other = (
        decode(policy, prompts, Sampling(8), rollouts=2, generator=seeded(seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.entropy, again.entropy)
    assert not torch.equal(first.ids, other.ids)


# --- drawing --------------------------------------------------------------------------------------


def chi_square(counts: Tensor, probs: Tensor) -> float:
    expected = probs * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_draw_follows_the_distribution_and_never_takes_an_impossible_token() -> None:
    probs = torch.tensor([0.0, 0.05, 0.3, 0.0, 0.4, 0.0, 0.2, 0.05, 0.0])
    count = 20_000
    uniform = torch.rand(count, generator=seeded(5))
    counts = _inverse(probs.expand(count, -1), uniform).bincount(minlength=len(probs)).double()
    possible = probs > 0
    assert counts[~possible].sum() == 0
    # 4 degrees of freedom: 23.5 is exceeded once in 10 000 runs.
    assert chi_square(counts[possible], probs[possible].double()) < 23.5


def test_draw_at_the_ends_of_the_unit_interval() -> None:
    probs = torch.tensor([[0.0, 0.0, 0.7, 0.3, 0.0, 0.0]])
    last = 1 - 2.0**-24  # the largest float32 that torch.rand returns
    assert _inverse(probs, torch.tensor([0.0])).tolist() == [2]
    assert _inverse(probs, torch.tensor([last])).tolist() == [3]
    # A sum a little off 1, as a float32 softmax leaves it, must not make the last id special.
    assert _inverse(0.999 * probs, torch.tensor([last])).tolist() == [3]


@given(
    st.lists(st.sampled_from([0.0, 1e-9, 0.1, 0.5, 1.0]), min_size=1, max_size=9).filter(any),
    st.floats(0, 1, exclude_max=True, width=32),
)
def test_draw_equals_walking_the_distribution(weights: list[float], uniform: float) -> None:
    probs = torch.tensor([weights], dtype=torch.float64)
    rest = uniform * sum(weights)
    reached = 0.0
    for token, weight in enumerate(weights):  # noqa: B007
        reached += weight
        if reached > rest:
            break
    assert _inverse(probs, torch.tensor([uniform])).tolist() == [token]
    assert weights[token] > 0


def brute_force_nucleus(probs: list[float], top_p: float) -> set[int]:
    kept: set[int] = set()
    for token in sorted(range(len(probs)), key=lambda t: (-probs[t], t)):
        if sum(probs[t] for t in kept) >= top_p:
            break
        kept.add(token)
    return kept


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.37, 0.5, 0.9, 0.999])
def test_the_nucleus_equals_brute_force(top_p: float) -> None:
    probs = (3 * torch.randn(20, 12, generator=seeded(7), dtype=torch.float64)).softmax(-1)
    kept = _keep_nucleus(probs, top_p)
    sizes = set()
    for before, after in zip(probs, kept, strict=True):
        expected = brute_force_nucleus(before.tolist(), top_p)
        assert set(after.nonzero()[:, 0].tolist()) == expected
        assert after[sorted(expected)].tolist() == before[sorted(expected)].tolist()
        sizes.add(len(expected))
    assert len(sizes) > 1 or top_p <= 0.1


@pytest.mark.parametrize("size", [8, 64, 300])
def test_of_tokens_equally_likely_those_with_lower_ids_are_the_nucleus(size: int) -> None:
    # All numbers are exact in binary, so only the order of equals decides.
    generator = seeded(size)
    for _ in range(20):
        parts = torch.randint(1, 4, (size,), generator=generator)
        parts[0] += 2 ** math.ceil(math.log2(4 * size)) - parts.sum()  # a power of two in all
        probs = (parts / parts.sum()).double()[torch.randperm(size, generator=generator)]
        for top_p in (0.125, 0.5, 0.75):
            (kept,) = _keep_nucleus(probs[None], top_p)
            assert set(kept.nonzero()[:, 0].tolist()) == brute_force_nucleus(probs.tolist(), top_p)
    even = torch.full((1, 16), 1 / 16)
    assert _keep_nucleus(even, 0.25)[0].nonzero()[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (0.7, 0.8)])
def test_decoded_tokens_follow_the_policy(temperature: float, top_p: float) -> None:
    policy = tiny_policy()
    prompt = policy.prompt_ids(QUESTIONS[0])
    count = 6000
    decoded = decode(
        policy, [prompt], Sampling(1, temperature, top_p), rollouts=count, generator=seeded(2)
    )
    probs = (teacher_forced(policy, prompt, [0])[0] / temperature).softmax(-1)
    nucleus = torch.zeros_like(probs, dtype=torch.bool)
    nucleus[sorted(brute_force_nucleus(probs.tolist(), top_p))] = True
    probs = probs * nucleus / probs[nucleus].sum()
    counts = decoded.ids[:, 0].bincount(minlength=policy.vocab_size).double()
    assert counts[~nucleus].sum() == 0
    often = probs * count >= 5
    assert often.sum() >= 5
    pooled = torch.cat([counts[often], counts[~often].sum()[None]])
    expected = torch.cat([probs[often], probs[~often].sum()[None]])
    pooled, expected = pooled[expected > 0], expected[expected > 0]
    freedom = len(pooled) - 1
    assert chi_square(pooled, expected) < freedom + 5 * (2 * freedom) ** 0.5


def test_a_tiny_nucleus_is_greedy_and_log_probs_ignore_top_p() -> None:
    policy = tiny_policy(dtype=torch.float64)
    prompts = prompts_of(policy)
    greedy = decode(policy, prompts, Sampling(8, temperature=0))
    narrow = decode(policy, prompts, Sampling(8, top_p=1e-9), generator=seeded())
    assert narrow.ids.tolist() == greedy.ids.tolist()
    assert narrow.logprob.tolist() == greedy.logprob.tolist()
    assert (greedy.logprob[greedy.mask] < 0).all()


# --- the cache ------------------------------------------------------------------------------------


@given(st.integers(0, 2**31))
def test_the_roomy_cache_equals_the_dynamic_cache(seed: int) -> None:
    generator = seeded(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    roomy, plain = Cache(layer_class_to_replicate=RoomyLayer), DynamicCache()
    batch = draw(1, 4)
    for turn in range(12):
        operation = draw(0, 5) if turn else 0
        length = plain.get_seq_length()
        if operation < 2:
            # Now and then wide enough to use up the room at once.
            width = draw(1, 5) if draw(0, 4) else draw(60, 140)
            for layer in range(2):
                new = torch.randn(2, batch, 2, width, 3, generator=generator)
                got = roomy.update(new[0], new[1], layer)
                want = plain.update(new[0], new[1], layer)
                assert torch.equal(got[0], want[0])
                assert torch.equal(got[1], want[1])
        elif operation == 2 and batch < 9:
            repeats = draw(1, 4)
            roomy.batch_repeat_interleave(repeats)
            plain.batch_repeat_interleave(repeats)
            batch *= repeats
        elif operation == 3:
            keep = torch.randint(batch, (draw(1, batch + 1),), generator=generator)
            roomy.batch_select_indices(keep)
            plain.batch_select_indices(keep)
            batch = len(keep)
        elif operation == 4 and length > 1:  # a DynamicCache cropped to nothing keeps its batch
            remove = draw(1, length)
            roomy.crop(-remove)
            plain.crop(-remove)
        assert roomy.get_seq_length() == plain.get_seq_length()
        mine: Any
        theirs: Any
        for mine, theirs in zip(roomy.layers, plain.layers, strict=True):
            assert torch.equal(mine.keys, theirs.keys)
            assert torch.equal(mine.values, theirs.values)


def test_a_step_of_the_roomy_cache_copies_nothing() -> None:
    cache = Cache(layer_class_to_replicate=RoomyLayer)
    new = torch.randn(2, 3, 2, 5, 4)
    cache.update(new[0], new[1], 0)
    places = set()
    for _ in range(RoomyLayer.ROOM):
        keys, _ = cache.update(new[0, :, :, :1], new[1, :, :, :1], 0)
        places.add(keys.data_ptr())
    assert len(places) == 1
    assert cache.get_seq_length() == 5 + RoomyLayer.ROOM


# --- what can't be done ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": -3}, "max_new_tokens is -3"),
        ({"temperature": -0.1}, r"temperature is -0\.1"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, r"top_p is 0\.0"),
        ({"top_p": 1.01}, r"top_p is 1\.01"),
        ({"top_p": -0.5}, r"top_p is -0\.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
    ],
)
def test_sampling_refuses_values_without_meaning(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**{"max_new_tokens": 4, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize("prompts", [[], [[]], [[1, 2], []]])
def test_no_prompt_and_empty_prompts_are_refused(prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        decode(tiny_policy(), prompts, Sampling(2, temperature=0))


def test_sampling_without_a_generator_is_refused() -> None:
    with pytest.raises(ValueError, match="generator="):
        decode(tiny_policy(), [[1, 2]], Sampling(2))


def test_less_than_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="rollouts is 0"):
        decode(tiny_policy(), [[1, 2]], Sampling(2, temperature=0), rollouts=0)


def test_the_positions_of_the_model_are_the_limit() -> None:
    policy = replace(tiny_policy(max_position_embeddings=16), eos_ids=NEVER)
    decoded = decode(policy, [[5] * 10, [5]], Sampling(6, temperature=0))
    assert decoded.lengths.tolist() == [6, 6]
    with pytest.raises(ValueError, match=r"11 tokens and 6 new ones exceed the 16 positions"):
        decode(policy, [[5], [5] * 11], Sampling(6, temperature=0))


def test_a_policy_whose_cache_is_switched_off_is_refused() -> None:
    # In training mode gradient checkpointing makes transformers drop the cache with a mere
    # warning: each step would then see the last token alone.
    policy = tiny_policy()
    policy.model.gradient_checkpointing_enable()
    prompts = prompts_of(policy)
    expected = decode(tiny_policy(), prompts, Sampling(6, temperature=0))
    assert decode(policy, prompts, Sampling(6, temperature=0)).ids.tolist() == expected.ids.tolist()
    policy.model.train()
    with pytest.raises(ValueError, match=r"eval\(\)"):
        decode(policy, prompts, Sampling(6, temperature=0))


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_broken_policy_is_named_instead_of_decoded(temperature: float) -> None:
    policy = tiny_policy()
    with torch.no_grad():
        policy.model.lm_head.weight[7] = float("nan")
    with pytest.raises(FloatingPointError, match="finite"):
        decode(policy, prompts_of(policy), Sampling(3, temperature), generator=seeded())
