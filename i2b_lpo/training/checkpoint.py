"""Checkpoints of a training run: everything its next step depends on, written atomically.

A step is a function of its number, the seed and the weights (step.py): its questions, random
numbers, rollouts and latents follow from these. So a checkpoint is made between two steps and holds
the trained weights, their optimizer state and the metrics so far. Of what doesn't change
(tokenizer, latents, settings, the questions to come) it holds a checksum, and refuses to continue
with anything else.

    checkpoints/step-00000020/   weights.safetensors  optimizer.safetensors  metrics.jsonl
                                 manifest.json: settings, sums, SHA-256 of each file
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from i2b_lpo.config import flat
from i2b_lpo.infra.files import staged
from i2b_lpo.infra.secrets import redact
from i2b_lpo.infra.weights import file_sum
from i2b_lpo.tasks.task import Task
from i2b_lpo.training.learner import Learner
from i2b_lpo.training.processes import gathered, scatter_like

__all__ = ["Checkpoint", "newest_checkpoint", "restore", "save_checkpoint"]

CHECKPOINTS = "checkpoints"
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
METRICS, MANIFEST = "metrics.jsonl", "manifest.json"
FILES = (WEIGHTS, OPTIMIZER, METRICS)
FORMAT = 1
# What may differ when a run continues: how far it goes, how often it is saved, where its questions
# and latents are (their sums identify them), settings that the others make idle, …
FREE = {"steps", "checkpoint.every", "checkpoint.keep", "data", "branch.latents"}
# … and where it runs and what bounds memory, which changes the order of sums, or which rows are
# decoded together.
NOT_BIT_FOR_BIT = {"device", "rollout.batch", "grpo.micro_tokens", "gradient_checkpointing"}


class CheckpointWarning(UserWarning):
    """A checkpoint that can't be used, or a run that won't continue bit for bit."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are all as they were written.

    Attributes:
        step: steps done; the next one has this number.
        manifest: settings and sums.
    """

    folder: Path
    step: int
    manifest: dict[str, Any]

    def history(self) -> list[dict[str, float]]:
        """The metrics of the steps done."""
        text = (self.folder / METRICS).read_text(encoding="ascii")
        return [json.loads(line) for line in text.splitlines()]


def save_checkpoint(
    learner: Learner, task: Task, output: Path, history: Sequence[Mapping[str, float]]
) -> None:
    """Write a checkpoint after `len(history)` steps; keeps the newest `checkpoint.keep`.

    Every process calls it; the first one writes.

    Raises:
        OSError: it can't be written, e.g. the disk is full; older checkpoints are left intact.
    """
    weights, moments = _tensors(learner)
    if not learner.accelerator.is_main_process:
        return
    root, step = output / CHECKPOINTS, len(history)
    folder = root / f"step-{step:08}"
    try:
        with staged(folder) as part:
            save_file(weights, part / WEIGHTS)
            save_file(moments, part / OPTIMIZER)
            (part / METRICS).write_text("".join(json.dumps(row) + "\n" for row in history))
            manifest = {
                "format": FORMAT,
                "step": step,
                **_identity(learner, task, step),
                "files": {name: file_sum(part / name) for name in FILES},
            }
            (part / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"Can't write the checkpoint of step {step} to {folder} ({error}); older checkpoints "
            "are intact. Free some space, then continue with --resume."
        ) from error
    for old in sorted(root.glob("step-*"))[: -learner.config.checkpoint.keep]:
        shutil.rmtree(old, ignore_errors=True)


def newest_checkpoint(output: Path) -> Checkpoint | None:
    """The newest checkpoint of a run with all files intact; None if there is none yet.

    Warns of each newer one that is broken.

    Raises:
        ValueError: there are checkpoints, but every one is broken.
    """
    broken = []
    for folder in sorted((output / CHECKPOINTS).glob("step-*"), reverse=True):
        try:
            return _checked(folder)
        except (KeyError, OSError, TypeError, ValueError) as error:
            broken.append(folder.name)
            warnings.warn(
                f"The checkpoint {folder} is broken ({error}); trying the one before it.",
                CheckpointWarning,
                stacklevel=2,
            )
    if broken:
        raise ValueError(
            f"No checkpoint in {output / CHECKPOINTS} is whole ({', '.join(broken)}); start again "
            "in another folder, or copy a whole checkpoint there."
        )
    return None


def restore(learner: Learner, task: Task, checkpoint: Checkpoint) -> list[dict[str, float]]:
    """Restore the learner from the checkpoint; returns the metrics of the steps so far.

    Raises:
        ValueError: the run has other settings, processes, questions, tokenizer, latents or sizes
            than the checkpoint; names them. Nothing was changed.
    """
    _refuse_other(learner, task, checkpoint)
    weights, moments = (load_file(checkpoint.folder / name) for name in (WEIGHTS, OPTIMIZER))
    parameters = learner.trained()
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    if shapes != {name: tuple(t.shape) for name, t in weights.items()}:
        raise ValueError(
            f"The checkpoint {checkpoint.folder} holds weights of other names or sizes than "
            f"{learner.policy.name}; continue with the policy it was made with."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(scatter_like(parameter, weights[name]))
    learner.optimizer.state.clear()
    for key, tensor in moments.items():
        name, _, moment = key.rpartition("/")
        parameter = parameters[name]
        # AdamW counts its steps in a tensor that stays on the CPU.
        learner.optimizer.state[parameter][moment] = (
            scatter_like(parameter, tensor) if tensor.shape == parameter.shape else tensor
        )
    return checkpoint.history()


# --- what is saved ------------------------------------------------------------------------------


def _tensors(learner: Learner) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The trained weights and their moments, whole, on the CPU; every process takes part."""
    weights, moments = {}, {}
    for name, parameter in learner.trained().items():
        weights[name] = gathered(parameter)
        for moment, tensor in learner.optimizer.state.get(parameter, {}).items():
            moments[f"{name}/{moment}"] = gathered(tensor)
    return tuple(
        {n: t.detach().cpu().contiguous() for n, t in named.items()} for named in (weights, moments)
    )  # type: ignore[return-value]


def _identity(learner: Learner, task: Task, step: int) -> dict[str, Any]:
    """What a run must share with a checkpoint to continue from it."""
    policy, config = learner.policy, learner.config
    tokenizer = [sorted(policy.tokenizer.get_vocab().items()), policy.tokenizer.chat_template]
    questions = [
        (q.id, q.text, q.answer) for q in task.batch(step, config.questions, seed=config.seed)
    ]
    frozen = {}
    if (steering := learner.steering) is not None:
        modules = {"cvae": steering.cvae, "fusion": steering.fusion}
        if config.grpo.train_psa:
            del modules["fusion"]  # among the weights
        frozen = {
            f"{part}.{name}": tensor.cpu().contiguous()
            for part, module in modules.items()
            for name, tensor in module.state_dict().items()
        }
    strength = None if steering is None else [steering.fusion_name, asdict(steering.strength)]
    idle = config.idle()
    return {
        "config": redact({k: v for k, v in flat(config).items() if k not in idle}),
        "processes": learner.accelerator.num_processes,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "sums": {
            "prompts": _sum(json.dumps([tokenizer, policy.instruction]).encode()),
            "questions": _sum(json.dumps(questions).encode()),
            "latents": _sum(save(frozen) + json.dumps(strength).encode()),
        },
    }


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- what is refused ----------------------------------------------------------------------------


def _checked(folder: Path) -> Checkpoint:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"no {MANIFEST}") from error
    if manifest["format"] != FORMAT:
        raise ValueError(f"format {manifest['format']}, this version reads {FORMAT}")
    for name in FILES:
        if not (folder / name).is_file():
            raise ValueError(f"no {name}")
        if file_sum(folder / name) != manifest["files"][name]:
            raise ValueError(f"{name} was cut off or changed")
    return Checkpoint(folder, manifest["step"], manifest)


def _change(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    was, is_now = (repr(s[name]) if name in s else "idle" for s in (before, now))
    return f"{name} {was} → {is_now}"


def _refuse_other(learner: Learner, task: Task, checkpoint: Checkpoint) -> None:
    old = checkpoint.manifest
    new = _identity(learner, task, checkpoint.step)
    where = f"The checkpoint {checkpoint.folder}"
    if new["processes"] != old["processes"]:
        raise ValueError(
            f"{where} was made by {old['processes']} process(es) and this run has "
            f"{new['processes']}: each draws its own random numbers, so the run would become a "
            f"different one. Continue with {old['processes']}."
        )
    before, now = old["config"], new["config"]
    changed = [k for k in sorted(before | now) if before.get(k) != now.get(k) and k not in FREE]
    if refused := [k for k in changed if k not in NOT_BIT_FOR_BIT]:
        listed = ", ".join(_change(k, before, now) for k in refused)
        raise ValueError(
            f"{where} has other settings than this run ({listed}); continue with the same ones, or "
            "start in another folder."
        )
    what = {
        "prompts": "tokenizer, chat template or instruction",
        "questions": "the task's questions",
        "latents": "the latents",
    }
    if different := [what[k] for k in what if new["sums"][k] != old["sums"][k]]:
        raise ValueError(
            f"{where} was made with other data: {', '.join(different)} changed since. Restore the "
            "old data, or start in another folder."
        )
    drift = [_change(k, before, now) for k in changed]
    drift += [
        f"{k} {v} → {new['versions'][k]}"
        for k, v in old["versions"].items()
        if v != new["versions"][k]
    ]
    if drift:
        warnings.warn(
            f"The run continues, but not bit for bit as before ({', '.join(drift)}).",
            CheckpointWarning,
            stacklevel=3,
        )
