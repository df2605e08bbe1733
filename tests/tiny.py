"""Random policies small enough for a unit test, with the tokenizer of the bundled task."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from i2b_lpo.config import PretrainConfig
from i2b_lpo.model.policy import Policy, make_policy
from i2b_lpo.training.pretraining import build_tokenizer

__all__ = ["PADDING", "tiny_policy", "tiny_tokenizer"]

PADDING = 20  # rows of the embedding beyond the tokenizer, as in Qwen's own checkpoints


@lru_cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(PretrainConfig(), vocab_size=300)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The bundled task's tokenizer with 300 ids; a copy of its own for each caller."""
    return copy.deepcopy(_tokenizer())


def tiny_policy(
    kind: str = "qwen3",
    padded: bool = True,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    **changes: Any,
) -> Policy:
    """A Qwen3 or Qwen2 with random weights: hidden 32, 2 layers, 4 heads of 8, 2 of them KV heads.

    Weights are large enough for clearly peaked distributions. `changes` go to the model's config.
    """
    tokenizer = tiny_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer) + (PADDING if padded else 0),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | changes
    torch.manual_seed(seed)
    if kind == "qwen3":
        model: Any = Qwen3ForCausalLM(Qwen3Config(head_dim=8, **settings))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**settings))
    else:
        raise ValueError(f"kind is {kind!r}; give qwen2 or qwen3.")
    with torch.no_grad():  # biases of zero would hide that they are used
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return make_policy(model.to(dtype).eval(), tokenizer, name=f"tiny {kind}")
