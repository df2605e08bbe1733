"""The tour's page: what GRPO did to a policy, told from the records of one run.

Everything comes as plain dicts and traces, so the page can be made again from a run's folder. It is
one file that loads nothing from elsewhere, and needs no torch to write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from i2b_lpo.metrics import Interval, paired_differences
from i2b_lpo.trace import Question, Rollout, Trace
from i2b_lpo.views import (
    View,
    comparison,
    entropy_histogram,
    entropy_strip,
    group_advantages,
    markup,
    strategy_shares,
    training_curves,
)
from i2b_lpo.views.markup import text
from i2b_lpo.views.text import fitting_digits, interval, label, signed

__all__ = ["tour_page"]

BEFORE, AFTER = "base", "after GRPO"
CURVES = ("reward", "entropy", "distinct_strategies", "length", "rep4", "grad_norm")

Evaluation = Mapping[str, Any]
Labeller = Callable[[Question, str], Any]


def _signature(trace: Trace, rollout: Rollout, labeller: Labeller) -> str | None:
    labels = labeller(trace.question, rollout.text)
    return None if labels is None else str(labels.signature)


def tour_page(
    path: str | Path,
    *,
    before: Evaluation,
    after: Evaluation,
    records: Sequence[Mapping[str, Any]],
    traces_before: Sequence[Trace],
    traces_after: Sequence[Trace],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    group: Trace | None = None,
    advantages: Sequence[float] = (),
    labeller: Labeller | None = None,
    split: str = "validation",
    command: str = "i2b-lpo tour",
) -> Path:
    """Write the page of one GRPO run.

    Args:
        path: of the HTML file; its folder is made.
        before: `Evaluation.to_json()` of the policy that training started from.
        after: the same of the trained policy, on the same questions.
        records: one dict of numbers for each training step.
        traces_before: the traces `before` was measured on.
        traces_after: the traces `after` was measured on.
        config: `RunConfig.to_json()`.
        environment: versions, machine, minutes: whatever a reader needs to judge the numbers.
        group: one question of a training step, with its `advantages`.
        advantages: A of each rollout of `group`.
        labeller: `Task.label`, for a task that has one.
        split: where the evaluated questions come from.
        command: what was typed to make this run.

    Returns:
        The path.

    Raises:
        ValueError: there are no traces or no records.
    """
    if not traces_before or not traces_after:
        raise ValueError(
            "The page needs the traces of both evaluations; evaluate before and after."
        )
    asked = [[trace.question for trace in traces] for traces in (traces_before, traces_after)]
    differences = (
        paired_differences(before["values"], after["values"]) if asked[0] == asked[1] else {}
    )
    body = [
        _opening(before, after, records, config, differences),
        _loop(config),
        _results(before, after, traces_before, traces_after, differences),
        _one_question(traces_before, traces_after, labeller),
        _training(records, group, advantages),
        _settings(config, environment, command),
        _limits(before, records, config, differences, split),
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = markup.page("A policy before and after GRPO", f"<main>\n{''.join(body)}</main>\n")
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def _section(name: str, title: str, *parts: str) -> str:
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{text(title)}</h2>\n'
        f"{''.join(parts)}</section>\n"
    )


def _p(sentence: str) -> str:
    return f"<p>{text(sentence)}</p>\n"


def _list(tag: str, items: Sequence[str]) -> str:
    """A list of HTML items."""
    return f"<{tag}>\n" + "".join(f"<li>{item}</li>\n" for item in items) + f"</{tag}>\n"


def _figure(view: View, name: str, caption: str) -> str:
    return view.to_html(include_js=False, name=name, caption=caption)


# --- what changed -------------------------------------------------------------------------------


def _sides(metric: str, before: Evaluation, after: Evaluation) -> str:
    cells = [e["metrics"].get(metric) for e in (before, after)]
    return " → ".join(interval(cell) for cell in cells if cell)


def _change(
    metric: str, before: Evaluation, after: Evaluation, differences: Mapping[str, Interval]
) -> str:
    """How a metric moved, as HTML; it claims a direction only if the interval does."""
    values = text(_sides(metric, before, after))
    name = f"<strong>{text(label(metric))}</strong>"
    if metric not in differences:
        return f"{name}: {values}"
    found = differences[metric]
    moved = "rose" if found.low > 0 else "fell" if found.high < 0 else "did not clearly change"
    return f"{name} {moved}: {values}<br>paired difference {text(_signed(found))}"


def _signed(found: Interval) -> str:
    ends = (found.mean, found.low, found.high)
    mean, low, high = (signed(end, fitting_digits(*ends)) for end in ends)
    return f"{mean} [{low}, {high}]"


def _verdict(differences: Mapping[str, Interval]) -> str:
    if not differences:
        return (
            "Compare the intervals below: without shared questions there is no paired difference."
        )
    rate = differences["pass@1"]
    variety = [differences[m] for m in ("entropy", "distinct strategies") if m in differences]
    narrower = any(found.high < 0 for found in variety)
    if rate.low > 0 and narrower:
        return (
            "More right answers, from fewer ways to find them. The policy has become surer of "
            "itself; what it no longer tries, it can no longer learn from. This narrowing, the "
            "collapse of entropy, is what I²B-LPO sets out to prevent."
        )
    accuracy = (
        "The policy answers better"
        if rate.low > 0
        else "The policy answers worse"
        if rate.high < 0
        else "The policy shows no clear change in accuracy"
    )
    return f"{accuracy}; it {'lost variety' if narrower else 'shows no clear loss of variety'}."


def _opening(
    before: Evaluation,
    after: Evaluation,
    records: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    differences: Mapping[str, Interval],
) -> str:
    known = before["metrics"].keys() & after["metrics"].keys()
    shown = [m for m in ("pass@1", "entropy", "distinct strategies", "length") if m in known]
    return (
        "<header>\n<h1>A policy before and after GRPO</h1>\n"
        f'<p class="lead">{text(str(config.get("policy", "A policy")))} was trained for '
        f"{len(records)} steps on the task {text(str(config.get('task', before.get('task'))))}, "
        f"seed {text(str(config.get('seed', 'unknown')))}. In short:</p>\n"
        + _list("ul", [_change(metric, before, after, differences) for metric in shown])
        + _p(_verdict(differences))
        + '<p class="note">Numbers in brackets are 95 % intervals. Every figure has its words and '
        "numbers underneath.</p>\n</header>\n"
    )


# --- the sections -------------------------------------------------------------------------------


def _loop(config: Mapping[str, Any]) -> str:
    rollout = config.get("rollout", {})
    samples = rollout.get("samples", "several")
    steps = {
        "Question": f"A step takes {config.get('questions', 'some')} questions that have a "
        "verified answer.",
        "Rollouts": f"The policy writes {samples} solutions to each, token by token, drawing at "
        f"temperature {rollout.get('temperature', 1.0)}. A token's entropy H, in nats, says how "
        "open the choice was: 0 if only one token was possible, log 2 ≈ 0.69 for two equal ones.",
        "Verify": "The number in the box is compared with the verified answer: reward 1 or 0. "
        "Nothing else is rewarded.",
        "Group advantages": f"The {samples} solutions of one question form a group. A solution's "
        "advantage A is its reward minus the group's mean, divided by the group's standard "
        "deviation. If all are right, or all wrong, there is nothing to learn.",
        "Update": "Tokens of solutions with A > 0 become more likely, those of solutions with "
        "A < 0 less.",
    }
    items = [f"<strong>{text(name)}.</strong> {text(said)}" for name, said in steps.items()]
    return _section("loop", "What happened", _list("ol", items))


def _results(
    before: Evaluation,
    after: Evaluation,
    traces_before: Sequence[Trace],
    traces_after: Sequence[Trace],
    differences: Mapping[str, Interval],
) -> str:
    pair = {BEFORE: before, AFTER: after}
    words = list(dict.fromkeys([*before["strategies"], *after["strategies"]]))
    parts = [
        _figure(
            comparison(pair),
            "comparison",
            "greedy: the most likely solution is right. pass@k: at least one of k drawn solutions "
            "is right. maj@k: the most frequent answer of k is right. If pass@1 rises more than "
            "pass@k with a large k, the policy got surer rather than abler.",
        )
    ]
    if differences:
        rows = [
            (label(name), _sides(name, before, after), _signed(found), str(found.n))
            for name, found in differences.items()
        ]
        parts += [
            "<h3>Paired differences</h3>\n",
            _p(
                "Both policies answered the same questions, so the differences are taken question "
                "by question. An interval that holds 0 means: this run can't tell."
            ),
            markup.table([("metric", "before → after", "after − before", "questions"), *rows]),
        ]
    if before["strategies"] and after["strategies"]:
        parts.append(
            _figure(
                strategy_shares(pair),
                "strategies",
                "Which strategy a solution names for a product, and how often that product comes "
                "out right. GRPO moves weight to what was right more often than its group.",
            )
        )
    parts.append(
        _figure(
            entropy_histogram({BEFORE: traces_before, AFTER: traces_after}, words=words),
            "histogram",
            "Entropy of every token. Left: almost no choice. Right, above 0.7 nat: forks, where "
            "the policy could have gone another way."
            + (" Hatched: the words that open a strategy." if words else ""),
        )
    )
    return _section("results", "What changed", *parts)


def _mixed(traces: Sequence[Trace]) -> int:
    """The place of the first question with both right and wrong rollouts; 0 if there is none."""
    mixed = (i for i, t in enumerate(traces) if len({r.reward for r in t.rollouts}) > 1)
    return next(mixed, 0)


def _right(trace: Trace) -> int:
    return next((i for i, r in enumerate(trace.rollouts) if r.reward == 1.0), 0)


def _one_question(
    before: Sequence[Trace], after: Sequence[Trace], labeller: Labeller | None
) -> str:
    old = before[_mixed(before)]
    new = next((trace for trace in after if trace.question == old.question), None)
    parts = [
        f"<p>Question: <q>{text(old.question.text)}</q> "
        f"Verified answer: {text(old.question.answer)}.</p>\n"
    ]
    for trace, side in ((old, "before"), (new, "after")):
        if trace is None:
            parts.append(_p(f"The traces {side} training don't hold this question."))
            continue
        parts += [
            f"<h3>{text(side.capitalize())}</h3>\n",
            _figure(
                entropy_strip(trace, _right(trace)),
                f"strip-{side}",
                f"One solution {side} training, a token a box. Bright boxes are where the policy "
                "could have gone another way.",
            ),
            f"<details><summary>All {len(trace.rollouts)} solutions {side}</summary>\n"
            f"{markup.table(_solutions(trace, labeller))}\n</details>\n",
        ]
    return _section("question", "One question, before and after", *parts)


def _solutions(trace: Trace, labeller: Labeller | None) -> list[tuple[str, ...]]:
    header = ("rollout", "answer", "tokens", *(["strategies"] if labeller else []), "solution")
    rows = [header]
    verdicts = {1.0: "✓ correct", 0.0: "✗ wrong", None: "not verified"}
    for i, rollout in enumerate(trace.rollouts):
        verdict = verdicts.get(rollout.reward, str(rollout.reward))
        named = [_signature(trace, rollout, labeller) or "–"] if labeller else []
        rows.append((str(i), verdict, str(len(rollout)), *named, rollout.text))
    return rows


def _training(
    records: Sequence[Mapping[str, Any]], group: Trace | None, advantages: Sequence[float]
) -> str:
    parts = [
        _figure(
            training_curves(records, keys=[k for k in CURVES if any(k in row for row in records)]),
            "curves",
            "Each step sees other questions, so the thin lines jump; judge by the bold ones.",
        )
    ]
    if group is not None:
        parts += [
            "<h3>One group of a step</h3>\n",
            f"<p>Question: <q>{text(group.question.text)}</q></p>\n",
            _figure(
                group_advantages(group, advantages),
                "group",
                "Right solutions get a positive advantage, wrong ones a negative one, the rarer "
                "kind the larger. All tokens of a solution share it: the update can't tell a good "
                "step from a bad one in the same solution.",
            ),
        ]
    return _section("training", "During training", *parts)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows


def _settings(config: Mapping[str, Any], environment: Mapping[str, Any], command: str) -> str:
    return _section(
        "settings",
        "Settings, and how to repeat this",
        f"<pre><code>{text(command)}</code></pre>\n",
        _p(
            "The same settings and seed draw the same questions and random numbers. On another "
            "processor sums may round differently, and a long run may then differ in detail."
        ),
        "<details><summary>All settings</summary>\n",
        markup.table([("setting", "value"), *_flat(config)]),
        "\n</details>\n<details><summary>Environment</summary>\n",
        markup.table([("what", "value"), *_flat(environment)]),
        "\n</details>\n",
    )


def _limits(
    before: Evaluation,
    records: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    differences: Mapping[str, Interval],
    split: str,
) -> str:
    items = [
        f"One seed ({config.get('seed', 'unknown')}) and {len(records)} steps. The intervals speak "
        "of the questions drawn, not of other seeds; another seed can move the results by more.",
        f"{before.get('questions', 'The same')} questions, {before.get('samples', 'several')} "
        f"samples each, from the {split} split, which training doesn't draw from.",
        "Entropy is measured at temperature 1 before any truncation, in nats.",
        "This is an independent reconstruction of arXiv 2601.05870, not the authors' code. GRPO, "
        "shown here, is the method it starts from.",
    ]
    if not differences:
        items.append(
            "The two evaluations don't share their questions, so no paired difference is given; "
            "the separate intervals are wider than a paired one."
        )
    return _section("limits", "How far to trust this", _list("ul", list(map(text, items))))
