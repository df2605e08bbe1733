"""What is kept of a running evaluation, so that it can stop and continue with the same result."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from i2b_lpo.infra.files import write_text
from i2b_lpo.model.policy import Policy
from i2b_lpo.trace import Question, Trace

__all__ = ["open_parts", "read_part", "write_part"]


def open_parts(
    parts: Path, policy: Policy, questions: Sequence[Question], settings: dict[str, Any]
) -> None:
    """Create the folder, or refuse one of another evaluation.

    Raises:
        ValueError: it belongs to another evaluation; says what differs.
    """
    weights = hashlib.sha256()
    for tensor in policy.model.state_dict().values():
        weights.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    asked = json.dumps([policy.prompts(questions), [q.answer for q in questions]])
    settings |= {
        "weights": weights.hexdigest(),
        "questions": hashlib.sha256(asked.encode()).hexdigest(),
    }
    file = parts / "settings.json"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if changed := [name for name in settings if before.get(name) != settings[name]]:
            raise ValueError(
                f"{parts} holds another evaluation, with other {', '.join(changed)}; continue with "
                "the settings it was started with, or choose another folder."
            )
    else:
        parts.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(settings, indent=2) + "\n")


def write_part(file: Path, traces: Sequence[Trace], generator: torch.Generator) -> None:
    """Keep the traces of one batch, and the state in which they left the generator."""
    # With that state, the next batch draws as if there had been no stop.
    state = bytes(generator.get_state().tolist()).hex()
    part = {"generator": state, "traces": [trace.to_json() for trace in traces]}
    write_text(file, json.dumps(part))


def read_part(file: Path, generator: torch.Generator) -> list[Trace] | None:
    """A kept batch, with the generator set to continue after it; None if there is none.

    A damaged file counts as none, with a warning.
    """
    if not file.is_file():
        return None
    try:
        part = json.loads(file.read_text(encoding="utf-8"))
        state = torch.tensor(list(bytes.fromhex(part["generator"])), dtype=torch.uint8)
        traces = [Trace.from_json(trace) for trace in part["traces"]]
    except (KeyError, TypeError, ValueError) as error:
        warnings.warn(f"{file} is damaged ({error}); its batch is decoded again.", stacklevel=3)
        return None
    generator.set_state(state)
    return traces
