"""The records that each stage passes to the next, and their JSON form. No torch here.

``Question → Rollout → Branch → Trace``: a trace is the tree of one question, with everything that
was generated for it, so a saved file can be opened, read and drawn on a machine without torch.
"""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from i2b_lpo.infra.files import write_text
from i2b_lpo.infra.text import visible

__all__ = [
    "Branch",
    "Question",
    "Rollout",
    "Score",
    "Trace",
    "is_correct",
    "read_traces",
    "write_traces",
]


def is_correct(reward: float | None) -> bool:
    """Whether a reward says that the answer is right: 1, as a verdict gives, or more [D].

    This is decided only here. A partial reward, as a custom reward may give, is not right, and
    neither is a trajectory that wasn't verified.

    >>> [is_correct(reward) for reward in (None, 0.0, 0.9, 1.0, 1.5)]
    [False, False, False, True, True]
    """
    return reward is not None and reward >= 1.0


@dataclass(frozen=True)
class Question:
    """A question with its verified answer `a`.

    Attributes:
        level: 0 means that the source gives no level.
        domain: how it is asked and judged, an entry of `i2b_lpo.tasks.DOMAINS`.
        checks: what the domain judges with besides the answer, such as unit tests.
    """

    id: str
    text: str
    answer: str
    task: str = ""
    level: int = 0
    domain: str = "maths"
    checks: str = ""

    def to_json(self) -> dict[str, Any]:
        """A plain dict; a domain and checks only where they aren't the usual ones."""
        row = dataclasses.asdict(self)
        usual = {"domain": "maths", "checks": ""}
        return {name: value for name, value in row.items() if usual.get(name) != value}


@dataclass(frozen=True)
class Branch:
    """How a trajectory was branched off another one (METHOD §2–§4).

    Attributes:
        parent: index of the trajectory it was branched off, in `Trace.rollouts`.
        p: number of tokens before the fork, prompt included: the prefix c.
        fusion: how z entered, a name of `i2b_lpo.method.FUSIONS`, or "none" for re-sampling.
        z: the latent, d_z numbers; empty for "none".
        gamma: γ_0, strength of the injection at the fork.
        decay: s_0 in tokens of γ(s) = γ_0 exp(−s/s_0); None if γ is constant.
        version: of the latents z was drawn from (`Steering.version`); 0 if that wasn't recorded.
        round: 1 for a branch of a rollout, 2 for a branch of a branch, …
    """

    parent: int
    p: int
    fusion: str = "none"
    z: tuple[float, ...] = ()
    gamma: float = 0.0
    decay: float | None = None
    round: int = 1
    version: int = 0


@dataclass(frozen=True)
class Score:
    """S_IB of a trajectory with its two parts: ``value = answer − cost`` (METHOD §5).

    The unit depends on the estimator: the default's answer part is a difference of probabilities,
    that of the others is in nats per token.

    Attributes:
        value: S_IB.
        answer: what the trajectory tells about the verified answer, β_IB I(o;a).
        cost: what it spends beyond that, I(q;o).
    """

    value: float
    answer: float
    cost: float


@dataclass(frozen=True)
class Rollout:
    """One trajectory `o` for a question, token by token, from the prompt's end to its own.

    All per-token fields have one entry for each of the T tokens, end token included. A branch
    begins with its parent's tokens and their measurements; only the tokens from its fork on are its
    own (`Trace.start`), sampled and measured with its z.

    Attributes:
        ids: token ids, length T.
        pieces: the text of each single token, special tokens included (a character that spans
            several tokens shows as �).
        entropies: H_t in nats, before token t was drawn, at temperature 1 (METHOD §1).
        logprobs: log π(o_t) in nats at the sampling temperature, before top-p.
        logprobs_t1: log π(o_t) in nats at temperature 1.
        text: the decoded text without special tokens.
        finished: the end token was drawn; False if the length limit cut it off.
        reward: R, or None before verification.
        reason: the verdict's reason (`i2b_lpo.verify.Reason`), "" before verification.
        branch: where it was branched off; None for a first rollout (a root).
        score: S_IB with its parts, or None before scoring.
        kept: False if the filter pruned it: it then takes no part in the update.
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
    branch: Branch | None = None
    score: Score | None = None
    kept: bool = True

    def __post_init__(self) -> None:
        lengths = {
            name: len(getattr(self, name))
            for name in ("ids", "pieces", "entropies", "logprobs", "logprobs_t1")
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(f"A rollout needs one entry per token in every field, got {lengths}.")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def correct(self) -> bool:
        """Whether its reward says that the answer is right (`is_correct`)."""
        return is_correct(self.reward)


@dataclass(frozen=True)
class Trace:
    """A question, the exact prompt tokens the policy saw, and its trajectories: a tree.

    `rollouts` holds the roots first, then the branches round by round; the K branches of one fork
    (a branch set B_i) are neighbours. Without branches it is the flat group of GRPO.
    """

    question: Question
    prompt_ids: tuple[int, ...]
    rollouts: tuple[Rollout, ...]
    policy: str = ""
    temperature: float = 1.0
    top_p: float = 1.0
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i, rollout in enumerate(self.rollouts):
            branch = rollout.branch
            if branch is None:
                continue
            start = branch.p - len(self.prompt_ids)
            if not 0 <= branch.parent < i or not 0 <= start <= len(rollout):
                raise ValueError(
                    f"Trajectory {i} can't be a branch of {branch.parent} at p={branch.p}; parents "
                    "come first, and p lies between the prompt's end and the trajectory's."
                )
            if rollout.ids[:start] != self.rollouts[branch.parent].ids[:start]:
                raise ValueError(f"Trajectory {i} doesn't begin with its parent's tokens.")

    def start(self, i: int) -> int:
        """Number of tokens that trajectory i takes from its parent; 0 for a root."""
        branch = self.rollouts[i].branch
        return 0 if branch is None else branch.p - len(self.prompt_ids)

    def new_tokens(self) -> int:
        """Tokens that were generated for this question, each counted once."""
        return sum(len(r) - self.start(i) for i, r in enumerate(self.rollouts))

    def branch_sets(self) -> list[list[int]]:
        """The branch sets B_i as lists of indices, in order."""
        sets: dict[tuple[int, int], list[int]] = {}
        for i, rollout in enumerate(self.rollouts):
            if rollout.branch is not None:
                sets.setdefault((rollout.branch.parent, rollout.branch.p), []).append(i)
        return list(sets.values())

    def to_json(self) -> dict[str, Any]:
        """A plain dict; `Trace.from_json` gives back an equal record."""
        return dataclasses.asdict(self) | {"question": self.question.to_json()}

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
        # Text goes to terminals and pages: it may set no line, colour or direction there.
        lines = [f"{visible(self.question.text)}  (answer {visible(self.question.answer)})"]
        children: dict[int, list[int]] = {}
        for i, rollout in enumerate(self.rollouts):
            children.setdefault(-1 if rollout.branch is None else rollout.branch.parent, []).append(
                i
            )

        def walk(at: int, depth: int) -> None:
            rollout, start = self.rollouts[at], self.start(at)
            own = rollout.entropies[start:]
            fork = "" if rollout.branch is None else f" from token {start}"
            line = f"{'  ' * depth}[{at}]{fork} {len(own)} tokens, "
            line += f"mean H {sum(own) / max(1, len(own)):.3f} nat, "
            line += visible(rollout.reason) or "not verified"
            if rollout.score is not None:
                line += f", S_IB {rollout.score.value:+.3f}"
            lines.append(line + ("" if rollout.kept else ", pruned"))
            for child in children.get(at, []):
                walk(child, depth + 1)

        for root in children.get(-1, []):
            walk(root, 1)
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def _rollout(row: dict[str, Any]) -> Rollout:
    # JSON has no tuples.
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    if (branch := fields.get("branch")) is not None:
        fields["branch"] = Branch(**branch | {"z": tuple(branch["z"])})
    if (score := fields.get("score")) is not None:
        fields["score"] = Score(**score)
    return Rollout(**fields)


def write_traces(path: str | Path, traces: Iterable[Trace]) -> None:
    """Write traces as JSON lines (ASCII, so any model text survives), in one step."""
    # Build all of it before opening the file: `traces` may come from that very file.
    write_text(Path(path), "".join(json.dumps(trace.to_json()) + "\n" for trace in traces))


def read_traces(path: str | Path) -> Iterator[Trace]:
    """Read traces written by `write_traces`.

    Raises:
        ValueError: a line is not a trace, or cut off; the message names the file and the line.
    """
    # A byte beyond ASCII becomes an escape that JSON doesn't know, so its line is named below.
    with Path(path).open(encoding="ascii", errors="backslashreplace") as file:
        for number, line in enumerate(file, 1):
            try:
                yield Trace.from_json(json.loads(line))
            except (RecursionError, ValueError) as error:
                cut = (
                    "it is cut off, perhaps by a kill or a full disk; delete it to read the others."
                )
                what = error if line.endswith("\n") else cut
                raise ValueError(f"{path}, line {number}: {what}") from error
