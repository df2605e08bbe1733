"""Text from a model, a data set or a user is shown as text: nowhere does it act or hide.

Every public view has a case below; a new one without a case fails here.
"""

from __future__ import annotations

import dataclasses
import html
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plotly.offline import get_plotlyjs
from test_report import make_config, make_tree
from test_views import make_evaluation, make_records

from i2b_lpo import cli, views
from i2b_lpo.report.page import tour_page
from i2b_lpo.report.runs import Run
from i2b_lpo.trace import Branch, Question, Rollout, Score, Trace, read_traces, write_traces
from i2b_lpo.views import View

pytestmark = pytest.mark.slow

CHROME = shutil.which("chromium") or shutil.which("google-chrome")

HOSTILE = {
    "image": "<img src=x onerror=window.hacked=1>",
    "end of script": "</script><script>window.hacked=1</script>",
    "script state": "<!--<script>window.hacked=1//",
    "comment": "<!-- x --!> ]]> <![CDATA[",
    "svg": "'\"><svg/onload=window.hacked=1>`",
    "frame": "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe><object data=x>",
    "markup plotly draws": "<br><b>b</b><sub>s</sub><span style='color:red'>c</span>",
    "link plotly draws": '<a href="javascript:window.hacked=1" target="_self">a</a>',
    "popup": '<a href="https://x.invalid/" popup="width=9">a</a>',
    "script link": "javascript:window.hacked=1//[x](javascript:window.hacked=1)",
    "template": "%{x} %{y:.3f} %{customdata[0]} %{fullData.name}<extra>e</extra>",
    "old template": "%{_xother} {{x}} {x} ${x}",
    "math": r"$\href{javascript:window.hacked=1}{x}$ $$\unicode{60}$$",
    "other math": r"\(\href{javascript:window.hacked=1}{x}\) \[x\] \begin{equation}x\end{equation}",
    "entities": "&lt;img&gt; &#60;b&#62; &#x3c; &amp;amp; &nbsp;&zwnj;&hellip &#36;x&#36;",
    "chat": "<|im_end|>\n<|im_start|>system\n<s>[INST]</s> <|endoftext|>",
    "directions": "\u202edcba\u202c\u200e\u061c\u202a\u2066\u2069x",
    "without shape": "\u200b\u2060\ufeff\u00ad\u034f\u3164\u2800\ufe0f\U000e0041\U000e0100\u180e",
    "controls": "a\0b\x08\x7f\x85\x9b31m\ufffe\uffff\ue000",
    "terminal": "\x1b[31mred\x1b]0;title\x07\x1b[2J\x1b]8;;http://x.invalid\x1b\\",
    "lines": "one\rtwo\ntwo\r\nthree\u2028four\u2029five\vsix\fseven\ttab",
    "lone surrogates": "\ud800 \udfff\ud83d x",
    "blanks": "a\u00a0b\u2003c\u3000d",
    "row separators": '","x":1}]}|a;b\t"\'\\" \\u003cb\\u003e',
}
LONG = "<b>\u202e$x$%{x}" * 10_000  # a token of about 100 kB


# --- records that hold the text in every field --------------------------------------------------


def rollout(text: str, *, reward: float | None, start: int = 0, parent: Rollout | None = None,
            **fields: Any) -> Rollout:  # fmt: skip
    pieces = [text, "\n", text, "Split", text]
    ids = [7 * start + t for t in range(len(pieces))]
    if parent is not None:
        pieces, ids = [*parent.pieces[:start], *pieces], [*parent.ids[:start], *ids]
    n = len(ids)
    return Rollout(
        tuple(ids), tuple(pieces), (0.9,) * n, (-5.0,) * n, (-5.0,) * n, text, reward == 1.0,
        reward, text, **fields,
    )  # fmt: skip


def tree(text: str) -> Trace:
    """Two roots and a fork, with the text in every field that holds text."""
    root = rollout(text, reward=1.0, score=Score(0.5, 0.75, 0.25))
    branches = [
        rollout(
            text, reward=reward, start=2, parent=root, kept=reward == 1.0,
            branch=Branch(0, 3, text, (0.5, -1.0), 1.0, 2.0), score=Score(0.25, 0.5, 0.25),
        )
        for reward in (1.0, 0.0)
    ]  # fmt: skip
    others = [rollout(text, reward=reward) for reward in (None, 0.25)]
    meta = {"advantages": [0.5, -0.5, 1.0, -1.0, 0.0], text: text}
    trajectories = (root, *others, *branches)
    question = Question(text, text, text, text, domain=text, checks=text)
    return Trace(question, (1,), trajectories, policy=text, meta=meta)


EVERY: dict[str, Callable[[str], list[View]]] = {
    "branch_tree": lambda t: [views.branch_tree(tree(t))],
    "comparison": lambda t: [
        views.comparison({t: make_evaluation(name=t, extra=t)}, metrics=[t, "pass@1"]),
        views.comparison({t: make_evaluation(extra=t), "x": make_evaluation()}, metrics=[t]),
    ],
    "entropy_histogram": lambda t: [
        views.entropy_histogram({t: [tree(t)]}, words=[t]),
        views.entropy_histogram([tree(t)], words=[t, "Split"]),
    ],
    "entropy_strip": lambda t: [
        views.entropy_strip(tree(t), i, quantity=quantity)
        for quantity in ("entropy", "surprisal")
        for i in (0, 3)
    ],
    "gamma_curves": lambda t: [views.gamma_curves({t: [1.0, 0.5, 0.25], "x": [0.5, 0.5]})],
    "group_advantages": lambda t: [views.group_advantages(tree(t), [0.5, -0.5, 1.0, -1.0, 0.0])],
    "head_activation": lambda t: [
        views.head_activation([[[2.0, 1.0]]], [[[1.0, 0.0]]], slot=[[0.5]], title=t)
    ],
    "head_detail": lambda t: [
        views.head_detail([0.5, 0.125, 0.125, 0.25], [0.25, 0.25, 0.5], [t, "a", t], 0, 0)
    ],
    "head_grid": lambda t: [views.head_grid([[0.5]], [[0.25]], quantity=t, title=t)],
    "ib_ranking": lambda t: [views.ib_ranking({t: [[1.0, 0.0], [1.0, 2.0]]}, [t, "x"])],
    "ib_scatter": lambda t: [
        views.ib_scatter([tree(t)]),
        views.ib_scatter([tree(t)] * 3, kinds=[[t, t, t, "x", t]] * 3),
    ],
    "latent_map": lambda t: [
        views.latent_map([[0, 1], [1, 0], [2, 2]], [t, t, "x"], title=t),
        views.latent_map([[0, 1, 5], [1, 0, 0], [2, 2, 1]], ["x", t, t], here=[0, 1, 2]),
    ],
    "memory_budget": lambda t: [views.memory_budget({t: 2.0**30, "x": 1.0})],
    "next_word": lambda t: [
        views.next_word({t: 0.25, "x": 0.5}, {t: 0.5, "x": 0.25}, title=t),
        views.next_word({"x": 0.25, t: 0.5}, {t: 0.5, "x": 0.25}),
    ],
    "strategy_shares": lambda t: [views.strategy_shares({t: make_evaluation(extra=t)})],
    "training_curves": lambda t: [
        views.training_curves({t: make_records(0, 5, extra=t), "x": make_records(1, 3)}),
        views.training_curves([{"step": t, t: 1.0, "note": t}, {"step": 1.0, t: 2.0}]),
    ],
}  # fmt: skip
"""Public view → its figures with the text in every argument that takes text."""

NUMBERS_ONLY = {"kl_bars", "surrogate", "training_step"}
"""Public views that take no text."""


def public_views() -> dict[str, Any]:
    found = {name: getattr(views, name) for name in views.__all__}
    return {
        name: thing
        for name, thing in found.items()
        if inspect.isfunction(thing) and thing.__annotations__.get("return") == "View"
    }


def test_every_public_view_has_a_case() -> None:
    assert set(public_views()) == set(EVERY) | NUMBERS_ONLY, "give the new view a case in EVERY"
    for name in NUMBERS_ONLY:
        given = {k: v for k, v in public_views()[name].__annotations__.items() if k != "return"}
        assert not re.search("str|Trace|Any|Records", " ".join(given.values())), f"{name} has text"


def test_the_records_hold_the_text_in_every_field_of_text() -> None:
    """A new field of text can't be forgotten."""
    trace = tree("T")
    where = {
        Question: trace.question, Rollout: trace.rollouts[-1], Branch: trace.rollouts[-1].branch,
        Trace: trace,
    }  # fmt: skip
    for kind, record in where.items():
        for field in dataclasses.fields(kind):
            if field.type == "str":
                assert getattr(record, field.name) == "T", f"{kind.__name__}.{field.name}"


# --- how a browser and plotly read what we write ------------------------------------------------

HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00a0\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2000-\u200f"
    "\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ud800-\udfff\ue000-\uf8ff\ufe00-\ufe0f\ufeff"
    "\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
)
"""Characters that act on a terminal or a line of text, or that one can't see."""


def shown(text: str) -> str:
    """Independent of `visible`: every hidden character written out."""

    def code(match: re.Match[str]) -> str:
        found = ord(match[0])
        if match[0] in "\n\t":
            return {"\n": "↵", "\t": "⇥"}[match[0]]
        wide = 2 if found < 0x100 else 4 if found < 0x10000 else 8
        return "\\" + {2: "x", 4: "u", 8: "U"}[wide] + f"{found:0{wide}x}"

    return HIDDEN.sub(code, text)


OWN = re.compile(
    r"</?b>|<br>|</?sub>|<extra></extra>|%\{x\}|%\{y:\.[23]f\}|</span>"
    r'|<span style="(?:color:#[0-9A-F]{6}|font-size:12px)">'
)
"""The markup that the views write themselves; whatever else looks like markup is a fault."""


def shown_by_plotly(text: str) -> str:
    """What plotly draws of a string: its own markup aside, only known entities may be left."""
    bare = OWN.sub(" ", text)
    assert not set("<>$%") & set(bare), f"plotly would obey {bare[:80]!r}"
    named = {"amp": "&", "lt": "<", "gt": ">"}
    known = re.compile(r"&(?:#(36|37);|(amp|lt|gt);)")
    assert "&" not in known.sub("", bare), f"an entity in {bare[:80]!r}"
    return known.sub(lambda m: chr(int(m[1])) if m[1] else named[m[2]], bare)


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f"{path}.key", key
            yield from strings(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from strings(item, path)


@cache
def template() -> str:
    return json.dumps(figure_of(views.memory_budget({"x": 1.0}))["layout"]["template"])


def figure_of(view: View) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(view.figure.to_json())
    return found


def check_figure(view: View) -> str:
    """All that plotly draws of a figure, after a look at each of its strings."""
    figure = figure_of(view)
    # The theme is the same in every figure, so no text is in it.
    assert json.dumps(figure["layout"].pop("template")) == template()
    drawn = []
    for path, text in strings(figure):
        said = shown_by_plotly(text)
        assert not HIDDEN.search(said), f"{path} hides characters: {said[:80]!r}"
        drawn.append(said)
    return "\n".join(drawn)


TAGS: dict[str, set[str]] = {
    "html": {"lang"}, "meta": {"charset", "name", "content", "http-equiv"}, "p": {"class"},
    "section": {"aria-labelledby"}, "h2": {"id"}, "th": {"scope"},
    "div": {"class", "tabindex", "role", "aria-label", "id", "style"},
} | {
    tag: set()
    for tag in (
        "head", "title", "style", "script", "body", "noscript", "main", "header", "h1", "h3", "ul",
        "ol", "li", "strong", "q", "figure", "figcaption", "details", "summary", "table", "thead",
        "tbody", "tr", "td", "pre", "code",
    )
}  # fmt: skip
PLOT = re.compile(
    r"\(function \(\) \{ const f = (\{.*\});\nPlotly\.newPlot\(\"[a-z0-9-]+\", f\.data, f\.layout, "
    r"(\{.*\})\); \}\)\(\);"
)


class Parsed(HTMLParser):
    """Reads HTML against a whitelist of tags and attributes, and keeps its text and scripts."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.inside: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self.labels: list[str] = []
        self.feed(source)
        self.close()
        assert not self.inside, f"not closed: {self.inside}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, f"<{tag}> has no business here"
        for name, value in attrs:
            assert name in TAGS[tag], f"<{tag} {name}> has no business here"
            if name == "style":
                assert re.fullmatch(r"height:\d+px", value or "")
            if name in ("id", "class", "aria-labelledby"):
                assert re.fullmatch("[a-z0-9-]+", value or "")
            if name == "aria-label":
                self.labels.append(value or "")
        if tag == "script":
            self.scripts.append("")
        if tag != "meta":
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag

    def handle_data(self, data: str) -> None:
        here = self.inside[-1] if self.inside else ""
        if here == "script":
            self.scripts[-1] += data
        elif here != "style":
            self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data[:40]!r}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data[:40]!r}")

    handle_pi = unknown_decl


def check_html(source: str, *, figures: int) -> Parsed:
    """Parse HTML of ours; its scripts are plotly's and the figures', and hold nothing else."""
    source.encode("utf-8")
    found = Parsed(source)
    plots = found.scripts
    if source.startswith("<!DOCTYPE html>"):
        library, *plots = found.scripts
        assert library == get_plotlyjs()
        outside = source.replace(html.escape(library), "").replace(library, "")
        assert "Content-Security-Policy" in outside and "default-src 'none'" in outside
        assert not re.search(
            r"@import|url\(", "".join(re.findall("<style>.*?</style>", outside, re.S))
        )
    assert len(plots) == figures
    for script in plots:
        assert not set("<>&\u2028\u2029") & set(script)
        match = PLOT.fullmatch(script)
        assert match
        for _, text in strings(json.loads(match[1])):
            shown_by_plotly(text)
    for said in (found.text, *found.labels):
        assert not any(HIDDEN.search(line) for line in said.split("\n"))
    return found


# --- views --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", EVERY)
def test_a_view_shows_the_text_and_obeys_none_of_it(name: str, kind: str) -> None:
    text = HOSTILE[kind]
    start = shown(text)[:8]
    for view in EVERY[name](text):
        drawn = check_figure(view)
        assert start in drawn or start.replace(" ", "␣") in drawn, "the figure doesn't show it"
        assert not HIDDEN.search(view.describe())
        assert not any(HIDDEN.search(cell) for row in view.table for cell in row)
        if name not in ("entropy_histogram", "group_advantages", "head_detail", "ib_scatter"):
            # Where the figure cuts it short, the words or the table have all of it.
            words = "\n".join([view.describe(), *(c for row in view.table for c in row)])
            assert shown(text) in words or shown(repr(text)) in words
        bundle = view._repr_mimebundle_()
        assert set(bundle) == {"text/plain", "application/vnd.plotly.v1+json"}
        assert bundle["text/plain"] == view.describe() == str(view)
        json.dumps(bundle, ensure_ascii=False, allow_nan=False).encode("utf-8")
        found = check_html(view.to_html(include_js=False, caption=text), figures=1)
        assert found.labels[-1] == view.describe()  # the alternative text, letter by letter
        assert all(shown(line) in found.text for line in text.split("\n"))
        assert json.loads(PLOT.fullmatch(found.scripts[0])[1]) == figure_of(view)  # type: ignore[index]


@pytest.mark.parametrize("name", EVERY)
def test_a_whole_page_of_a_view_is_clean(name: str) -> None:
    text = "".join(HOSTILE.values())
    view = EVERY[name](text)[0]
    found = check_html(view.to_html(caption=text), figures=1)
    assert shown(text.split("\n")[0]) in found.text


@pytest.mark.parametrize("name", EVERY)
def test_a_token_of_100_kb_is_cut_in_the_figure(name: str) -> None:
    assert len(LONG) > 100_000
    for view in EVERY[name](LONG):
        drawn = [text for _, text in strings(figure_of(view))]
        longest = max(drawn, key=len)
        assert len(longest) < 4000, longest[:60]
        assert check_figure(view)
        check_html(view.to_html(include_js=False), figures=1)


def test_lines_of_text_cannot_be_taken_for_lines_of_a_figure() -> None:
    """A newline in a name is no new line in a title, a label or a hover text."""
    for name, make in EVERY.items():
        for one, other in zip(make("a↵b"), make("a\nb"), strict=True):
            if name not in ("branch_tree", "entropy_strip", "group_advantages", "ib_scatter"):
                drawn = ([s for _, s in strings(figure_of(view))] for view in (one, other))
                assert len({"".join(found).count("<br>") for found in drawn}) == 1, name


# --- traces, files and the terminal -------------------------------------------------------------


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_printed_trace_has_a_line_for_each_trajectory_and_hides_nothing(kind: str) -> None:
    trace = tree(HOSTILE[kind])
    printed = str(trace)
    lines = printed.split("\n")
    assert len(lines) == 1 + len(trace.rollouts), "text makes a line of its own"
    assert not any(map(HIDDEN.search, lines))
    assert shown(HOSTILE[kind]) in lines[0]
    page = Parsed(trace._repr_html_())
    assert page.text == printed and set(page.inside) == set()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_saved_trace_gives_the_text_back(kind: str, tmp_path: Path) -> None:
    trace = tree(HOSTILE[kind])
    write_traces(tmp_path / "t.jsonl", [trace, trace])
    assert list(read_traces(tmp_path / "t.jsonl")) == [trace, trace]


def test_the_terminal_obeys_no_rollout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "".join(HOSTILE.values())
    named = SimpleNamespace(pad_id=0)
    monkeypatch.setattr("i2b_lpo.model.policy.load_policy", lambda *_, **__: named)
    monkeypatch.setattr("i2b_lpo.rollout.branching.grow_trees", lambda *_, **__: [tree(text)])
    monkeypatch.setattr("i2b_lpo.model.steering.load_steering", lambda *_, **__: None)
    assert cli.main(["rollout", "--question", "What is 2*7?"]) == 0
    said = capsys.readouterr().out
    assert not any(HIDDEN.search(line) for line in said.split("\n"))
    assert "onerror" in said and "im_end" in said


# --- the tour's page ----------------------------------------------------------------------------


def hostile_page(path: Path, text: str) -> str:
    """The tour's page with the text in every record that goes into it."""
    config = make_config(
        policy=text, task=text, seed=text, questions=text,
        rollout={"rollouts": text, "temperature": text}, branch={"branches": text, "latents": text},
        ib={"keep": text}, grpo={"alpha": text}, **{text: text},
    )  # fmt: skip
    own = dataclasses.replace(make_tree(text, name=text), policy=text)
    runs = {
        name: Run(
            make_evaluation(0.2, name=text, extra=text), [tree(text)],
            make_records(0, 5, extra=text), config | {"only": name}, [own],
        )
        for name in ("GRPO", "I²B-LPO")
    }  # fmt: skip
    tour_page(
        path, before=make_evaluation(name=text, extra=text), traces_before=[tree(text)],
        runs=runs, environment={text: {text: text}}, latents={"rollout_tokens": text, text: text},
        labeller=lambda *_: SimpleNamespace(signature=text), split=text, command=text,
    )  # fmt: skip
    return path.read_text("utf-8")


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_page_shows_the_text_and_obeys_none_of_it(kind: str, tmp_path: Path) -> None:
    found = check_html(hostile_page(tmp_path / "index.html", HOSTILE[kind]), figures=10)
    for line in HOSTILE[kind].split("\n"):
        assert shown(line) in found.text


# --- a real browser -----------------------------------------------------------------------------


@pytest.mark.skipif(CHROME is None, reason="needs Chromium: apt install chromium")
def test_a_real_browser_obeys_nothing_and_asks_for_nothing(tmp_path: Path) -> None:
    driver = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright: pip install playwright"
    )
    # What plotly itself would draw comes first: titles are cut.
    text = HOSTILE["popup"] + HOSTILE["link plotly draws"] + "".join(HOSTILE.values())
    hostile_page(tmp_path / "page.html", text)
    view = views.branch_tree(tree(text))
    (tmp_path / "tree.html").write_text(view.to_html(caption=text), encoding="utf-8")
    flags = [
        f"--{flag}"
        for flag in (
            "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
            "disable-background-networking", "disable-component-update",
        )
    ]  # fmt: skip
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROME, args=flags)
        for name, figures in (("page", 10), ("tree", 1)):
            page = browser.new_page()
            page.set_default_timeout(180_000)
            events: list[str] = []
            page.on("dialog", lambda dialog, to=events: (to.append("dialog"), dialog.dismiss()))
            page.on("console", lambda message, to=events: to.append(f"console: {message.text}"))
            page.on("pageerror", lambda error, to=events: to.append(f"error: {error}"))
            page.on("request", lambda request, to=events: to.append(f"request: {request.url}"))
            page.on("popup", lambda popup, to=events: to.append("popup"))
            address = (tmp_path / f"{name}.html").as_uri()
            page.goto(address)
            page.wait_for_function(f"document.querySelectorAll('.main-svg').length >= {figures}")
            page.wait_for_function("document.querySelector('.js-plotly-plot')._fullLayout")
            drawn = page.evaluate(
                "() => [...document.querySelectorAll('svg text')].map(e => e.textContent).join()"
            )
            assert "<img src=x" in drawn or "<img␣src=x" in drawn
            # Over every token of the first lane: hover texts are drawn by the same hands.
            for box in page.locator(".bars .point path").all()[:6]:
                box.hover(force=True)
                page.wait_for_timeout(20)
            found = page.evaluate(
                "() => ({hacked: typeof window.hacked, links: document.querySelectorAll("
                "'a[href], img, iframe, object, svg a, math, mjx-container').length,"
                " handlers: [...document.querySelectorAll('*')].filter(e => [...e.attributes]"
                ".some(a => a.name.startsWith('on'))).length})"
            )
            assert found == {"hacked": "undefined", "links": 0, "handlers": 0}
            assert events == [f"request: {address}"]
            page.close()
        browser.close()


# --- without torch ------------------------------------------------------------------------------


def test_a_saved_trace_opens_and_draws_without_torch(tmp_path: Path) -> None:
    write_traces(tmp_path / "traces.jsonl", [make_tree()])
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "accelerate", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
try:
    import torch
except ModuleNotFoundError:
    pass
from i2b_lpo.report import page as report
from i2b_lpo.trace import read_traces
from i2b_lpo import views as v
(trace,) = read_traces(sys.argv[1])
str(trace), trace._repr_html_()
drawn = [
    v.branch_tree(trace), v.entropy_strip(trace), v.entropy_strip(trace, quantity="surprisal"),
    v.entropy_histogram([trace], words=["Split"]), v.ib_scatter([trace]),
    v.group_advantages(trace, trace.meta["advantages"]),
    v.head_detail([0.5, 0.5], [1.0], trace.rollouts[0].pieces[:1], 0, 0),
    v.latent_map([r.branch.z for r in trace.rollouts if r.branch][:2] + [[0, 0]], "aab"),
]
for view in drawn:
    assert view.to_html() and view.to_html(include_js=False) and view._repr_mimebundle_()
    print(view.describe())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "traces.jsonl")],
        capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert not done.stderr, done.stderr
    assert len(done.stdout.splitlines()) == 8
