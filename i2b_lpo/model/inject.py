"""Puts an `Injection` into a Qwen2 or Qwen3 for the calls in a ``with`` block, then removes it.

The model's own attention does the work: PSA's slot is an extra column of keys and values, and
log γ(s) an extra column of the additive mask. In decoding the slot is in the cache (`cache.py`); in
a teacher-forced pass each attention layer gets it here, so that gradients reach z and every U, and
gradient checkpointing stays possible. Left out: flash-attention kernels, which take no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from i2b_lpo.method.psa import Injection, Shape

__all__ = ["MASKED", "check_injectable", "injected", "shape_of", "slot_mask"]

MASKED = -1e30
"""Stands for −∞ in masks: exp of it is 0 as well, but a row that sees nothing gives no NaN."""


def shape_of(model: Any) -> Shape:
    """The sizes of `model` that a fusion needs."""
    config = model.config
    heads = config.num_attention_heads
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab=model.get_output_embeddings().weight.shape[0],
    )


def check_injectable(model: Any, injection: Injection) -> None:
    """Refuse what would be silently skipped: other shapes, kernels without a mask.

    Raises:
        ValueError: the injection was made for a model of other sizes, the attention implementation
            takes no additive mask, or a layer attends to a sliding window.
    """
    shape = shape_of(model)
    sizes: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "keys": (injection.keys, (shape.layers, shape.kv_heads, shape.head_dim)),
        "values": (injection.values, (shape.layers, shape.kv_heads, shape.head_dim)),
        "norms": (injection.norms, (shape.layers, shape.hidden)),
    }
    if (embedding := injection.embedding) is not None:
        sizes["embedding"] = (embedding[None], (1, shape.hidden))
    if (residual := injection.residual) is not None:
        sizes["residual"] = (residual, (min(len(residual), shape.layers), shape.hidden))
    for name, (tensor, expected) in sizes.items():
        if tensor is not None and (tensor.shape[0], *tensor.shape[2:]) != expected:
            raise ValueError(
                f"The latent's {name} have shape {tuple(tensor.shape)}, but this model needs "
                f"(layers, rows, ...) = {expected[0]}, rows, {expected[1:]}; use latents that were "
                "trained for it (i2b-lpo train-latents)."
            )
    if injection.logits is not None and injection.logits[1].shape[0] != shape.vocab:
        raise ValueError("The softmax fusion was made for another vocabulary; train it again.")
    if injection.keys is None:
        return
    kind = model.config._attn_implementation
    if kind not in ("sdpa", "eager"):
        raise ValueError(
            f"PSA needs an attention that takes an additive mask, not {kind!r}: load the model "
            'with attn_implementation="sdpa".'
        )
    if "sliding_attention" in (getattr(model.config, "layer_types", None) or ()):
        raise ValueError("PSA works with full attention only; set use_sliding_window=False.")


def slot_mask(attended: Tensor, log_gamma: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask whose column 0 is the slot: causal, without padding, log γ for the slot.

    Args:
        attended: True (or 1) on tokens, (B, C) columns without the slot.
        log_gamma: log γ(s) of the rows of this pass, the last T of the C columns, (B, T).
        dtype: of the model's activations.

    Returns:
        (B, 1, T, 1 + C).
    """
    rows, columns = log_gamma.shape[1], attended.shape[1]
    at = torch.arange(columns, device=attended.device)
    seen = at <= at[columns - rows :, None]  # (T, C)
    visible = seen & attended.bool()[:, None]  # (B, T, C)
    lowest = max(MASKED, torch.finfo(dtype).min)  # float16 has no -1e30
    mask = torch.zeros(visible.shape, dtype=dtype, device=attended.device)
    mask = mask.masked_fill(~visible, lowest)
    slot = log_gamma.clamp_min(lowest).to(dtype)[..., None]
    return torch.cat([slot, mask], -1)[:, None]


class _Slot:
    """Takes the place of a layer's cache and puts the slot before its keys and values."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.slot = key[:, :, None], value[:, :, None]  # (B, kv_heads, 1, head_dim)

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        both = zip(self.slot, (keys, values), strict=True)
        one, two = (torch.cat([slot.to(states.dtype), states], 2) for slot, states in both)
        return one, two


@contextmanager
def _replaced(module: Any, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replace the module's own `forward`, and restore the module afterwards."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _shifted_norm(norm: Any, shift: Tensor) -> Callable[[Tensor], Tensor]:
    """RMSNorm with the weight w + shift, (B, T, d), step by step as transformers computes it."""

    def forward(hidden: Tensor) -> Tensor:
        wide = hidden.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
        weight: Tensor = norm.weight + shift.to(norm.weight.dtype)
        return weight * wide.to(hidden.dtype)

    return forward


@contextmanager
def injected(
    model: Any, injection: Injection | None, log_gamma: Tensor, *, slot_in_cache: bool = False
) -> Iterator[None]:
    """Let z act on the passes inside the block; afterwards the model is bit for bit as before.

    If the injection has keys, the caller gives the model the mask of `slot_mask`.

    Args:
        model: a Qwen2 or Qwen3 causal language model.
        injection: what z became, one row for each row of the batch; None does nothing.
        log_gamma: log γ(s) of the rows of the pass, (B, T), at least as wide as the model.
        slot_in_cache: the cache already holds k_z and v_z as its first column.

    The softmax fusion has no place inside the model: `logprobs.py` and `decoding.py` add its term
    where they take the logits.

    Raises:
        ValueError: there isn't one latent for each row.
    """
    if injection is None:
        yield
        return
    injection.check_rows(len(log_gamma))
    gamma = log_gamma.exp()[..., None]  # (B, T, 1)
    decoder = model.get_decoder()
    with ExitStack() as stack:
        if injection.norms is not None:
            for layer, shift in zip(decoder.layers, injection.norms, strict=True):
                norm = layer.input_layernorm
                moved = gamma * shift[:, None]  # (B, T, d)
                stack.enter_context(_replaced(norm, _shifted_norm(norm, moved)))
        if injection.keys is not None and injection.values is not None and not slot_in_cache:
            for layer, key, value in zip(
                decoder.layers, injection.keys, injection.values, strict=True
            ):
                slot = _Slot(key, value)

                def give_slot(_: Any, args: Any, kwargs: Any, slot: _Slot = slot) -> Any:
                    return args, kwargs | {"past_key_values": slot}

                hook = layer.self_attn.register_forward_pre_hook(give_slot, with_kwargs=True)
                stack.callback(hook.remove)
        if injection.embedding is not None:
            hook = decoder.embed_tokens.register_forward_hook(_adding(injection.embedding, gamma))
            stack.callback(hook.remove)
        if injection.residual is not None:
            last = decoder.layers[-len(injection.residual) :]
            for layer, shift in zip(last, injection.residual, strict=True):
                hook = layer.register_forward_hook(_adding(shift, gamma))
                stack.callback(hook.remove)
        yield


def _adding(shift: Tensor, gamma: Tensor) -> Callable[[Any, Any, Tensor], Tensor]:
    """A hook that adds γ(s) times `shift`, (B, d), to a module's output, (B, T, d)."""

    def hook(_: Any, __: Any, output: Tensor) -> Tensor:
        return output + (gamma * shift[:, None]).to(output.dtype)

    return hook
