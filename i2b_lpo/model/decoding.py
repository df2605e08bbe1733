"""The one decode loop: batched sampling with a KV cache, entropy and log-probs along the way.

The forward pass is the model's own. Each prompt, and each prefix of a fork, is read once, however
often it is continued; rows that have ended leave the batch. Deliberately left out: beam
search, penalties, top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from i2b_lpo.method.psa import Injection
from i2b_lpo.model.cache import KeyValues, gather, new_cache, take_rows
from i2b_lpo.model.inject import check_injectable, injected, slot_mask
from i2b_lpo.model.padding import left_pad
from i2b_lpo.model.policy import Policy
from i2b_lpo.model.sampling import Sampling, draw

__all__ = ["Decoded", "Prefix", "decode", "decode_branches", "read_without_z", "unread"]


@dataclass(frozen=True)
class Decoded:
    """What was drawn, B = prompts × rollouts rows, T = the longest row's tokens.

    Attributes:
        ids: (B, T) new tokens, end token included, then `pad_id`.
        lengths: (B,) new tokens of each row; beyond them every field is padding (zeros).
        entropy: (B, T) H_t in nats at temperature 1 (METHOD §1).
        logprob: (B, T) log π at the sampling temperature, before top-p (METHOD §6); at
            temperature 1 where decoding was greedy.
        logprob_t1: (B, T) log π at temperature 1.
        finished: (B,) True if the row drew an end token, False if the length limit cut it off.
        kv: each row's keys and values, of all its tokens but the last, if they were asked for.
    """

    ids: Tensor
    lengths: Tensor
    entropy: Tensor
    logprob: Tensor
    logprob_t1: Tensor
    finished: Tensor
    kv: list[KeyValues] = field(default_factory=list)

    @property
    def mask(self) -> Tensor:
        """(B, T) bool, True on new tokens."""
        steps = torch.arange(self.ids.shape[1], device=self.ids.device)
        return steps < self.lengths[:, None]


@dataclass(frozen=True)
class Prefix:
    """The tokens c before a fork, and what the policy has read of them without z.

    Attributes:
        ids: all p tokens, prompt included.
        kv: keys and values of at least p − 1 tokens, cut to these. Token number p − 1 (0-based) is
            read again with z, because its row predicts the first token of the branch (METHOD §4).

    Raises:
        ValueError: `kv` holds fewer tokens, see `unread`.
    """

    ids: tuple[int, ...]
    kv: KeyValues

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv", self.kv.crop(max(0, len(self.ids) - 1)))


def unread(ids: Sequence[int], kv: KeyValues) -> Sequence[int]:
    """What is still to be read of a prefix `ids`, of which `kv` holds the first tokens."""
    return ids[len(kv) : -1]


@dataclass
class _Rows:
    """The rows still in the batch: b of them."""

    cache: Cache
    mask: Tensor  # (b, C): 1 on tokens, for all columns to come; without the slot
    position: Tensor  # (b, 1), of the last token read
    injection: Injection | None = None
    since: int = 0  # s of the next row of each: tokens since the fork

    @torch.inference_mode()  # faster than no_grad; what is made of the logits are ordinary tensors
    def read(self, model: Any, ids: Tensor, position: Tensor, columns: int) -> Tensor:
        """Read the tokens `ids` (b, T); logits after the last of them, (b, V)."""
        mask, injection = self.mask[:, :columns], self.injection
        since = torch.full(ids.shape, self.since, device=ids.device)
        log_gamma = since if injection is None else injection.strength.log_gamma(since, model.dtype)
        if injection is not None and injection.keys is not None:
            mask = slot_mask(mask, log_gamma, model.dtype)
        with injected(model, injection, log_gamma, slot_in_cache=True):
            logits: Tensor = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        if injection is not None and injection.logits is not None:
            z, weight = injection.logits
            scaled = log_gamma[:, -1:].exp() * z
            logits = logits + (scaled @ weight.t().to(scaled.dtype)).to(logits.dtype)
        return logits

    def select(self, keep: Tensor) -> None:
        """Only keep the rows of these indices."""
        self.mask, self.position = self.mask[keep], self.position[keep]
        if len(keep):
            self.cache.batch_select_indices(keep)
            if self.injection is not None:
                self.injection = self.injection.select(keep)


def _check(
    policy: Policy, sampling: Sampling, sizes: Sequence[tuple[int, int]], generator: object | None
) -> None:
    """Refuse what can't be decoded; `sizes`: tokens of each row at hand, and the most new ones."""
    if generator is None and sampling.temperature != 0:
        raise ValueError("Sampling needs a torch.Generator; pass generator= or temperature=0.")
    room = policy.model.config.max_position_embeddings
    before, new = max(sizes, key=sum)
    if before + new > room:
        raise ValueError(
            f"A prompt of {before} tokens and {new} new ones exceed the {room} positions of "
            f"{policy.name}; shorten one of them."
        )
    if policy.model.training and policy.model.is_gradient_checkpointing:
        # transformers would drop the cache with a warning: a step would see its last token alone.
        raise ValueError(
            f"{policy.name} is in training mode with gradient checkpointing, which switches its "
            "cache off; call policy.model.eval() before decoding."
        )


@torch.no_grad()
def decode(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    rollouts: int = 1,
    generator: torch.Generator | None = None,
    keep_kv: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> Decoded:
    """Continue each prompt `rollouts` times; rows of one prompt are neighbours.

    A row's random numbers depend on its place in the call and its step, not on which other rows
    have ended.

    Args:
        policy: the policy to sample from.
        prompts: token ids, any lengths; none empty.
        sampling: length limit, temperature and top-p.
        rollouts: continuations of each prompt.
        generator: source of randomness; needed unless decoding is greedy.
        keep_kv: return each row's keys and values, which forks continue from.
        on_step: called after each step with (tokens decoded per row, rows still going).

    Raises:
        ValueError: no prompts, an empty one, one that leaves no room for `max_new_tokens`, or
            sampling without a generator.
    """
    if not prompts or not all(prompts):
        raise ValueError("decode needs at least one prompt, and every prompt at least one token.")
    if rollouts < 1:
        raise ValueError(f"rollouts is {rollouts}; give at least 1.")
    width = sampling.max_new_tokens
    _check(policy, sampling, [(len(prompt), width) for prompt in prompts], generator)
    ids, mask = (t.to(policy.device) for t in left_pad(prompts, policy.pad_id))
    position = mask.cumsum(-1) - 1
    rows = _Rows(new_cache(), mask, position)
    # Read every prompt once, then give each rollout its own copy of the cache.
    logits = rows.read(policy.model, ids, position.clamp(min=0), ids.shape[1])
    rows.cache.batch_repeat_interleave(rollouts)
    rows.mask = torch.cat([mask, mask.new_ones(len(mask), width)], 1).repeat_interleave(rollouts, 0)
    rows.position = position[:, -1:].repeat_interleave(rollouts, 0)
    limits = torch.full((len(rows.mask),), width)
    return _draw_rows(
        policy, rows, logits.repeat_interleave(rollouts, 0), limits, sampling, generator,
        keep_kv=keep_kv, on_step=on_step,
    )  # fmt: skip


@torch.no_grad()
def decode_branches(
    policy: Policy,
    prefixes: Sequence[Prefix],
    limits: Sequence[int],
    sampling: Sampling,
    *,
    branches: int = 1,
    injection: Injection | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Decoded:
    """Continue each prefix `branches` times in one batch, from what has been read of it.

    Args:
        policy: the policy to sample from.
        prefixes: the tokens before each fork; forks may lie at different depths.
        limits: the most new tokens for each prefix; `sampling.max_new_tokens` bounds them too.
        sampling: temperature and top-p.
        branches: K, for each prefix; those of one prefix are neighbours.
        injection: one latent per branch, in the order of the rows; None is re-sampling without z.
        generator: source of randomness; needed unless decoding is greedy.
        on_step: as in `decode`.

    Raises:
        ValueError: no prefixes, a limit below 1, an injection of another batch size or made for
            another model, or as in `decode`.
    """
    if not prefixes or not all(p.ids for p in prefixes):
        raise ValueError("decode_branches needs at least one prefix, none of them empty.")
    if len(limits) != len(prefixes) or min(limits) < 1 or branches < 1:
        raise ValueError("Give each prefix a limit of at least 1 token, and at least 1 branch.")
    width = min(max(limits), sampling.max_new_tokens)
    sizes = [(len(p.ids), min(n, width)) for p, n in zip(prefixes, limits, strict=True)]
    _check(policy, sampling, sizes, generator)
    if injection is not None:
        check_injectable(policy.model, injection)
    cache, mask = gather([prefix.kv for prefix in prefixes], branches, injection)
    device, batch, columns = policy.device, len(mask), mask.shape[1] + 1
    position = mask.sum(-1, keepdim=True)  # of the token that is read again
    rows = _Rows(cache, torch.cat([mask, mask.new_ones(batch, 1 + width)], 1), position, injection)
    ids = torch.tensor([[prefix.ids[-1]] for prefix in prefixes], device=device)
    logits = rows.read(policy.model, ids.repeat_interleave(branches, 0), position, columns)
    rows.since = 1
    most = torch.tensor(limits).clamp(max=width).repeat_interleave(branches)
    return _draw_rows(policy, rows, logits, most, sampling, generator, on_step=on_step)


@torch.no_grad()
def read_without_z(
    policy: Policy, rows: Sequence[KeyValues], segments: Sequence[Sequence[int]]
) -> list[KeyValues]:
    """Read one more segment of tokens after each row, without z and in one batch.

    A branch of a branch needs it: its parent's own tokens were read with the parent's z, and every
    row has one (p, z) only (METHOD §4 [D]).
    """
    cache, mask = gather(rows)
    ids, new = (t.to(policy.device) for t in left_pad(segments, policy.pad_id))
    before = mask.sum(-1, keepdim=True)
    batch = _Rows(cache, torch.cat([mask, new], 1), before)
    position = (before + new.cumsum(-1) - 1).clamp(min=0)
    batch.read(policy.model, ids, position, batch.mask.shape[1])
    return take_rows(batch.cache, range(len(rows)), batch.mask.bool())


def _draw_rows(
    policy: Policy,
    rows: _Rows,
    logits: Tensor,
    limits: Tensor,
    sampling: Sampling,
    generator: torch.Generator | None,
    *,
    keep_kv: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> Decoded:
    """Draw tokens, (B, V) logits first, until each row has ended or reached its limit."""
    device, (batch, width) = policy.device, (len(logits), int(limits.max()))
    prompt_width = rows.mask.shape[1] - width
    ids = torch.full((batch, width), policy.pad_id, device=device)
    work = torch.promote_types(logits.dtype, torch.float32)
    out = torch.zeros(3, batch, width, dtype=work, device=device)  # entropy, logprob, logprob_t1
    lengths = limits.to(device)
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    eos = torch.tensor(policy.eos_ids, device=device)
    live = torch.arange(batch, device=device)  # the rows still in the batch
    kv: dict[int, KeyValues] = {}
    step = 0
    while True:
        uniform = None
        if generator is not None and sampling.temperature:
            every = torch.rand(batch, generator=generator, device=generator.device)
            uniform = every.to(device)[live]
        try:
            token, measured = draw(logits[:, : policy.vocab_size], sampling, uniform)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"New token {step + 1}: the logits of {policy.name} are not finite; its weights "
                "are damaged or its training has diverged, load an earlier one."
            ) from error
        ids[live, step], out[:, live, step] = token, measured
        step += 1
        ended = torch.isin(token, eos)
        finished[live[ended]], lengths[live[ended]] = True, step
        leaves = ended | (lengths[live] == step)
        columns = prompt_width + step  # with the token just drawn, which hasn't been read yet
        if leaves.any():
            if keep_kv:
                gone = leaves.nonzero()[:, 0].tolist()
                kept = take_rows(rows.cache, gone, rows.mask[:, : columns - 1].bool())
                kv |= zip(live[gone].tolist(), kept, strict=True)
            keep = (~leaves).nonzero()[:, 0]
            live, token = live[keep], token[keep]
            rows.select(keep)
        if on_step is not None:
            on_step(step, len(live))
        if not len(live):
            break
        rows.position = rows.position + 1
        logits = rows.read(policy.model, token[:, None], rows.position, columns)
        rows.since += 1
    in_order = [kv[row] for row in sorted(kv)]
    entropy, logprob, logprob_t1 = out[:, :, :step]
    return Decoded(ids[:, :step], lengths, entropy, logprob, logprob_t1, finished, in_order)
