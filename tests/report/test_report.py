"""The tour's page says what the records of both runs say, and model text never acts in it."""

from __future__ import annotations

import dataclasses
import html
import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import UndefinedError
from plotly.offline import get_plotlyjs
from test_views import (
    CHROME,
    NASTY,
    make_evaluation,
    make_records,
    make_rollout,
    make_traces,
    nasty_trace,
)

from i2b_lpo.config import RunConfig
from i2b_lpo.method.metrics import Interval, bootstrap_interval, paired_differences
from i2b_lpo.report.page import NAMES, TEMPLATES, summary, tour_page
from i2b_lpo.report.runs import Run
from i2b_lpo.report.step import one_step
from i2b_lpo.report.words import basis, beside, difference, reading, verdict
from i2b_lpo.tasks.labels import label as shop_label
from i2b_lpo.tasks.shop import parse_problem
from i2b_lpo.trace import Branch, Question, Rollout, Score, Trace
from i2b_lpo.views import (
    branch_tree,
    comparison,
    entropy_histogram,
    group_advantages,
    ib_scatter,
    training_curves,
    visible,
)
from i2b_lpo.views.markup import figure

FIGURES = 10

# --- records ------------------------------------------------------------------------------------


def make_tree(
    text: str = "Split 14", *, rewards: str = "10100110", name: str = "Is it 7?", kept: str = "110"
) -> Trace:
    """M=2, K=3: two roots, each forked at its second token; scores fall within each set."""
    rng = random.Random(0)
    given = [float(r) for r in rewards]
    rollouts = [make_rollout(text, rng, r) for r in given[:2]]
    for i, reward in enumerate(given[2:]):
        parent = rollouts[i // 3]
        own = make_rollout(text, rng, reward)
        score = Score(0.5 - i / 10, 0.75, 0.25 + i / 10)
        rollouts.append(
            dataclasses.replace(
                own,
                ids=(parent.ids[0], *(100 * (i + 1) + t for t in range(1, len(own)))),
                branch=Branch(i // 3, 3, "psa", (0.5, -1.0), 1.0, 2.0),
                score=score,
                kept=kept[i % 3] == "1",
            )
        )
    meta = {"advantages": [i / 4 - 1 for i in range(8)]}
    return Trace(Question(name, name, name), (1, 2), tuple(rollouts), policy=text, meta=meta)


def make_group(text: str = "Split 14", *, rewards: str = "1010", name: str = "Is it 7?") -> Trace:
    rng = random.Random(1)
    rollouts = tuple(make_rollout(text, rng, float(reward)) for reward in rewards)
    meta = {"advantages": [0.5 - i for i in range(len(rollouts))]}
    return Trace(Question(name, name, name), (1, 2), rollouts, meta=meta)


def make_config(**changes: Any) -> dict[str, Any]:
    """A real run's settings, with some changed; a section keeps what isn't changed of it."""
    config = RunConfig(seed=7).to_json()
    for name, value in changes.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    return config


OURS_CONFIG = make_config(
    rollout={"rollouts": 2},
    branch={"branches": 3, "latents": "here"},
    grpo={"alpha": 0.005},
)


def more(records: list[dict[str, Any]], **numbers: float) -> list[dict[str, Any]]:
    return [row | numbers for row in records]


LONGER = "GRPO, all 40 steps"


def make_runs() -> dict[str, Run]:
    """GRPO generates 1000 tokens a step, I²B-LPO 750: after 30 and 40 steps they are equal."""
    return {
        "GRPO": Run(
            make_evaluation(0.2),
            make_traces(2, right=0.9),
            more(make_records(0), new_tokens=1000.0, trained_tokens=800.0, rollout_seconds=1.5),
            make_config(),
            [make_group()],
            stop=30,
            end=make_evaluation(0.25),
        ),
        "I²B-LPO": Run(
            make_evaluation(0.15),
            make_traces(3, right=0.8),
            more(make_records(1), new_tokens=750.0, kept=0.5, score_seconds=0.25),
            OURS_CONFIG,
            [make_tree()],
        ),
    }


def write_page(path: Path, text: str = "", **changes: Any) -> str:
    """A page of shop traces; with `text`, of that text in every place."""
    before, runs = make_traces(1), make_runs()
    if text:
        before = [nasty_trace(text)]
        config = make_config(
            policy=text,
            task=text,
            seed=text,
            questions=text,
            rollout={"rollouts": text, "temperature": text},
            branch={"branches": text, "latents": text},
            ib={"keep": text},
            grpo={"alpha": text},
        ) | {text: text}
        steps = [[make_group(text, name=text)], [make_tree(text, name=text)]]
        runs = {
            name: Run(
                make_evaluation(0.2, name=text, extra=text),
                before,
                make_records(0, extra=text),
                config | {"only": name},
                step,
            )
            for name, step in zip(runs, steps, strict=True)
        }
    named = SimpleNamespace(signature=text)
    settings: dict[str, Any] = {
        "before": make_evaluation(name=text, extra=text),
        "traces_before": before,
        "runs": runs,
        "environment": {text or "python": text or "3.11"},
        "latents": {"rollout_tokens": text or 176467},
        "labeller": lambda q, t: named if text else shop_label(parse_problem(q.text), t),
        "split": text or "validation",
        "command": text or "i2b-lpo tour --seed 7",
    }
    return tour_page(path, **settings | changes).read_text("utf-8")


# --- text that must not act ---------------------------------------------------------------------

ALLOWED: dict[str, set[str]] = {
    "html": {"lang"},
    "meta": {"charset", "name", "content", "http-equiv"},
    "section": {"aria-labelledby"},
    "h2": {"id"},
    "p": {"class"},
    "div": {"class", "tabindex", "role", "aria-label", "id", "style"},
    "th": {"scope"},
} | {
    tag: set()
    for tag in (
        "head", "title", "style", "script", "body", "noscript", "main", "header", "h1", "h3", "ul",
        "ol", "li", "strong", "br", "q", "figure", "figcaption", "details", "summary", "table",
        "thead", "tbody", "tr", "td", "pre", "code",
    )
}  # fmt: skip
PLOT = re.compile(
    r'\(function \(\) \{ const f = (\{.*\});\nPlotly\.newPlot\("([a-z0-9-]+)", f\.data, f\.layout, '
    r"(\{.*\})\); \}\)\(\);"
)


class Page(HTMLParser):
    """Reads a page against the whitelist."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.open

    @property
    def words(self) -> str:
        """The text with its lines joined."""
        return " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED, f"<{tag}> has no business here"
        for name, value in attrs:
            assert name in ALLOWED[tag], f"<{tag} {name}> has no business here"
            self.attributes.append((tag, name, value or ""))
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment")

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.mark.parametrize("text", NASTY)
def test_no_page_holds_text_that_a_browser_would_obey(text: str, tmp_path: Path) -> None:
    page = Page(write_page(tmp_path / "index.html", text))
    assert visible(text) in page.text
    library, *plots = page.scripts
    assert library == get_plotlyjs()
    assert len(plots) == FIGURES
    for script in plots:
        match = PLOT.fullmatch(script)
        assert match and "<" not in script
        json.loads(match[1])
        json.loads(match[3])


def test_the_page_loads_nothing_and_reads_without_its_figures(tmp_path: Path) -> None:
    source = write_page(tmp_path / "deep" / "folder" / "index.html")
    page = Page(source)
    assert source.startswith('<!DOCTYPE html>\n<html lang="en">')
    outside = re.sub(r"<script>.*?</script>", "", source, flags=re.S)
    assert not re.search(r"src=|href=|url\(|@import|https?:", outside)
    assert "default-src 'none'" in " ".join(page.values("content"))
    assert page.tags.count("h1") == 1
    ids = page.values("id")
    assert len(set(ids)) == len(ids) and set(page.values("aria-labelledby")) <= set(ids)
    assert page.tags.count("figure") == page.tags.count("figcaption") == FIGURES
    words = [value for tag, name, value in page.attributes if (tag, name) == ("div", "aria-label")]
    runs = make_runs()
    curves = {name: run.records for name, run in runs.items()}
    evaluations = [make_evaluation(), *(run.evaluation for run in runs.values())]
    evaluations += [run.end for run in runs.values() if run.end is not None]
    traces = [make_traces(1), *(run.traces for run in runs.values())]
    for view in (
        comparison(dict(zip([*NAMES, LONGER], evaluations, strict=True))),
        training_curves(curves, keys=["reward", "entropy", "length", "new_tokens"]),
        entropy_histogram(dict(zip(NAMES, traces, strict=True)), words=["Guess", "Split"]),
        group_advantages(make_group(), make_group().meta["advantages"]),
        branch_tree(make_tree()),
        ib_scatter([make_tree()]),
    ):
        assert view.describe() in words and view.describe() in page.text
        for row in view.table:
            assert all(cell in page.text for cell in row)
    for said in ("i2b-lpo tour --seed 7", "rollout.rollouts", "independent reconstruction"):
        assert said in page.text


@pytest.mark.slow
@pytest.mark.skipif(CHROME is None, reason="needs Chrome or Chromium")
def test_a_real_browser_shows_the_text_and_obeys_none_of_it(tmp_path: Path) -> None:
    text = '<img src=x onerror="document.title=1"> %{x} $x$ &lt; <a href="data:,">'
    write_page(tmp_path / "index.html", text)
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --virtual-time-budget=5000 "
        f"--user-data-dir={tmp_path / 'browser'} --dump-dom"
    ).split()
    command = [CHROME or "", *flags, (tmp_path / "index.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    dom = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.S)
    assert dom.count('class="main-svg"') >= FIGURES  # every figure was drawn
    assert "<img" not in dom and "<a " not in dom and "<title>One policy" in dom
    drawn = "".join(re.findall(r"<text[^>]*>(.*?)</text>", dom, flags=re.S))
    shown = '&lt;img src=x onerror="document.title=1"&gt; %{x} $x$ &amp;lt; &lt;a href="data:,"&gt;'
    assert shown in drawn


CONTRAST = """() => {
  const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255)
    .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
  const style = css => getComputedStyle(document.querySelector(css));
  const paper = light(style('body').backgroundColor);
  const texts = ['h1', '.lead', '.note', 'li', 'td', 'th', 'figcaption', 'summary'];
  return [paper, light(style('.plot').backgroundColor), ...texts.map(css => {
    const ends = [light(style(css).color), paper].sort();
    return (ends[1] + .05) / (ends[0] + .05);
  })];
}"""


@pytest.mark.slow
@pytest.mark.skipif(CHROME is None, reason="needs Chrome or Chromium")
def test_the_page_reads_by_day_and_by_night(tmp_path: Path) -> None:
    driver = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright: pip install playwright"
    )
    write_page(tmp_path / "index.html")
    with driver.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROME, args=["--no-sandbox"])
        for scheme, dark in (("light", False), ("dark", True)):
            page = browser.new_page(color_scheme=scheme)
            page.goto((tmp_path / "index.html").as_uri())
            paper, plot, *contrasts = page.evaluate(CONTRAST)
            assert (paper < 0.05) == dark and (paper > 0.9) != dark
            assert plot == pytest.approx(1), "figures are drawn on white paper"
            assert min(contrasts) >= 4.5, "WCAG AA"
        browser.close()


def test_a_setting_that_a_sentence_names_must_be_there(tmp_path: Path) -> None:
    runs = make_runs()
    config = make_config()
    del config["rollout"]["rollouts"]
    runs["GRPO"] = dataclasses.replace(runs["GRPO"], config=config)
    with pytest.raises(UndefinedError, match="rollouts"):
        write_page(tmp_path / "x.html", runs=runs)
    assert not list(tmp_path.iterdir())


def test_a_script_cannot_be_ended_from_its_data() -> None:
    part = figure(
        "x", data={"a": "</script><b>&\u2028"}, config={}, height=1, words="", caption="",
        numbers=(),
    )  # fmt: skip
    assert part.count("</script>") == 1 and "<b>" not in part
    match = PLOT.search(part)
    assert match and json.loads(match[1]) == {"a": "</script><b>&\u2028"}


def test_the_page_needs_both_runs_and_all_traces(tmp_path: Path) -> None:
    runs = make_runs()
    for wrong in ({}, {"GRPO": runs["GRPO"]}, dict(reversed(runs.items()))):
        with pytest.raises(ValueError, match="give GRPO and I²B-LPO"):
            write_page(tmp_path / "x.html", runs=wrong)
    with pytest.raises(ValueError, match="traces of all three"):
        write_page(tmp_path / "x.html", traces_before=[])
    with pytest.raises(ValueError, match="traces of all three"):
        runs["I²B-LPO"] = dataclasses.replace(runs["I²B-LPO"], traces=[])
        write_page(tmp_path / "x.html", runs=runs)
    halves: list[dict[str, Any]] = [{"stop": None}, {"end": None}]
    for half in halves:
        runs = make_runs()
        runs["GRPO"] = dataclasses.replace(runs["GRPO"], **half)
        with pytest.raises(ValueError, match="needs both stop and end"):
            write_page(tmp_path / "x.html", runs=runs)
    assert not list(tmp_path.iterdir())


def test_the_page_needs_no_torch() -> None:
    code = (
        "import sys, i2b_lpo.report.page;"
        "sys.exit(str({'torch', 'transformers', 'kaleido'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "set()"


# --- honest sentences ---------------------------------------------------------------------------


def shifted(by: dict[str, float], spread: float = 0.01) -> dict[str, Any]:
    """An evaluation whose values differ from `make_evaluation()` by some means."""
    rng = random.Random(0)
    found = make_evaluation()
    for name, mean in by.items():
        found["values"][name] = [v + rng.gauss(mean, spread) for v in found["values"][name]]
    return found


def test_paired_differences_are_taken_question_by_question() -> None:
    before = make_evaluation()
    after = shifted(dict.fromkeys(before["metrics"], 0.1), 0.2)
    del after["values"]["greedy"]
    found = paired_differences(before["values"], after["values"])
    assert set(found) == set(before["metrics"]) - {"greedy"}
    old, new = before["values"]["length"], after["values"]["length"]
    assert found["length"] == bootstrap_interval([new[i] - old[i] for i in range(40)])
    assert found["length"].mean == pytest.approx(fmean(new) - fmean(old))


UP, DOWN, OPEN = (Interval(m, m - 0.1, m + 0.1, n=40) for m in (0.3, -0.3, 0.05))


def test_a_reading_claims_what_the_interval_does() -> None:
    assert [reading(found) for found in (UP, DOWN, OPEN)] == ["higher", "lower", "unclear"]
    for edge in (Interval(0.1, 0.0, 0.2, n=4), Interval(-0.1, -0.2, 0.0, n=4)):
        assert reading(edge) == "unclear", "an interval that ends at 0 holds 0"
    assert difference(DOWN) == "−0.300 [−0.400, −0.200]"


def cells(rate: Interval, entropy: Interval = OPEN, strategies: Interval = OPEN) -> Any:
    return {"pass@1": rate, "entropy": entropy, "distinct strategies": strategies}


@pytest.mark.parametrize(
    ("grpo", "ours", "between", "said"),
    [
        (cells(OPEN), cells(OPEN), cells(OPEN), (
            "base, GRPO shows no clear difference in accuracy with no clear loss of variety; "
            "I²B-LPO shows no clear difference in accuracy with no clear loss of variety.",
            "Beside GRPO, I²B-LPO shows no clear difference in accuracy, with no clear difference "
            "in variety.",
        )),
        (cells(UP, DOWN), cells(UP), cells(DOWN, UP), (
            "base, GRPO answers better and lost variety; I²B-LPO answers better with no clear",
            "the collapse of entropy,",
            "Beside GRPO, I²B-LPO answers worse, with more variety.",
        )),
        (cells(UP, OPEN, DOWN), cells(DOWN, DOWN), cells(UP, OPEN, DOWN), (
            "base, GRPO answers better and lost variety; I²B-LPO answers worse and lost variety.",
            "Beside GRPO, I²B-LPO answers better, with less variety.",
        )),
        (cells(UP, UP), cells(OPEN), cells(DOWN, DOWN, DOWN), (
            "base, GRPO answers better with no clear loss of variety",
            "Beside GRPO, I²B-LPO answers worse, with less variety.",
        )),
        (cells(DOWN, DOWN), cells(OPEN), cells(OPEN, UP, DOWN), (
            "base, GRPO answers worse and lost variety",
            "with more of one kind of variety and less of another.",
        )),
    ],
)  # fmt: skip
def test_the_verdict_claims_a_direction_only_where_an_interval_does(
    grpo: Any, ours: Any, between: Any, said: tuple[str, ...]
) -> None:
    found = verdict(grpo, ours, between)
    for sentence in said:
        assert sentence in found
    narrower = DOWN in (grpo["entropy"], grpo["distinct strategies"])
    assert ("collapse" in found) == (grpo["pass@1"] is UP and narrower)


def test_the_verdict_is_about_the_right_differences(tmp_path: Path) -> None:
    runs = make_runs()
    runs["GRPO"] = dataclasses.replace(
        runs["GRPO"], evaluation=shifted({"pass@1": 0.3, "entropy": -0.05})
    )
    runs["I²B-LPO"] = dataclasses.replace(runs["I²B-LPO"], evaluation=shifted({"pass@1": 0.2}))
    text = Page(write_page(tmp_path / "x.html", runs=runs)).words
    assert "GRPO answers better and lost variety; I²B-LPO answers better with no clear" in text
    assert "Beside GRPO, I²B-LPO answers worse, with more variety." in text
    found = paired_differences(
        runs["GRPO"].evaluation["values"], runs["I²B-LPO"].evaluation["values"]
    )
    assert found["pass@1"].mean < 0 < found["entropy"].low
    for name in ("pass@1", "entropy"):
        assert difference(found[name]) in text
    base = make_evaluation()["values"]
    for run in runs.values():
        against = paired_differences(base, run.evaluation["values"])
        assert difference(against["pass@1"]) in text


def test_policies_asked_other_questions_get_no_paired_difference(tmp_path: Path) -> None:
    runs = make_runs()
    run = runs["I²B-LPO"]
    runs["I²B-LPO"] = dataclasses.replace(run, traces=run.traces[1:])
    text = Page(write_page(tmp_path / "x.html", runs=runs)).text
    assert "there is no paired difference" in text and "not every paired difference" in text
    assert "I²B-LPO − GRPO" not in text and "GRPO − base" not in text
    assert "unclear" not in text.replace("unclear means", "")
    assert "The traces of I²B-LPO don't hold this question." in text
    text = Page(write_page(tmp_path / "x.html")).text
    assert "not every paired difference" not in text and "GRPO − base" in text


def test_the_table_sets_policies_side_by_side() -> None:
    evaluations = dict(zip(NAMES, map(make_evaluation, (0.0, 0.2, 0.1)), strict=True))
    found = {"pass@1": DOWN, "entropy": OPEN}
    head, rate, entropy = beside(evaluations, found, ["pass@1", "unknown", "entropy"])
    assert head == ("metric", *NAMES, "I²B-LPO − GRPO", "I²B-LPO is")
    assert rate == (
        "pass@1",
        "0.300 [0.240, 0.360]",
        "0.500 [0.440, 0.560]",
        "0.400 [0.340, 0.460]",
        "−0.300 [−0.400, −0.200]",
        "lower",
    )
    assert entropy[0] == "entropy (nat)" and entropy[-1] == "unclear"
    head, rate = beside(evaluations, {}, ["pass@1"])
    assert head == ("metric", *NAMES) and len(rate) == 4
    further = {"later": make_evaluation(0.3)}
    head, rate, _ = beside(evaluations, found, ["pass@1", "entropy"], further=further)
    assert head[-2:] == ("I²B-LPO is", "later")
    assert rate[-2:] == ("lower", "0.600 [0.540, 0.660]")
    head, rate = beside(evaluations, {}, ["pass@1"], further=further)
    assert head == ("metric", *NAMES, "later") and rate[-1] == "0.600 [0.540, 0.660]"


def test_every_difference_is_at_equal_tokens_and_the_longer_run_stands_beside(
    tmp_path: Path,
) -> None:
    runs = make_runs()
    grpo, ours = runs.values()
    header, *rows = summary(make_evaluation(), runs, ["pass@1", "entropy"])
    assert header == ("metric", *NAMES, "I²B-LPO − GRPO", "I²B-LPO is", LONGER)
    end = dict(grpo.end or {})["metrics"]
    between = paired_differences(grpo.evaluation["values"], ours.evaluation["values"])
    for row, metric in zip(rows, ("pass@1", "entropy"), strict=False):
        assert row[4:6] == (difference(between[metric]), reading(between[metric]))
        assert row[6] == f"{end[metric]['mean']:.3f} " + (
            f"[{end[metric]['low']:.3f}, {end[metric]['high']:.3f}]"
        )
    assert rows[2:] == [
        ("training steps", "–", "30", "40", "+10", "33.3 % more", "40"),
        ("tokens generated", "–", "30,000", "30,000", "0", "equal", "40,000"),
    ]
    # Wherever the page sets I²B-LPO against something it is what had its tokens.
    text = Page(write_page(tmp_path / "x.html", runs=runs)).words
    wrong = paired_differences((grpo.end or {})["values"], ours.evaluation["values"])
    assert difference(between["pass@1"]) in text and difference(wrong["pass@1"]) not in text
    whole = {"GRPO": dataclasses.replace(grpo, stop=None, end=None), "I²B-LPO": ours}
    header, *rows = summary(make_evaluation(), whole, ["pass@1"])
    assert LONGER not in header
    assert rows[-1][2:] == ("40,000", "30,000", "−10,000", "25.0 % less")
    few = [{**row, "new_tokens": 750.3} for row in ours.records]
    near = {"GRPO": grpo, "I²B-LPO": dataclasses.replace(ours, records=few)}
    assert summary(make_evaluation(), near, ["pass@1"])[-1][4:6] == ("+12", "0.04 % more")


def test_the_basis_of_the_comparison_is_called_equal_only_where_it_is() -> None:
    equal, unequal = "at equal generated tokens", "at unequal tokens, more training with less"
    for ours, said in ((951, equal), (1049, equal), (949, unequal), (1051, unequal)):
        found = basis((3, 4), (1000.0, float(ours)))
        assert said in found and f"3 steps, 1,000 tokens, and I²B-LPO after 4 steps, {ours:,}" in (
            found
        )
    assert "1 step of GRPO and 2 steps of I²B-LPO; tokens are unknown" in basis((1, 2), (1.0, None))


def test_what_differs_between_the_runs_is_said_with_its_numbers(tmp_path: Path) -> None:
    source = re.sub("<script>.*?</script>", "", write_page(tmp_path / "x.html"), flags=re.S)
    text = " ".join(html.unescape(re.sub("<[^>]+>", " ", source)).split())
    for said in (
        "tiny-base was trained on the task shop",
        "the same seed (7)",
        "GRPO writes 8 solutions to each, I²B-LPO only 2,",
        "At each fork 3 latents z",
        "Of each fork's 3 branches the 2 with",
        "small term (α = 0.005)",
        "GRPO after 30 steps, 30,000 tokens, and I²B-LPO after 40 steps, 30,000 tokens (1.00 times",
        "GRPO went on from there: its last column is more training",
        "30 steps of GRPO and 40 of I²B-LPO",
        "GRPO is compared as it was after step 29 of this axis.",
        "rollouts of the base policy (176,467 tokens)",
        f"GRPO I²B-LPO {LONGER} training steps 30 40 40",
        "tokens generated 30,000 30,000 40,000",
        "tokens trained on 24,000 – 32,000",
        "branches kept no branches 50.0 % no branches",
        "seconds a step: rollout 1.50 – 1.50",
        "seconds a step: score – 0.25 –",
    ):
        assert said in text, said
    differing = text[text.index("These settings differ") : text.index("All settings")]
    for row in ("rollout.rollouts 8 2", "branch.latents – here", "grpo.alpha 0.0 0.005"):
        assert row in differing
    assert "temperature" not in differing and "rollout.temperature 1.0 1.0" in text
    without = Page(write_page(tmp_path / "x.html", latents=None)).words
    assert "rollouts of the base policy; that" in without


# --- one step -----------------------------------------------------------------------------------


def step_section(groups: list[Trace], trees: list[Trace]) -> str:
    return TEMPLATES.get_template("step.html").render(step=one_step(groups, trees))


def test_the_question_shown_is_the_first_that_tells_something() -> None:
    same, mixed = "10111000", "00100000"  # roots may differ, branch sets don't
    trees = [
        make_tree(name="uniform", rewards=same),
        make_tree(name="mixed set, uniform group", rewards=mixed),
        make_tree(name="both mixed", rewards=mixed),
        make_tree(name="also", rewards=mixed),
    ]
    groups = [
        make_group(name=tree.question.id, rewards="11" if "uniform" in tree.question.id else "10")
        for tree in trees
    ]

    def shown(groups: list[Trace], trees: list[Trace]) -> str:
        questions: list[str] = re.findall("<q>(.*?)</q>", step_section(groups, trees))
        (question,) = questions
        return question

    assert shown(groups, trees) == "both mixed"
    assert shown(groups[:2], trees[:2]) == "mixed set, uniform group"
    assert shown(groups[::-1], trees[::-1]) == "also"
    assert shown(groups[:1], trees[:1]) == "uniform"
    assert shown(groups, []) == "uniform"
    assert shown([], trees) == "mixed set, uniform group"
    assert "were kept" in step_section([], [])


def rows_of(page: str) -> list[list[str]]:
    """The cells of the ranking."""
    (table,) = re.findall(r"ranks the branches.*?<tbody>(.*?)</tbody>", page, flags=re.S)
    return [re.findall("<td>(.*?)</td>", row) for row in table.split("</tr>") if "<td>" in row]


def test_branches_are_ranked_within_their_fork() -> None:
    tree = make_tree()
    swapped: list[Rollout] = list(tree.rollouts)
    swapped[3] = dataclasses.replace(
        swapped[3], score=Score(1.5, 1.75, 0.25), kept=False, reward=0.0
    )
    swapped[4] = dataclasses.replace(swapped[4], score=Score(0.25, 2.0, 1.75))
    swapped[6] = dataclasses.replace(swapped[6], reward=0.0)
    tree = dataclasses.replace(tree, rollouts=tuple(swapped))
    page = step_section([], [tree])
    assert rows_of(page) == [
        ["0", "3", "+1.50", "+1.75", "+0.25", "✗", "pruned", "−0.25"],
        ["0", "2", "+0.50", "+0.75", "+0.25", "✓", "kept", "−0.50"],
        ["0", "4", "+0.25", "+2.00", "+1.75", "✗", "pruned", "0.00"],
        ["1", "5", "+0.20", "+0.75", "+0.55", "✓", "kept", "+0.25"],
        ["1", "6", "+0.10", "+0.75", "+0.65", "✗", "kept", "+0.50"],
        ["1", "7", "0.00", "+0.75", "+0.75", "✗", "pruned", "+0.75"],
    ]


def test_a_step_without_scores_or_branches_is_told_as_far_as_it_goes() -> None:
    tree = make_tree()
    plain = tuple(dataclasses.replace(rollout, score=None) for rollout in tree.rollouts)
    page = step_section([make_group()], [dataclasses.replace(tree, rollouts=plain)])
    assert page.count("<figure>") == 2 and 'id="scatter"' not in page
    assert {tuple(row[2:5]) for row in rows_of(page)} == {("–", "–", "–")}
    roots = dataclasses.replace(tree, rollouts=tree.rollouts[:2])
    assert "ranks the branches" not in step_section([], [roots])
