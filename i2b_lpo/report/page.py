"""The tour's page: one policy trained by GRPO and by I²B-LPO, from the records of both runs.

Every difference between the two is at equal generated tokens, as near as a step comes to that.

Everything comes as plain dicts and traces, so the page can be rebuilt from a run's folder. It is
one file that loads nothing from elsewhere, and needs no torch to write. Its text is in
``templates/``, one file per section; `words` puts the findings into sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from i2b_lpo.method.methods import METHODS
from i2b_lpo.method.metrics import paired_differences
from i2b_lpo.report.runs import Run, longer, settings, total, training
from i2b_lpo.report.step import one_step
from i2b_lpo.report.words import Differences, basis, beside, difference, verdict
from i2b_lpo.trace import Question, Rollout, Trace
from i2b_lpo.views import comparison, entropy_histogram, entropy_strip, strategy_shares
from i2b_lpo.views.markup import environment
from i2b_lpo.views.strip import outcome
from i2b_lpo.views.text import label, percent

__all__ = ["NAMES", "TEMPLATES", "summary", "tour_page"]

NAMES = ("base", *(METHODS[name].title for name in ("grpo", "i2b-lpo")))
"""The three policies of the page; the last two are runs."""

TEMPLATES = environment("i2b_lpo.report")
"""The page, ``tour.html``, and its sections."""

BASE, GRPO, OURS = NAMES

Evaluation = Mapping[str, Any]
Labeller = Callable[[Question, str], Any]


def tour_page(
    path: str | Path,
    *,
    before: Evaluation,
    traces_before: Sequence[Trace],
    runs: Mapping[str, Run],
    environment: Mapping[str, Any],
    latents: Mapping[str, Any] | None = None,
    labeller: Labeller | None = None,
    split: str = "validation",
    command: str = "i2b-lpo tour",
) -> Path:
    """Write the page of a GRPO run and an I²B-LPO run from the same policy.

    Args:
        path: of the HTML file; its folder is made.
        before: `Evaluation.to_json()` of the policy that both started from.
        traces_before: the traces `before` was measured on.
        runs: the last two of `NAMES` → the run.
        environment: versions, machine, minutes: whatever a reader needs to judge the numbers.
        latents: the card of the latents that I²B-LPO used.
        labeller: `Task.label`, for a task that has one.
        split: where the evaluated questions come from.
        command: what was typed to make this page.

    Returns:
        The path.

    Raises:
        ValueError: a run, its traces, its records or the evaluation of its end are missing.
    """
    if tuple(runs) != NAMES[1:]:
        raise ValueError(f"The page tells of two runs; give {GRPO} and {OURS}, in this order.")
    traces = {BASE: traces_before} | {name: run.traces for name, run in runs.items()}
    if any((run.stop is None) != (run.end is None) for run in runs.values()):
        raise ValueError(
            "A run that is compared before its end needs both stop and end; give the step and the "
            "evaluation after the last one."
        )
    if not all(traces.values()):
        raise ValueError("The page needs the traces of all three evaluations; evaluate each.")
    evaluations = {BASE: before} | {name: run.evaluation for name, run in runs.items()}
    found = _differences(evaluations, traces)
    question = traces[BASE][_mixed(traces[BASE])].question
    spent = (latents or {}).get("rollout_tokens")
    page = TEMPLATES.get_template("tour.html").render(
        before=before,
        grpo=runs[GRPO],
        ours=runs[OURS],
        went_on={name: run for name, run in runs.items() if run.end is not None},
        opening=_opening(before, runs, found),
        results=_results(evaluations, runs, traces, found),
        question=question,
        answers=[_answered(name, own, question, labeller) for name, own in traces.items()],
        training=training(runs),
        step=one_step(runs[GRPO].step, runs[OURS].step),
        settings=settings(runs, environment),
        command=command,
        split=split,
        latent_tokens=f"{spent:,}" if isinstance(spent, int) else None,
        paired=all(found.values()),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def _differences(
    evaluations: Mapping[str, Evaluation], traces: Mapping[str, Sequence[Trace]]
) -> dict[tuple[str, str], Differences]:
    """(from, to) → the paired differences; none where the questions differ."""
    pairs = ((BASE, GRPO), (BASE, OURS), (GRPO, OURS))
    asked = {name: [trace.question for trace in found] for name, found in traces.items()}
    return {
        (a, b): paired_differences(evaluations[a]["values"], evaluations[b]["values"])
        if asked[a] == asked[b]
        else {}
        for a, b in pairs
    }


def summary(
    before: Evaluation,
    runs: Mapping[str, Run],
    metrics: Sequence[str],
    *,
    between: Differences | None = None,
) -> list[tuple[str, ...]]:
    """The policies side by side as rows of text, with the steps and tokens behind each.

    Args:
        before: `Evaluation.to_json()` of the policy that both runs started from.
        runs: the last two of `NAMES` → the run.
        metrics: the rows; one that a policy wasn't measured by is left out.
        between: paired differences of the runs; by default taken from their evaluations.
    """
    first, second = runs.values()
    if between is None:
        values = (run.evaluation["values"] for run in (first, second))
        between = paired_differences(*values)
    further = longer(runs)
    rows = beside(
        {BASE: before} | {name: run.evaluation for name, run in runs.items()},
        between,
        metrics,
        further={name: run.evaluation for name, run in further.items()},
    )
    columns = [first, second, *further.values()]
    steps = [float(len(run.compared)) for run in columns]
    tokens = [total(run, "new_tokens") for run in columns]
    for title, found in (("training steps", steps), (label("new_tokens"), tokens)):
        numbers = [n for n in found if n is not None]
        if len(numbers) == len(columns):
            cells = ["–", *(f"{n:,.0f}" for n in numbers)]
            if between:
                cells[3:3] = _more(*numbers[:2])
            rows.append((title, *cells))
    return rows


def _more(first: float, second: float) -> tuple[str, str]:
    """By how much the second amount is larger, in words as in the other rows."""
    gap = second - first
    if not gap:
        return "0", "equal"
    share = abs(gap) / first
    shown = percent(share, 1 if share >= 0.01 else 2)
    return f"{gap:+,.0f}".replace("-", "−"), f"{shown} {'more' if gap > 0 else 'less'}"


# --- what the sections show ---------------------------------------------------------------------


def _opening(
    before: Evaluation, runs: Mapping[str, Run], found: Mapping[tuple[str, str], Differences]
) -> dict[str, Any]:
    powers = [metric for metric in before["metrics"] if metric.startswith("pass@")]
    shown = [*dict.fromkeys([*powers[:1], *powers[-1:], "entropy", "distinct strategies"])]
    steps = len(runs[GRPO].compared), len(runs[OURS].compared)
    tokens = total(runs[GRPO], "new_tokens"), total(runs[OURS], "new_tokens")
    return {
        "table": _stacked(summary(before, runs, shown, between=found[GRPO, OURS])),
        "basis": basis(steps, tokens),
        "verdict": verdict(found[BASE, GRPO], found[BASE, OURS], found[GRPO, OURS]),
    }


def _stacked(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """A table of numbers; an interval stands whole, under its mean."""
    return [[cell.replace(" [", "\n[") for cell in row] for row in rows]


def _results(
    evaluations: Mapping[str, Evaluation],
    runs: Mapping[str, Run],
    traces: Mapping[str, Sequence[Trace]],
    found: Mapping[tuple[str, str], Differences],
) -> dict[str, Any]:
    ends = {name: run.evaluation for name, run in longer(runs).items()}
    named = all(e["strategies"] for e in evaluations.values())
    words = list(dict.fromkeys(word for e in evaluations.values() for word in e["strategies"]))
    between = found[GRPO, OURS]
    against = [found[BASE, name] for name in NAMES[1:]]
    header = ("metric", *(f"{name} − {BASE}" for name in NAMES[1:]))
    shared = [metric for metric in against[0] if metric in against[1]]
    rows = [(label(metric), *(difference(gap[metric]) for gap in against)) for metric in shared]
    return {
        "comparison": comparison(dict(evaluations) | ends),
        "between": between and _stacked(beside(evaluations, between, list(between), further=ends)),
        "against": rows and _stacked([header, *rows]),
        "shares": strategy_shares(evaluations) if named else None,
        "histogram": entropy_histogram(traces, words=words),
        "words": words,
    }


def _mixed(traces: Sequence[Trace]) -> int:
    """The place of the first question with both right and wrong rollouts; 0 if there is none."""
    mixed = (i for i, t in enumerate(traces) if len({r.correct for r in t.rollouts}) > 1)
    return next(mixed, 0)


def _answered(
    name: str, traces: Sequence[Trace], question: Question, labeller: Labeller | None
) -> dict[str, Any]:
    """One policy's solutions of a question; without strip where it wasn't asked it."""
    trace = next((trace for trace in traces if trace.question == question), None)
    if trace is None:
        return {"name": name, "strip": None}
    right = next((i for i, rollout in enumerate(trace.rollouts) if rollout.correct), 0)
    return {
        "name": name,
        "strip": entropy_strip(trace, right),
        "solutions": _solutions(trace, labeller),
    }


def _solutions(trace: Trace, labeller: Labeller | None) -> list[tuple[str, ...]]:
    header = ("rollout", "answer", "tokens", *(["strategies"] if labeller else []), "solution")
    rows = [header]
    for i, rollout in enumerate(trace.rollouts):
        named = [_signature(trace, rollout, labeller) or "–"] if labeller else []
        rows.append((str(i), outcome(rollout), str(len(rollout)), *named, rollout.text))
    return rows


def _signature(trace: Trace, rollout: Rollout, labeller: Labeller) -> str | None:
    labels = labeller(trace.question, rollout.text)
    return None if labels is None else str(labels.signature)
