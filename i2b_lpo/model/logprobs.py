"""Teacher-forced log-prob and entropy of every new token, without a (B, T, V) tensor of logits.

At V = 151,936 the logits of 1024 tokens and their gradients take 3 GB in float32. Here the language
model head is applied to a few rows at a time, and the backward pass recomputes those rows' logits
instead of keeping them; both gradients have a closed form.

Not here: sampling (decoding.py), the loss (loss.py), and summing gradients over processes
(updating.py): `policy_logprobs` takes the unwrapped model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from i2b_lpo.method.psa import Injection, tokens_since_fork
from i2b_lpo.model.inject import check_injectable, injected, slot_mask
from i2b_lpo.model.padding import mark, right_pad
from i2b_lpo.model.policy import Policy

__all__ = ["chunked_logprobs", "policy_logprobs", "row_logprobs"]


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    """Some rows' logits as the model's own head gives them, then widened to at least float32."""
    return (hidden @ head.t()).to(torch.promote_types(hidden.dtype, torch.float32))


class _ChunkedLogprobs(torch.autograd.Function):
    """Log π and H with closed-form gradients; p_T = softmax(logits/T), p = softmax(logits).

    ∂ log π / ∂ logit_v = (1[v = id] − p_T(v)) / T and ∂ H / ∂ logit_v = −p(v) (log p(v) + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        ids: Tensor,
        temperature: float,
        vocab: int,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        head = weight[:vocab]
        logp, lse_t, lse, entropy = (
            torch.empty_like(ids, dtype=torch.promote_types(hidden.dtype, torch.float32))
            for _ in range(4)
        )
        for start in range(0, len(ids), rows):
            part = slice(start, start + rows)
            logits = _logits(hidden[part], head)  # (rows, vocab)
            chosen = logits.gather(1, ids[part, None]).squeeze(1)
            lse[part] = logits.logsumexp(1)
            lse_t[part] = lse[part] if temperature == 1 else (logits / temperature).logsumexp(1)
            logp[part] = chosen / temperature - lse_t[part]
            log_p = logits.sub_(lse[part, None])
            entropy[part] = -torch.linalg.vecdot(log_p.exp(), log_p)
        ctx.save_for_backward(hidden, weight, ids, lse_t, lse, entropy)
        ctx.temperature, ctx.vocab, ctx.rows = temperature, vocab, rows
        # An output that the loss doesn't use then costs nothing in the backward pass.
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, ids, lse_t, lse, entropy = ctx.saved_tensors
        if grad_logp is None and grad_entropy is None:
            return None, None, None, None, None, None
        head = weight[: ctx.vocab]
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Rows of padded ids keep gradient 0; the sum over chunks is held in float32 at least.
        grad_weight = torch.zeros_like(weight, dtype=lse.dtype) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(ids), ctx.rows):
                part = slice(start, start + ctx.rows)
                logits = _logits(hidden[part], head)  # (rows, vocab)
                grad: Tensor | None = None
                if grad_logp is not None:
                    scale = (grad_logp[part] / ctx.temperature)[:, None]
                    p_t = (logits / ctx.temperature).sub_(lse_t[part, None]).exp_()
                    grad = p_t.mul_(-scale).scatter_add_(1, ids[part, None], scale)
                if grad_entropy is not None:
                    log_p = logits.sub_(lse[part, None])
                    p = log_p.exp()
                    log_p.add_(entropy[part, None]).mul_(p).mul_(-grad_entropy[part, None])
                    grad = log_p if grad is None else grad.add_(log_p)
                assert grad is not None
                if grad_hidden is not None:
                    grad_hidden[part] = grad.to(hidden.dtype) @ head
                if grad_weight is not None:
                    grad_weight[: ctx.vocab].addmm_(grad.t(), hidden[part].to(grad.dtype))
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk: int = 2**24,
) -> tuple[Tensor, Tensor]:
    r"""Log-prob of each row's token and entropy of its distribution, in chunks of rows.

    .. math:: \log \pi(o_t|\cdot) = \log\mathrm{softmax}(W h_t / T)_{o_t}, \quad
              H_t = -\sum_v \pi(v|\cdot) \log \pi(v|\cdot)

    H as in `entropy.token_entropy`; log π is taken at the sampling temperature T, before top-p, H
    at temperature 1 [D] (METHOD §6). Both are differentiable in `hidden` and `weight`; an output
    that the loss doesn't use costs nothing in the backward pass. Half precision: the products are
    computed as the model's own head does, everything after them in float32. Autocast is ignored.

    Args:
        hidden: last hidden states, shape ``(N, d)``.
        weight: weight of the language model head without bias, shape ``(V, d)``, dtype of `hidden`.
        ids: the token each row predicts, shape ``(N,)``, each below `vocab_size`.
        temperature: T of log π, above 0.
        vocab_size: size of the tokenizer's vocabulary; ids from here on are padding of `weight` and
            have probability 0 in both outputs. ``None`` counts all V.
        chunk: logits held at a time, rows times `vocab_size` (at least one row is).

    Returns:
        ``(logp, entropy)`` in nats, each of shape ``(N,)``, float32 (float64 for float64 input).

    Raises:
        ValueError: if shapes or dtypes don't fit together, an id or `vocab_size` is out of range,
            or `temperature` or `chunk` isn't positive.

    Example:
        >>> hidden, weight = torch.eye(2), torch.zeros(5, 2)
        >>> chunked_logprobs(hidden, weight, torch.tensor([0, 3]), vocab_size=4)  # -log 4, log 4
        (tensor([-1.3863, -1.3863]), tensor([1.3863, 1.3863]))
    """
    if (
        hidden.dim() != 2
        or weight.dim() != 2
        or hidden.shape[1] != weight.shape[1]
        or ids.shape != hidden.shape[:1]
    ):
        raise ValueError(
            "chunked_logprobs needs hidden (N, d), weight (V, d) and ids (N,), got shapes "
            f"{tuple(hidden.shape)}, {tuple(weight.shape)} and {tuple(ids.shape)}."
        )
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise ValueError(
            "hidden and weight must share one floating dtype: convert one of them, got "
            f"{hidden.dtype} and {weight.dtype}."
        )
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}.")
    if chunk < 1:
        raise ValueError(f"chunk is a number of logits and must be at least 1, got {chunk}.")
    vocab = weight.shape[0] if vocab_size is None else vocab_size
    if not 1 <= vocab <= weight.shape[0]:
        raise ValueError(
            f"vocab_size must be between 1 and the {weight.shape[0]} rows of weight, got {vocab}."
        )
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"ids must be integers, got {ids.dtype}.")
    outside = (ids < 0) | (ids >= vocab)
    if bool(outside.any()):
        raise ValueError(
            f"every id must be in 0..{vocab - 1} (the tokenizer's vocabulary), "
            f"got {ids[outside][:5].tolist()}."
        )
    with torch.autocast(hidden.device.type, enabled=False):
        logp, entropy = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden, weight, ids.long(), temperature, vocab, max(1, chunk // vocab)
        )
    return logp, entropy


def policy_logprobs(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_mask: Tensor,
    *,
    temperature: float,
    vocab_size: int,
    injection: Injection | None = None,
    since: Tensor | None = None,
    hold: ExitStack | None = None,
    chunk: int = 2**24,
) -> tuple[Tensor, Tensor]:
    r"""Teacher-forced log-prob and entropy of the new tokens of a padded batch.

    Both outputs are aligned with the tokens: position t holds :math:`\log \pi(o_t|q, o_{<t})` of
    the token that stands at t (METHOD §6). The head is applied only to the rows that predict a
    new token; prompts and padding pass through the transformer alone. Positions are counted from
    the attention mask, so left and right padding give the same values.

    Args:
        model: an unwrapped causal language model (Qwen2, Qwen3) whose head is one matrix. Gradients
            reach its parameters; averaging them over processes is the caller's task.
        input_ids: prompts and new tokens, shape ``(B, T)``.
        attention_mask: 1 on tokens, 0 on padding, shape ``(B, T)``.
        completion_mask: 1 on the new tokens m, 0 on prompt, branch prefix and padding, ``(B, T)``.
        temperature: the sampling temperature, for log π only.
        vocab_size: size of the tokenizer's vocabulary, without padded ids.
        injection: what z became, one row a sequence; None for π without z.
        since: s of each row, tokens since its fork, negative before it, (B, T); with `injection`.
        hold: keeps z in the model until it is closed; one for each pass. Gradient checkpointing
            needs it, because it recomputes the layers in the backward pass.
        chunk: logits held at a time, see `chunked_logprobs`.

    Returns:
        ``(logp, entropy)`` in nats, each ``(B, T)``, 0 where `completion_mask` is 0.

    Raises:
        ValueError: if a new token has no token before it to predict it, is on padding or outside
            the vocabulary, if shapes differ, or if the head is more than one matrix; with an
            injection, if it doesn't fit the model or the batch, or gradient checkpointing is on
            and `hold` is missing.
    """
    if input_ids.dim() != 2 or not input_ids.shape == attention_mask.shape == completion_mask.shape:
        raise ValueError(
            "input_ids, attention_mask and completion_mask must share one shape (B, T), got "
            f"{tuple(input_ids.shape)}, {tuple(attention_mask.shape)} and "
            f"{tuple(completion_mask.shape)}."
        )
    attended, new = attention_mask.bool(), completion_mask.bool()
    predicted = new[:, 1:]  # (B, T - 1): row t of it is predicted by hidden state t
    if bool(new[:, :1].any() or (predicted & ~(attended[:, 1:] & attended[:, :-1])).any()):
        raise ValueError(
            "completion_mask marks a token on padding or with no token before it; mark only new "
            "tokens that follow a prompt token."
        )
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ValueError(
            "policy_logprobs needs a model whose head is one matrix without bias, as in Qwen2 and "
            f"Qwen3, got {head}."
        )
    if head._forward_hooks or head._forward_pre_hooks:
        raise ValueError(
            "the head of the model carries hooks, which policy_logprobs would skip; remove them or "
            "put their effect into the hidden states."
        )
    mask = attended.long()
    log_gamma = torch.empty(0)
    if injection is not None:
        if since is None or since.shape != input_ids.shape:
            raise ValueError(
                "An injection needs since, the tokens since the fork, of shape (B, T)."
            )
        check_injectable(model, injection)
        # Not the model's own property, which changed its name within transformers 5.
        repeated = any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
        if model.training and repeated and hold is None:
            raise ValueError("With gradient checkpointing, give hold= and close it after backward.")
        log_gamma = injection.strength.log_gamma(since, model.dtype)
        if injection.keys is not None:
            mask = slot_mask(attended, log_gamma, model.dtype)
    with ExitStack() as stack:
        (hold or stack).enter_context(injected(model, injection, log_gamma))
        states = model.get_decoder()(
            input_ids=input_ids,
            attention_mask=mask,
            # The model's own default counts padding on the left as positions.
            position_ids=(attended.long().cumsum(-1) - 1).clamp_min(0),
            use_cache=False,
        ).last_hidden_state  # (B, T, d)
    weight = head.weight
    if injection is not None and injection.logits is not None:
        # W h + γ U z is one product of longer vectors: [W, U] [h; γ z].
        z, more = injection.logits
        states = torch.cat([states, (log_gamma.exp()[..., None] * z[:, None]).to(states.dtype)], -1)
        weight = torch.cat([weight, more.to(weight.dtype)], -1)
    logp, entropy = chunked_logprobs(
        states[:, :-1][predicted].to(weight.dtype),  # (N, d); autocast may have narrowed it
        weight,
        input_ids[:, 1:][predicted],
        temperature=temperature,
        vocab_size=vocab_size,
        chunk=chunk,
    )
    blank = logp.new_zeros(input_ids.shape)  # (B, T)
    return blank.masked_scatter(new, logp), blank.masked_scatter(new, entropy)


def row_logprobs(
    policy: Policy,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    injection: Injection | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Log π and H of the tokens that follow a context, for B rows (context, tokens), by one pass.

    Teacher forcing at temperature 1, with the gradient that the policy has. With an injection the
    fork is where the context ends.

    Returns:
        For each row log π and H of its tokens in nats, (T,).

    Raises:
        ValueError: see `policy_logprobs`.
    """
    spans = [(len(context), len(context) + len(own)) for context, own in rows]
    ids, attended = right_pad([(*context, *own) for context, own in rows], policy.pad_id)
    new = mark(spans, ids.shape[1])
    since = tokens_since_fork(ids.shape[1], torch.tensor([p for p, _ in spans])[:, None])
    measured = policy_logprobs(
        policy.model,
        *(t.to(policy.device) for t in (ids, attended, new)),
        temperature=1.0,
        vocab_size=policy.vocab_size,
        injection=injection,
        since=since.to(policy.device),
    )
    logp, entropy = ([v[at, slice(*span)] for at, span in enumerate(spans)] for v in measured)
    return logp, entropy
