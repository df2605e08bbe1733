"""The tour's page: one policy, trained by GRPO and by I²B-LPO, told from the records of both runs.

Every difference between the two is at equal generated tokens, as near as a step comes to that.

Everything comes as plain dicts and traces, so the page can be made again from a run's folder. It is
one file that loads nothing from elsewhere, and needs no torch to write. `words` holds the
sentences, `runs` the sections on the runs, `step` that on one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from i2b_lpo.method.metrics import paired_differences
from i2b_lpo.report.parts import (
    asked,
    details,
    drawing,
    intervals,
    listing,
    paragraph,
    section,
)
from i2b_lpo.report.runs import Run, longer, settings, total, training
from i2b_lpo.report.step import one_step
from i2b_lpo.report.words import (
    Differences,
    basis,
    beside,
    difference,
    method_steps,
    verdict,
)
from i2b_lpo.trace import Question, Rollout, Trace
from i2b_lpo.views import (
    comparison,
    entropy_histogram,
    entropy_strip,
    markup,
    strategy_shares,
)
from i2b_lpo.views.markup import text
from i2b_lpo.views.strip import outcome
from i2b_lpo.views.text import label, percent

__all__ = ["NAMES", "Run", "summary", "tour_page"]

NAMES = ("base", "GRPO", "I²B-LPO")
"""The three policies of the page; the last two are runs."""

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
    body = [
        _opening(before, runs, found),
        _loop(runs),
        _results(evaluations, runs, traces, found),
        _one_question(traces, labeller),
        training(runs),
        section("step", "One step, seen from inside", *one_step(runs[GRPO].step, runs[OURS].step)),
        settings(runs, environment, command),
        _limits(before, runs, latents or {}, found, split),
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = markup.page("One policy, trained two ways", f"<main>\n{''.join(body)}</main>\n")
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


def _opening(
    before: Evaluation, runs: Mapping[str, Run], found: Mapping[tuple[str, str], Differences]
) -> str:
    config = runs[GRPO].config
    powers = [metric for metric in before["metrics"] if metric.startswith("pass@")]
    shown = [*dict.fromkeys([*powers[:1], *powers[-1:], "entropy", "distinct strategies"])]
    tokens = [total(run, "new_tokens") for run in runs.values()]
    told = "".join(
        f" {name} went on from there: its last column is more training, so no difference is taken "
        "with it."
        for name, run in runs.items()
        if run.end is not None
    )
    return (
        "<header>\n<h1>One policy, trained two ways</h1>\n"
        f'<p class="lead">{text(str(config.get("policy", "A policy")))} was trained on the task '
        f"{text(str(config.get('task', before.get('task'))))}, once by {GRPO} and once by {OURS}, "
        "on the same questions with the same seed "
        f"({text(str(config.get('seed', 'unknown')))}). Then the base and both trained policies "
        "answered the same new questions. In short:</p>\n"
        + intervals(summary(before, runs, shown, between=found[GRPO, OURS]))
        + paragraph(
            basis(
                (len(runs[GRPO].compared), len(runs[OURS].compared)),
                None if tokens[0] is None or tokens[1] is None else (tokens[0], tokens[1]),
            )
            + told
        )
        + paragraph(verdict(found[BASE, GRPO], found[BASE, OURS], found[GRPO, OURS]))
        + '<p class="note">pass@k: the share of questions that k drawn solutions answer at least '
        "once. Brackets are 95 % intervals; unclear means that the interval holds 0. Every figure "
        "has its words and numbers underneath.</p>\n</header>\n"
    )


# --- the sections -------------------------------------------------------------------------------


def _loop(runs: Mapping[str, Run]) -> str:
    items = [
        f"<strong>{text(name)}</strong> ({text(who)}). {text(said)}"
        for name, who, said in method_steps(runs[GRPO].config, runs[OURS].config)
    ]
    return section(
        "loop",
        "What happened",
        paragraph("One training step, in order. Both methods share the frame; I²B-LPO adds to it."),
        listing("ol", items),
    )


def _results(
    evaluations: Mapping[str, Evaluation],
    runs: Mapping[str, Run],
    traces: Mapping[str, Sequence[Trace]],
    found: Mapping[tuple[str, str], Differences],
) -> str:
    ends = {name: run.evaluation for name, run in longer(runs).items()}
    words = list(dict.fromkeys(word for e in evaluations.values() for word in e["strategies"]))
    parts = [
        paragraph(
            "All three policies answer as they are, without z and without branches: what is "
            "compared is what training left in the weights."
        ),
        drawing(
            comparison(dict(evaluations) | ends),
            "comparison",
            "greedy: the most likely solution is right. pass@k: at least one of k drawn solutions "
            "is right. maj@k: the most frequent answer of k is right. If pass@1 rises more than "
            "pass@k with a large k, the policy got surer rather than abler.",
        ),
    ]
    if between := found[GRPO, OURS]:
        parts += [
            "<h3>The two methods, question by question</h3>\n",
            paragraph(
                "Both answered the same questions, so the difference is taken for each question "
                "and then averaged. An interval that holds 0 means: this run can't tell."
            ),
            intervals(beside(evaluations, between, list(between), further=ends)),
        ]
    if found[BASE, GRPO] and found[BASE, OURS]:
        rows = [
            (label(m), *(difference(found[BASE, n][m]) for n in NAMES[1:]))
            for m in found[BASE, GRPO]
            if m in found[BASE, OURS]
        ]
        header = ("metric", *(f"{name} − {BASE}" for name in NAMES[1:]))
        parts.append(details("Each against the base, paired too", intervals([header, *rows])))
    if all(e["strategies"] for e in evaluations.values()):
        parts.append(
            drawing(
                strategy_shares(evaluations),
                "strategies",
                "Which strategy a solution names for a product, and how often that product comes "
                "out right. Training moves weight to what was right more often than its group.",
            )
        )
    parts.append(
        drawing(
            entropy_histogram(traces, words=words),
            "histogram",
            "Entropy of every token. Left: almost no choice. Right, above 0.7 nat: forks, where "
            "the policy could have gone another way."
            + (" Hatched: the words that open a strategy." if words else ""),
        )
    )
    return section("results", "What changed", *parts)


def _mixed(traces: Sequence[Trace]) -> int:
    """The place of the first question with both right and wrong rollouts; 0 if there is none."""
    mixed = (i for i, t in enumerate(traces) if len({r.correct for r in t.rollouts}) > 1)
    return next(mixed, 0)


def _right(trace: Trace) -> int:
    return next((i for i, r in enumerate(trace.rollouts) if r.correct), 0)


def _one_question(traces: Mapping[str, Sequence[Trace]], labeller: Labeller | None) -> str:
    question = traces[BASE][_mixed(traces[BASE])].question
    parts = [asked(question)]
    for at, (name, found) in enumerate(traces.items()):
        trace = next((trace for trace in found if trace.question == question), None)
        if trace is None:
            parts.append(paragraph(f"The traces of {name} don't hold this question."))
            continue
        title = name if name == BASE else f"after {name}"
        parts += [
            f"<h3>{text(title[0].upper() + title[1:])}</h3>\n",
            drawing(
                entropy_strip(trace, _right(trace)),
                f"strip-{at}",
                "One solution, a token a box. Bright boxes are where the policy could have gone "
                "another way.",
            ),
            details(
                f"All {len(trace.rollouts)} solutions, {title}",
                markup.table(_solutions(trace, labeller)),
            ),
        ]
    return section("question", "One question, three policies", *parts)


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


def _limits(
    before: Evaluation,
    runs: Mapping[str, Run],
    latents: Mapping[str, Any],
    found: Mapping[tuple[str, str], Differences],
    split: str,
) -> str:
    config = runs[GRPO].config
    spent = latents.get("rollout_tokens")
    items = [
        f"One seed ({config.get('seed', 'unknown')}), {len(runs[GRPO].compared)} steps of {GRPO} "
        f"and {len(runs[OURS].compared)} of {OURS}. The intervals speak of the questions drawn, "
        "not of other seeds; another seed can move the results by more.",
        f"{before.get('questions', 'The same')} questions, {before.get('samples', 'several')} "
        f"samples each, from the {split} split, which training doesn't draw from.",
        f"Equal tokens are not equal cost. A branch has its beginning from another solution, so "
        f"{OURS} generates fewer tokens in a step than {GRPO}; with the same tokens it takes more "
        "steps, sees more questions, and makes passes of its own for the scores. See what each run "
        "cost.",
        "The latents were trained beforehand on rollouts of the base policy"
        + (f" ({spent:,} tokens)" if isinstance(spent, int) else "")
        + f"; that is not in the costs above, and {GRPO} had nothing like it.",
        "Entropy is measured at temperature 1 before any truncation, in nats.",
        "This is an independent reconstruction of arXiv 2601.05870, not the authors' code. Where "
        "the paper leaves a choice open it is ours; a difference here, or none, is no verdict on "
        "the paper.",
    ]
    if not all(found.values()):
        items.append(
            "The evaluations don't share their questions, so not every paired difference is given; "
            "the separate intervals are wider than a paired one."
        )
    return section("limits", "How far to trust this", listing("ul", list(map(text, items))))
