"""The one decode loop: batched sampling with a KV cache, entropy and log-probs on the way.

The forward pass is the model's own. Each prompt is read once, however many samples it gets; rows
that have ended leave the batch. Left out on purpose: beam search, penalties, top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from i2b_lpo.entropy import token_entropy
from i2b_lpo.policy import Policy

__all__ = ["Decoded", "Sampling", "decode", "left_pad"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: length limit in tokens.
        temperature: softmax temperature; 0 is greedy.
        top_p: draw from the smallest set of tokens that holds this much probability.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; give at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; give 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; give a number above 0 and up to 1.")


@dataclass(frozen=True)
class Decoded:
    """What was drawn, one row a sample: B = prompts × samples rows, T = the longest row's tokens.

    Attributes:
        ids: (B, T) new tokens, end token included, then `pad_id`.
        lengths: (B,) new tokens of each row; beyond them every field is padding (zeros).
        entropy: (B, T) H_t in nats at temperature 1 (METHOD §1).
        logprob: (B, T) log π at the sampling temperature, before top-p (METHOD §6); at
            temperature 1 where decoding was greedy.
        logprob_t1: (B, T) log π at temperature 1.
        finished: (B,) True if the row drew an end token, False if the length limit cut it off.
    """

    ids: Tensor
    lengths: Tensor
    entropy: Tensor
    logprob: Tensor
    logprob_t1: Tensor
    finished: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, T) bool, True on new tokens."""
        steps = torch.arange(self.ids.shape[1], device=self.ids.device)
        return steps < self.lengths[:, None]


class _RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer with spare room, so that a step writes one column and copies nothing."""

    ROOM = 64  # columns added when the room is used up
    _buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._has_room(end):
            if not start:
                self.lazy_initialization(key_states, value_states)
            batch, heads, _, size = key_states.shape
            shape = (batch, heads, end + self.ROOM, size)
            self._buffers = key_states.new_empty(shape), value_states.new_empty(shape)
            if start and self.keys is not None and self.values is not None:
                self._buffers[0][:, :, :start] = self.keys
                self._buffers[1][:, :, :start] = self.values
        assert self._buffers is not None
        keys, values = self._buffers
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        if self._buffers is None or not self._has_room(end := self.get_seq_length()):
            super().batch_select_indices(indices)
            return
        # The spare room is selected too, so that the next step needs no new buffer.
        keys, values = (buffer[indices] for buffer in self._buffers)
        self._buffers = keys, values
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]

    def _has_room(self, end: int) -> bool:
        # Repeating rows replaces `keys` by a fresh tensor: then the buffer is stale.
        return (
            self._buffers is not None
            and self.keys is not None
            and self.keys.data_ptr() == self._buffers[0].data_ptr()
            and self.keys.shape[0] == self._buffers[0].shape[0]
            and end <= self._buffers[0].shape[-2]
        )


@torch.inference_mode()  # faster than no_grad; what is made of the logits are ordinary tensors
def _last_logits(model: Any, ids: Tensor, mask: Tensor, position: Tensor, cache: Cache) -> Tensor:
    """Logits after the last of `ids`, (B, V); the cache grows by the columns of `ids`."""
    logits: Tensor = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    return logits[:, -1]


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Left-padded ids (B, T) and their attention mask (B, T) of 0 and 1."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return ids, mask


def _keep_nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens whose probability reaches `top_p`; (B, V)."""
    sorted_probs, order = probs.sort(dim=-1, descending=True)
    before = sorted_probs.cumsum(-1) - sorted_probs
    return probs.scatter(-1, order, sorted_probs.masked_fill(before >= top_p, 0.0))


def _draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """One token a row by the inverse distribution function: (B, V), (B,) → (B,)."""
    # float64: a float32 `uniform` below 1 then stays below the total. A token of probability 0
    # is never drawn, since its step of the function has no height. (torch.multinomial is slow on
    # CPU: it draws V random numbers a row.)
    cdf = probs.cumsum(-1, dtype=torch.float64)
    at = uniform.to(cdf.device, torch.float64)[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, at, right=True)[:, 0]


@torch.no_grad()
def decode(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Decoded:
    """Continue each prompt `samples` times; rows of one prompt are neighbours.

    A row's random numbers depend on its place in the call and its step, not on which other rows
    have ended.

    Args:
        policy: the policy to sample from.
        prompts: token ids, any lengths; none empty.
        sampling: length limit, temperature and top-p.
        samples: continuations per prompt.
        generator: source of randomness; needed unless decoding is greedy.
        on_step: called after each step with (tokens decoded per row, rows still going).

    Raises:
        ValueError: no prompts, an empty one, one that leaves no room for `max_new_tokens`, or
            sampling without a generator.
    """
    if not prompts or not all(prompts):
        raise ValueError("decode needs at least one prompt, and every prompt at least one token.")
    if samples < 1:
        raise ValueError(f"samples is {samples}; give at least 1.")
    greedy = sampling.temperature == 0
    if generator is None and not greedy:
        raise ValueError("Sampling needs a torch.Generator; pass generator= or temperature=0.")
    longest = max(map(len, prompts))
    room = policy.model.config.max_position_embeddings
    if longest + sampling.max_new_tokens > room:
        raise ValueError(
            f"A prompt of {longest} tokens and {sampling.max_new_tokens} new ones exceed the "
            f"{room} positions of {policy.name}; shorten one of them."
        )
    model, device = policy.model, policy.device
    if model.training and model.is_gradient_checkpointing:
        # transformers would drop the cache with a warning: a step would see its last token alone.
        raise ValueError(
            f"{policy.name} is in training mode with gradient checkpointing, which switches its "
            "cache off; call policy.model.eval() before decoding."
        )
    ids, mask = (t.to(device) for t in left_pad(prompts, policy.pad_id))
    batch, width = len(prompts) * samples, sampling.max_new_tokens

    # Read every prompt once, then give each sample its own copy of the cache.
    cache = Cache(layer_class_to_replicate=_RoomyLayer)
    position = mask.cumsum(-1) - 1
    logits = _last_logits(model, ids, mask, position.clamp(min=0), cache)
    cache.batch_repeat_interleave(samples)
    logits = logits.repeat_interleave(samples, 0)
    position = position[:, -1:].repeat_interleave(samples, 0)  # (B, 1), of the last token read
    prompt_width = ids.shape[1]
    mask = torch.cat(  # with all columns to come; a step uses a slice of it
        [mask.repeat_interleave(samples, 0), mask.new_ones(batch, width)], dim=1
    )

    out_ids = torch.full((batch, width), policy.pad_id, device=device)
    work = torch.promote_types(logits.dtype, torch.float32)
    out = torch.zeros(3, batch, width, dtype=work, device=device)  # entropy, logprob, logprob_t1
    lengths = torch.full((batch,), width, device=device)
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    eos = torch.tensor(policy.eos_ids, device=device)
    live = torch.arange(batch, device=device)  # the rows still in the batch
    step = 0
    while True:
        log_p = logits[:, : policy.vocab_size].to(work).log_softmax(-1)  # (b, V)
        log_q = log_p
        if not greedy and sampling.temperature != 1:
            log_q = (log_p / sampling.temperature).log_softmax(-1)
        if log_q[:, 0].isnan().any():  # one NaN logit makes the whole row NaN
            raise FloatingPointError(
                f"New token {step + 1}: the logits of {policy.name} are not finite; its weights "
                "are damaged or its training has diverged, load an earlier one."
            )
        if greedy:
            token = log_p.argmax(-1)
        else:
            probs = log_q.exp()
            if sampling.top_p < 1:
                probs = _keep_nucleus(probs, sampling.top_p)
            assert generator is not None
            uniform = torch.rand(batch, generator=generator, device=generator.device)
            token = _draw(probs, uniform.to(device)[live])
        out_ids[live, step] = token
        out[0, live, step] = token_entropy(log_p)
        out[1, live, step] = log_q.gather(-1, token[:, None])[:, 0]
        out[2, live, step] = log_p.gather(-1, token[:, None])[:, 0]
        ended = torch.isin(token, eos)
        step += 1
        if ended.any():
            lengths[live[ended]] = step
            finished[live[ended]] = True
            keep = (~ended).nonzero()[:, 0]
            live, token, position, mask = live[keep], token[keep], position[keep], mask[keep]
            if len(keep):
                cache.batch_select_indices(keep)
        if on_step is not None:
            on_step(step, len(live))
        if step == width or not len(live):
            break
        position = position + 1
        columns = prompt_width + step
        logits = _last_logits(model, token[:, None], mask[:, :columns], position, cache)
    out_ids, out = out_ids[:, :step], out[:, :, :step]
    return Decoded(out_ids, lengths, out[0], out[1], out[2], finished)
