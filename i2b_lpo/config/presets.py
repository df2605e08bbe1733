"""Runs by name, from a laptop to eight GPUs, with the source of each value.

`[C]` and `[D]` as in docs/method.md: read in the released code, decided here.
"""

from __future__ import annotations

from i2b_lpo.config.runs import RunConfig
from i2b_lpo.config.sections import GRPOConfig, OptimizerConfig, RolloutConfig

__all__ = ["PRESETS", "preset"]

PRESETS: dict[str, RunConfig] = {
    # Bundled policy and task on a laptop CPU. Values tuned on validation [D].
    "tiny": RunConfig(),
    # One GPU of 24 GB. Sampling from [C]; fewer questions and tokens, a higher rate [D].
    "qwen2.5-0.5b": RunConfig(
        policy="Qwen/Qwen2.5-0.5B-Instruct",
        task="gsm8k",
        steps=200,
        questions=16,
        rollout=RolloutConfig(temperature=0.9, top_p=0.9, max_new_tokens=512, batch=128),
        grpo=GRPOConfig(micro_tokens=16384),
        optimizer=OptimizerConfig(learning_rate=2e-6),
        gradient_checkpointing=True,
    ),
    # 8 GPUs: 32 questions, G=8, rate 1e-6, T=0.9, top-p 0.9, response 4096, bf16, gradient
    # checkpointing, all [C].
    "qwen2.5-7b": RunConfig(
        policy="Qwen/Qwen2.5-7B",
        task="math",
        steps=400,
        questions=32,
        rollout=RolloutConfig(temperature=0.9, top_p=0.9, max_new_tokens=4096, batch=64),
        grpo=GRPOConfig(micro_tokens=16384),
        optimizer=OptimizerConfig(learning_rate=1e-6),
        gradient_checkpointing=True,
    ),
}
"""Runs by name: one dial. Change single values by `dataclasses.replace` or `--set`."""


def preset(name: str) -> RunConfig:
    """A preset by name; ValueError names the known ones."""
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
