"""What `i2b-lpo info` says: of the installation, and of a run before it begins."""

from __future__ import annotations

import os
import textwrap

import i2b_lpo
from i2b_lpo.config import PRESETS, RunConfig, flat, preset
from i2b_lpo.method.methods import METHODS

__all__ = ["installed", "summary"]

# What the first lines of a summary tell.
_TOLD = (
    "method", "policy", "task", "steps", "questions", "rollout.rollouts", "branch.branches",
    "rollout.max_new_tokens", "optimizer.learning_rate",
)  # fmt: skip


def installed() -> str:
    """Versions, machine, tasks, presets and bundled policies."""
    import accelerate
    import torch
    import transformers

    from i2b_lpo.model.policy import BUNDLED, asset_path
    from i2b_lpo.tasks.benchmarks import BENCHMARKS
    from i2b_lpo.tasks.domains import DOMAINS

    own = [task for domain in DOMAINS.values() for task in domain.tasks]
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    lines = [
        f"i2b-lpo {i2b_lpo.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, accelerate {accelerate.__version__}",
        f"processor cores {os.cpu_count()}, torch threads {torch.get_num_threads()}, GPU {cuda}",
        f"tasks: {', '.join(own)} (bundled), {', '.join(BENCHMARKS)} (Hugging Face hub)",
        f"methods: {', '.join(METHODS)}",
        f"presets: {', '.join(PRESETS)}",
        "bundled policies:",
        *(f"  {name}: {what} ({asset_path(name)})" for name, what in BUNDLED.items()),
    ]
    return "\n".join(lines) + "\n"


def summary(run: RunConfig) -> str:
    """A run in a few lines; what isn't said is as in the preset `tiny`."""
    before, method = flat(preset("tiny")), METHODS[run.method]
    changed = [
        f"{name}={value}"
        for name, value in flat(run).items()
        if value != before[name] and name not in _TOLD
    ]
    branches = f", each with K = {run.branch.branches} branches" if run.branch.branches else ""
    lines = [
        f"{method.title} ({method.source}): {run.policy} on {run.task}",
        f"{run.steps} steps of {run.questions} questions × G = {run.group} trajectories "
        f"(M = {run.rollout.rollouts} rollouts{branches})",
        f"at most {run.rollout.max_new_tokens} new tokens each; learning rate "
        f"{run.optimizer.learning_rate:g}",
        *textwrap.wrap(
            f"differs from the preset tiny in: {', '.join(changed) or 'nothing else'}",
            98,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        ),
        "every setting, as a file for --config: the same command with --toml",
    ]
    return "\n".join(lines) + "\n"
