"""Records that every stage hands to the next, and their JSON form. No torch here.

``Question → Rollout → Trace``: a trace holds one question with all that was generated for it, so a
saved file opens, reads and draws on a machine without torch.
"""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Question", "Rollout", "Trace", "read_traces", "write_traces"]


@dataclass(frozen=True)
class Question:
    """A question with its verified answer `a`. `level` 0 means: the source gives no level."""

    id: str
    text: str
    answer: str
    task: str = ""
    level: int = 0


@dataclass(frozen=True)
class Rollout:
    """One trajectory `o` for a question, token by token.

    All per-token fields have one entry for each of the T new tokens, end token included.

    Attributes:
        ids: token ids, length T.
        pieces: the text of each token by itself, special tokens included (a character that spans
            several tokens shows as �).
        entropies: H_t in nats, before token t was drawn, at temperature 1 (METHOD §1).
        logprobs: log π(o_t) in nats at the sampling temperature, before top-p.
        logprobs_t1: log π(o_t) in nats at temperature 1.
        text: the decoded text without special tokens.
        finished: the end token was drawn; False if the length limit cut it off.
        reward: R, or None before verification.
        reason: the verdict's reason (`i2b_lpo.verify.Reason`), "" before verification.
    """

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    entropies: tuple[float, ...]
    logprobs: tuple[float, ...]
    logprobs_t1: tuple[float, ...]
    text: str
    finished: bool
    reward: float | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        lengths = {
            name: len(getattr(self, name))
            for name in ("ids", "pieces", "entropies", "logprobs", "logprobs_t1")
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(f"A rollout needs one entry per token in every field, got {lengths}.")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Trace:
    """A question, the exact prompt tokens the policy saw, and its rollouts."""

    question: Question
    prompt_ids: tuple[int, ...]
    rollouts: tuple[Rollout, ...]
    policy: str = ""
    temperature: float = 1.0
    top_p: float = 1.0
    meta: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A plain dict; `Trace.from_json` gives back an equal record."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Trace:
        """Build a trace from `to_json`'s dict.

        Raises:
            ValueError: a field is missing or unknown.
        """
        try:
            rollouts = tuple(_rollout(row) for row in data["rollouts"])
            done = ("question", "prompt_ids", "rollouts")
            rest = {k: v for k, v in data.items() if k not in done}
            return cls(Question(**data["question"]), tuple(data["prompt_ids"]), rollouts, **rest)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"Not a saved trace: {error}; write one with write_traces.") from error

    def __str__(self) -> str:
        lines = [f"{self.question.text}  (answer {self.question.answer})"]
        for i, rollout in enumerate(self.rollouts):
            mean = sum(rollout.entropies) / max(1, len(rollout))
            verdict = rollout.reason or "not verified"
            lines.append(f"  [{i}] {len(rollout)} tokens, mean H {mean:.3f} nat, {verdict}")
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def _rollout(row: dict[str, Any]) -> Rollout:
    # JSON has no tuples.
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return Rollout(**fields)


def write_traces(path: str | Path, traces: Iterable[Trace]) -> None:
    """Write traces as JSON lines (ASCII, so any model text survives)."""
    # All of it before the file is opened: `traces` may come from that very file.
    lines = [json.dumps(trace.to_json()) + "\n" for trace in traces]
    with Path(path).open("w", encoding="ascii", newline="\n") as file:
        file.writelines(lines)


def read_traces(path: str | Path) -> Iterator[Trace]:
    """Read traces written by `write_traces`.

    Raises:
        ValueError: a line is not a trace; the message names the file and the line.
    """
    # A byte beyond ASCII becomes an escape that JSON doesn't know, so its line is named below.
    with Path(path).open(encoding="ascii", errors="backslashreplace") as file:
        for number, line in enumerate(file, 1):
            try:
                yield Trace.from_json(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
