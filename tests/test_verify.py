r"""Boxes against a brute-force reader, exact arithmetic against trees of fractions, math-verify's
known mistakes one by one, attacks, and a worker that is interrupted in every way we know of.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2b_lpo import _verify_worker
from i2b_lpo._verify_worker import Worker, WorkerPool, WorkerStartError, shared_pool
from i2b_lpo.verify import (
    MAX_CHARACTERS,
    Reason,
    equivalent,
    extract_boxed,
    gsm8k_gold,
    verify,
    verify_batch,
)

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
PATIENT = 60.0  # seconds for a comparison that must not time out on a busy machine
HANGS = "9^{9^{9^9}}"
numbers = count(1)


def boxed(answer: str) -> str:
    return rf"The answer is \boxed{{{answer}}}."


def reason(gold: str, answer: str, timeout: float = PATIENT) -> Reason:
    return verify(gold, boxed(answer), timeout=timeout).reason


def fresh_pair() -> tuple[str, str]:
    """Return two equal answers that no earlier test has left in the pool's memory."""
    n = next(numbers)
    return f"x+{n}y", boxed(f"{n}y+x")


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: WorkerPool, pairs: object, limit: float) -> None:
        raise AssertionError(f"stage 1 left {pairs} to math-verify")

    monkeypatch.setattr(WorkerPool, "compare_many", refuse)


# ------------------------------------------------------------------------------------- extraction


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{5}, no, \boxed{6}", "6"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed {7}", "7"),
        (r"\boxed{5} and \boxed{6", "5"),
        (r"}{\boxed{4}}}", "4"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
        (r"\boxed{a\\{b}}", r"a\\{b}"),
        (r"\\boxed{8}", "8"),
        (r"\boxed{}", ""),
        (r"\boxed5", None),
        (r"\boxed{5", None),
        (r"boxed{5}", None),
        ("", None),
    ],
)
def test_extract_boxed_returns_the_last_balanced_box(text: str, answer: str | None) -> None:
    assert extract_boxed(text) == answer


def brute_force_box(text: str) -> str | None:
    def closing_brace(begin: int) -> int | None:
        depth = 1
        for i in range(begin, len(text)):
            escaped = (i - len(text[:i].rstrip("\\"))) % 2 == 1
            depth += (text[i] == "{") - (text[i] == "}") if not escaped else 0
            if depth == 0:
                return i
        return None

    for box in reversed(list(re.finditer(r"\\boxed\s*\{", text))):
        end = closing_brace(box.end())
        if end is not None:
            return text[box.end() : end]
    return None


TOKENS = ("\\boxed{", "\\boxed ", "{", "}", "}", "\\", "\\{", "\\}", "x", " ", "\n", "\ud800")


@settings(max_examples=500)
@given(st.lists(st.sampled_from(TOKENS), max_size=25).map("".join))
def test_extract_boxed_agrees_with_a_brute_force_reader(text: str) -> None:
    assert extract_boxed(text) == brute_force_box(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x" * 10**6 + r"\boxed{5}", "correct"),
        (r"\boxed{5}" + "}" * 10**6, "correct"),
        (r"\boxed{5}" + "{" * 10**6, "correct"),
        (r"\boxed{" * 150_000, "no_answer"),
        (r"\boxed{5}" + r"\boxed" + "\\" * 10**6, "correct"),
        (r"\boxed" + " " * 10**6, "no_answer"),
        (r"\boxed{" + "{" * 10**6 + "}" * 10**6 + "}", "too_long"),
        (r"\boxed{" + "7" * 200_000 + "}", "too_long"),
        (r"\boxed{" + "(" * 3000 + "5" + ")" * 3000 + "}", "too_long"),
    ],
)
def test_a_megabyte_is_read_once(text: str, found: Reason, no_worker: None) -> None:
    # Quadratic time would take hours here.
    assert verify("5", text).reason == found


# ---------------------------------------------------------------------------------- stage 1: tables


SAME = [
    ("18", "18."),
    ("18", "18.0"),
    ("18", r"\$18"),
    ("18", "$18$"),
    ("18", r"\(18\)"),
    ("18", r"\left(18\right)"),
    ("18", r"\text{18}"),
    ("18", r"18\text{ eggs}"),
    ("18", "18 eggs"),
    ("18", "18cm"),
    ("18", r"18\,\mathrm{cm}^2"),
    ("18", r"18\text{ m}/\text{s}"),
    ("18", "x = 18"),
    ("x=18", "18"),
    (r"\boxed{18}", "18"),
    ("025", "25"),
    ("1234", "1,234"),
    ("1234", r"1\,234"),
    ("1234", "1{,}234"),
    ("1234", r"1,\!234"),
    ("1234", "1 234"),
    ("1234", "1\u202f234"),
    ("11111111100", r"11,\! 111,\! 111,\! 100"),
    ("1234567", "1,234,567.00"),
    ("0.5", "½"),
    ("5/2", "2½"),
    ("-3", "\u22123"),  # minus sign
    ("123", "\uff11\uff12\uff13"),  # full-width digits
    ("42", "٤٢"),
    ("300", r"3\times10^{2}"),
    ("300", "3×10²"),
    ("0.03", "3e-2"),
    ("3/4", r"\frac{3}{4}"),
    ("3/4", r"\dfrac34"),
    ("3/4", r"\tfrac 34"),
    ("3/4", r"\frac{3}4"),
    ("3/4", ".75"),
    ("3/4", "6 / 8"),
    ("5", "--5"),
    ("5", "-(-5)"),
    (r"137\frac12", "137.5"),
    (r"-15\frac{3}{5}", "-15.6"),
    ("2.5", "2 1/2"),
    ("1/3", r"0.\overline{3}"),
    ("1/6", r"0.1\overline{6}"),
    ("1024", "2^{10}"),
    ("-4", "-2^2"),
    ("0.5", "2^{-1}"),
    (r"\frac{1}{2^{98}}", "1/2^98"),
    (r"20\%", "20"),
    (r"20\%", "0.2"),
    ("0.2", "20%"),
    ("20", r"20\text{ percent}"),
    ("45", r"45^\circ"),
    ("45", "45°"),
    (r"25^{\circ}", r"25^\circ\text{C}"),
    ("3000000", r"3\text{ million}"),
    ("37_8", "37_{8}"),
    ("37_8", "37"),
    (r"8\!:\!34 \text{ p.m.}", "8:34 PM"),
    ("08:34", "8:34"),
    (r"8:34\text{ p.m.}", "8:34"),
    (r"\text{Evelyn}", "evelyn"),
    (r"\text{(B)}", "B"),
    (r"(\text{H})", r"\textbf{H}"),
    (r"\text{A,C}", "C, A"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    (r"2 \text{ or } 3", "2, 3"),
    ("x^2+1", "x² + 1"),
    (r"2\sqrt{3}", r"2\sqrt{3}\text{ cm}."),
    (r"\pi r^2", r"\pi r^{2}"[:-3] + "2"),
    ("12", "1\u200b2"),  # zero-width space
    ("81", "\u202e81"),  # shown as 18, but 81 was written
]

DIFFERENT = [
    ("18", "19"),
    ("18", "-18"),
    ("18", r"\text{eighteen}"),
    ("3", r"3\text{ million}"),
    ("0.2", "0.02"),
    (r"20\%", r"0.2\%"),
    ("1/3", "0.333333"),
    ("1/2^99", "1/2^98"),
    ("0.0000001", "0.0000002"),
    ("12345678901234567890", "12345678901234567891"),
    ("x=5", "y=5"),
    ("37_8", "37_9"),
    ("37", "37_8"),
    ("5", "5_2"),
    ("1_7", "1_7, 1"),
    (r"\sqrt{5}", r"\sqrt{5}_2"),
    ("f(x)", "f'(x)"),
    (r"\text{Evelyn}", r"\text{Carla}"),
    (r"\text{CBAD}", "ABCD"),
    (r"\text{A,C}", "A,B"),
    (r"\text{even}", "7"),
    (r"8:34\text{ p.m.}", r"8:34\text{ a.m.}"),
    ("9:24", "3:08"),
    (r"x<1\text{ or }x>2", r"x<1\text{ and }x>2"),
    (r"\text{four}", r"-\text{four}"),
]

LEFT_OPEN = [  # by stage 1: not two numbers, and not the same string
    ("18", "eighteen"),
    ("100200", "100, 200"),
    ("1234", "(1,234)"),
    ("1234567", "123,4567"),
    ("123456", "1,234,56"),
    ("3.5", r"2\frac{3}{2}"),
    ("2", "2xy"),
    ("5", r"5 \text{ or } 6"),
    ("120", "5!"),
    ("1", r"\frac{1}{0}"),
    ("1", "0^0"),
    ("2", "8^{1/3}"),
    ("2", r"2\mathrm{i}"),
    ("12", "1\x002"),
    ("1", "10^{100000}"),
    ("1", "1e9999"),
    ("1", "9" * 1000),
    ("1", "(" * 200 + "1" + ")" * 200),
    ("2 abc", "2"),
    (r"\frac12 abc", "1/2"),
]


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_stage_one_finds_equal(gold: str, answer: str, no_worker: None) -> None:
    verdict = verify(gold, boxed(answer))
    assert verdict.correct
    assert verdict.reason == "correct"
    assert verdict.answer == answer
    assert equivalent(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_stage_one_finds_different(gold: str, answer: str, no_worker: None) -> None:
    verdict = verify(gold, boxed(answer))
    assert not verdict.correct
    assert verdict.reason == "wrong"


@pytest.mark.parametrize(("gold", "answer"), LEFT_OPEN)
def test_stage_one_decides_nothing_it_cannot_know(gold: str, answer: str, no_worker: None) -> None:
    with pytest.raises(AssertionError, match=r"left .* to math-verify"):
        verify(gold, boxed(answer))


@pytest.mark.parametrize("text", ["no box", r"\boxed{}", r"\boxed{ }", r"\boxed{5", ""])
def test_no_answer(text: str, no_worker: None) -> None:
    assert verify("5", text).reason == "no_answer"


def test_the_bound_on_characters_is_exact(no_worker: None) -> None:
    assert verify("5", boxed("5" + " " * (MAX_CHARACTERS - 1))).reason == "correct"
    assert verify("5", boxed("5" + " " * MAX_CHARACTERS)).reason == "too_long"
    assert verify("5", boxed("5.000"), max_characters=4).reason == "too_long"


def test_gsm8k_gold() -> None:
    assert gsm8k_gold("5 #### 4\n#### -1,234,567") == "-1234567"
    for field in ("no marker: 5", "#### "):
        with pytest.raises(ValueError, match="no final answer"):
            gsm8k_gold(field)


def test_bad_arguments_are_refused_before_anything_is_compared(no_worker: None) -> None:
    with pytest.raises(ValueError, match="one gold answer for each text"):
        verify_batch(["1", "2"], [boxed("x+1")])
    for gold in ("", " ", "$$", r"\boxed{}"):
        with pytest.raises(ValueError, match="is empty"):
            verify_batch(["x", gold], [boxed("x+1")] * 2)
    with pytest.raises(ValueError, match="characters"):
        verify("7" * (MAX_CHARACTERS + 1), boxed("5"))
    for bad in (0, -1.0, float("inf"), float("nan"), None):
        with pytest.raises(ValueError, match="timeout"):
            verify("5", boxed("5"), timeout=bad)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="timeout"):
            equivalent("5", "5", timeout=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="string"):
        verify(5, boxed("5"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="string"):
        verify("5", None)  # type: ignore[arg-type]


# ------------------------------------------------------------------------ stage 1: exact arithmetic

rationals = st.fractions(min_value=-5000, max_value=5000, max_denominator=200)


def grouped(number: int, separator: str) -> str:
    return f"{number:,}".replace(",", separator)


@st.composite
def written(draw: st.DrawFn, value: Fraction) -> str:
    """Write a fraction in one of the notations models use."""
    over, under = value.numerator, value.denominator
    k = draw(st.integers(1, 9))
    forms = [
        rf"\frac{{{over}}}{{{under}}}",
        rf"\dfrac{{{over * k}}}{{{under * k}}}",
        f"{over}/{under}",
        rf"{over * k} \div {under * k}",
        f"{over} \\cdot {under}^{{-1}}",
    ]
    whole, rest = divmod(abs(over), under)
    sign = "-" if value < 0 else ""
    if whole and rest:
        forms += [rf"{sign}{whole}\frac{{{rest}}}{{{under}}}", f"{sign}{whole} {rest}/{under}"]
    if under == 1:
        separators = (",", "{,}", r"\,", r"{,}", r",\!")
        forms += [f"{sign}{grouped(whole, s)}" for s in separators] + [f"{over}.00"]
    if 10**6 % under == 0:
        forms += [f"{sign}{abs(over) * 10**6 // under / 10**6:f}"]
    before, after = draw(
        st.sampled_from(
            [("", ""), ("$", "$"), (r"\$", ""), ("", "."), ("{", "}"), ("", r"\text{ m}")]
        )
    )
    return before + draw(st.sampled_from(forms)) + after


@settings(max_examples=250)
@given(st.data(), rationals, rationals)
def test_numbers_compare_as_fractions_in_every_notation(
    data: st.DataObject, a: Fraction, b: Fraction
) -> None:
    pool = _verify_worker._shared
    for other in (a, b):
        gold, answer = data.draw(written(a)), data.draw(written(other))
        assert verify(gold, boxed(answer)).reason == ("correct" if a == other else "wrong")
        assert equivalent(gold, answer) == (a == other)
    assert _verify_worker._shared is pool  # stage 1 alone: no pool was needed


Tree = tuple[str, Fraction]
leaves = st.integers(0, 30).map(lambda n: (str(n), Fraction(n)))


def combined(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    def join(a: Tree, operator: str, b: Tree) -> Tree:
        (left, x), (right, y) = a, b
        if operator in ("/", "frac") and y == 0:
            operator = "+"
        if operator == "frac":
            return rf"\frac{{{left}}}{{{right}}}", x / y
        if operator == "^":
            power = int(y) % 4
            return f"({left})^{{{power}}}" if x else f"({left})^1", x**power if x else x
        value = {"+": x + y, "-": x - y, r"\times": x * y, "*": x * y}.get(operator)
        return f"({left}){operator}({right})", x / y if value is None else value

    operators = st.sampled_from(["+", "-", "*", r"\times", "/", "frac", "^"])
    return st.builds(join, children, operators, children)


@settings(max_examples=200)
@given(st.recursive(leaves, combined, max_leaves=8))
def test_arithmetic_agrees_with_the_tree_it_was_written_from(tree: Tree) -> None:
    text, value = tree
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > 2000:
        return
    gold = f"{value.numerator}/{value.denominator}"
    assert verify(gold, boxed(text)).reason == "correct"
    assert verify(gold, boxed(f"{text}+1")).reason == "wrong"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1-2-3", -4), ("8/4/2", 1), ("2^3^2", 512), ("-2^2", -4), ("2*3^2", 18), ("1+2*3", 7)],
)
def test_operators_bind_as_usual(text: str, value: int, no_worker: None) -> None:
    assert verify(str(value), boxed(text)).correct


# ------------------------------------------------------------------------------- stage 2: tables

EQUAL_BY_MATH_VERIFY = [
    ("x^2+1", "1+x^2"),
    ("x^2-1", "(x-1)(x+1)"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt3}"),
    (r"\frac{\pi}{2}", r"\frac\pi2"),
    (r"3\sqrt{13}", r"\sqrt{117}"),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}"),
    ("(-2,1)", r"\left( -2, 1 \right)"),
    (r"(-\infty,2)\cup(2,\infty)", r"\mathbb{R}\setminus\{2\}"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"3\pm2\sqrt{2}", r"3+2\sqrt2, 3-2\sqrt2"),
    (r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}", r"\begin{bmatrix}1\\-2\end{bmatrix}"),
    ("y=2x+3", "2x-y+3=0"),
    ("x^2+1=0", "2x^2+2=0"),
    ("y=2x+3", "2x+3"),
    (r"x \in [-2,7]", "[-2,7]"),
    ("3-2i", "-2i + 3"),
    ("2i", "(1+i)^2"),
    ("8i", "8 i"),
    (r"\sqrt{2}", "1.414214"),
    ("2^{n-1}", r"\frac{2^n}{2}"),
    ("120", "5!"),
    ("2^{2^{10}}", "16^{256}"),
    (r"12\sqrt{13}\text{ feet}", r"12 \sqrt{13}"),
    ("1,2", r"x=1\text{ or }x=2"),
    ("7", r"7 + 0\cdot x"),
]

# The first block are answers that math-verify 0.9 itself calls equal.
DIFFERENT_BY_MATH_VERIFY = [
    ("x^2+1=0", "x^2+2=0"),
    (r"\frac{\pi}{2^{99}}", r"\frac{\pi}{2^{98}}"),
    ("x=1/2^{99}", "x=1/2^{98}"),
    ("(1/2^{99},1)", "(1/2^{98},1)"),
    (r"\frac{\pi}{10^8}", "0.0"),
    ("3t", "3h"),
    ("2s", "2"),
    ("5", "4=5"),
    (r"\left( \frac{1}{4}, \frac{3}{4} \right)", r"-\left( \frac{1}{4}, \frac{3}{4} \right)"),
    (r"\left( \frac{1}{4}, \frac{3}{4} \right)", r"\left( \frac{1}{4}, \frac{3}{4} \right)+1"),
    ("0.56=56%", "0.58=56%"),
    ("x^2+1", "x^2+2"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(2,1)"),
    ("(1,2,3)", "(1,2)"),
    ("3+i", "3-i"),
    ("x>1", r"x \ge 1"),
    ("x=1", "x^2=1"),
    (r"\pi", r"\pi, 2\pi"),
    (r"\pi", "3.14"),
    (r"\pi", r"\frac{22}{7}"),
    ("5", r"5 \text{ or } 6"),
    ("5", r"\pm 5"),
    ("5", "5m"),
    ("6x", "6"),
    (r"\tan x", r"\cot x"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
]


def test_stage_two_finds_equal() -> None:
    golds, answers = zip(*EQUAL_BY_MATH_VERIFY, strict=True)
    verdicts = verify_batch(golds, [boxed(answer) for answer in answers], timeout=PATIENT)
    found = [(g, a, v.reason) for g, a, v in zip(golds, answers, verdicts, strict=True)]
    assert found == [(gold, answer, "correct") for gold, answer in EQUAL_BY_MATH_VERIFY]


def test_stage_two_finds_different() -> None:
    golds, answers = zip(*DIFFERENT_BY_MATH_VERIFY, strict=True)
    verdicts = verify_batch(golds, [boxed(answer) for answer in answers], timeout=PATIENT)
    found = [(g, a, v.reason) for g, a, v in zip(golds, answers, verdicts, strict=True)]
    assert [entry for entry in found if entry[2] not in ("wrong", "unparsable")] == []


@pytest.mark.parametrize(("a", "b"), [("x+1", "1+x"), ("x=5", "5"), (r"(1,2)", "1<x<2")])
def test_equivalent_is_symmetric(a: str, b: str) -> None:
    assert equivalent(a, b, timeout=PATIENT) == equivalent(b, a, timeout=PATIENT)
    assert equivalent(a, a)


def test_equivalent_of_hopeless_answers() -> None:
    long = "x" * (MAX_CHARACTERS + 1)
    assert equivalent(long, long)
    assert not equivalent(long, long + "x")
    assert equivalent("", " ")
    assert not equivalent("", "5")
    assert not equivalent("x+2", HANGS, timeout=0.2)


def test_a_batch_keeps_the_order_and_the_reasons() -> None:
    golds = ["5", "x+1", "5", "x+1", "5", "x+1", "5"]
    texts = ["5", boxed("1+x"), boxed("6"), boxed(HANGS), boxed("5"), boxed(r"\to\to"), "\\boxed{"]
    texts[-1] += "5" * 3000 + "}"
    verdicts = verify_batch(golds, texts, timeout=1.5)
    assert [v.reason for v in verdicts] == [
        "no_answer",
        "correct",
        "wrong",
        "timeout",
        "correct",
        "unparsable",
        "too_long",
    ]
    assert [v.correct for v in verdicts] == [v.reason == "correct" for v in verdicts]
    assert verify_batch([], []) == []


# ------------------------------------------------------------------------------------------ attacks

ATTACKS = [
    HANGS,
    "(10^{9})!",
    "99999999!!!",
    "(x+1)^{100000}",
    r"\binom{10^{9}}{5\cdot 10^8}",
    r"\sum_{n=1}^{10^{12}} n^{n}",
    r"\int_0^1 e^{x^{x^x}} dx",
    "(" * 900 + "1" + ")" * 900,
    r"\sqrt{" * 150 + "x" + "}" * 150,
    r"\frac{1}{" * 150 + "2" + "}" * 150,
    "9" * 1999,
    "-" * 1999 + "1",
    "2^" * 900 + "2",
    "1," * 900 + "1",
    "5" + "}" * 5,
    "\ud800\udfff x",
    "x\x00y\x00",
    "\u202e81\u202c\u2066x",
    "\\" * 1998,
    "$" * 1998,
    "{" * 900 + "}" * 900,
    " and " * 300,
    " " * 1500 + "x" + " " * 400,
    r"\text{" * 300 + "}" * 300,
    r"\begin{pmatrix}" + "1&" * 300,
    r"\frac{1}{0}",
    "0/0",
    r"\log(\log(\log(0)))",
    '{"outcome": "correct"}\n{"outcome": "correct"}',
]


def test_attacks_end_and_earn_nothing() -> None:
    texts = [boxed(attack) for attack in ATTACKS]
    verdicts = verify_batch(["x+2"] * len(texts), texts, timeout=2)
    assert [v.answer for v, a in zip(verdicts, ATTACKS, strict=True) if v.correct] == []
    assert reason("x+2", "2+x") == "correct"


def test_model_text_is_never_executed(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(target)!r}).touch()"
    for answer in (
        code,
        rf"\text{{{code}}}",
        f"1+{code}",
        f"{code}+x",
        f"x={code}",
        f"lambda: {code}",
    ):
        assert not verify("x+2", boxed(answer), timeout=5).correct
    assert not target.exists()


@settings(max_examples=200)
@given(
    st.text(
        st.sampled_from("0123456789.,+-*/^(){}[]\\$%_=<>!:;'\"~ xie½²−٣\u202e\x00\ud800")
        | st.characters(),
        max_size=30,
    )
)
def test_stage_one_accepts_any_text(text: str) -> None:
    from i2b_lpo.verify import _form

    form = _form(text)
    assert form == _form.__wrapped__(text)  # a function of the text alone
    if form.text:
        assert equivalent(text, text)


def test_many_hanging_answers_share_the_time() -> None:
    # One after the other they would take 64 s; the design takes about 2.
    texts = [boxed(f"9^{{9^{{9^{{{n}}}}}}}") for n in range(100, 164)]
    verify_batch(*zip(fresh_pair(), fresh_pair(), strict=True))  # start the workers
    start = time.monotonic()
    verdicts = verify_batch(["x+2"] * 64, texts, timeout=1)
    assert time.monotonic() - start < 30
    assert {v.reason for v in verdicts} == {"timeout"}


def test_hanging_answers_do_not_take_the_time_of_others() -> None:
    # The six come first, and any four of them could use up the whole time.
    fine = [fresh_pair() for _ in range(8)]
    golds = ["x+2"] * 6 + [gold for gold, _ in fine]
    texts = [boxed(f"{HANGS}+{n}") for n in range(10, 16)] + [text for _, text in fine]
    verdicts = verify_batch(golds, texts, timeout=2.5)
    assert [v.reason for v in verdicts] == ["timeout"] * 6 + ["correct"] * 8


@LINUX
def test_a_comparison_has_a_memory_limit() -> None:
    program = (
        "from i2b_lpo import _verify_worker as worker\n"
        "worker._limit_this_process(60)\n"
        "small = bytearray(worker.MEMORY_LIMIT // 2)\n"
        "try:\n    bytearray(worker.MEMORY_LIMIT + 1)\n"
        "except MemoryError:\n    print('limited')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "limited\n", done.stderr


# ---------------------------------------------------------------------------- threads and signals


def test_from_many_threads() -> None:
    pairs = [fresh_pair() for _ in range(24)]
    with ThreadPoolExecutor(12) as executor:
        verdicts = list(executor.map(lambda p: verify(*p, timeout=PATIENT), pairs))
    assert all(v.correct for v in verdicts)
    assert len(shared_pool()._idle) <= shared_pool().size
    assert not shared_pool()._leases


def test_from_asyncio() -> None:
    async def main() -> list[bool]:
        tasks = [asyncio.to_thread(verify, *fresh_pair(), timeout=PATIENT) for _ in range(6)]
        inside = verify(*fresh_pair(), timeout=PATIENT)
        return [inside.correct, *(v.correct for v in await asyncio.gather(*tasks))]

    assert all(asyncio.run(main()))


@pytest.fixture
def alarm() -> Iterator[list[str]]:
    rung: list[str] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append("rung"))
    yield rung
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@POSIX
def test_the_callers_alarm_stays_armed(alarm: list[str]) -> None:
    handler = signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    assert verify(*fresh_pair(), timeout=PATIENT).correct
    assert reason("x+2", f"{HANGS}+1", timeout=0.2) == "timeout"
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 500
    assert signal.getsignal(signal.SIGALRM) is handler
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    assert reason("x+2", f"{HANGS}+2", timeout=1.5) == "timeout"
    assert alarm == ["rung"]


@POSIX
def test_the_limit_holds_where_the_parent_blocks_the_alarm() -> None:
    # A process inherits the blocked and ignored signals of the thread that starts it.
    pool = WorkerPool(1)
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        assert pool.compare("x+2", HANGS, 0.2) == "timeout"
        worker = pool._idle[0]
        assert worker.alive  # it ended its fork by itself: nobody had to kill it
    finally:
        pool.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.signal(signal.SIGALRM, before)


@POSIX
def test_an_exception_in_the_middle_leaves_the_pool_usable(alarm: list[str]) -> None:
    class Interruption(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interruption

    assert verify(*fresh_pair(), timeout=PATIENT).correct
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(Interruption):
        verify("x+2", boxed(f"{HANGS}+3"), timeout=PATIENT)
    assert not shared_pool()._leases
    assert verify(*fresh_pair(), timeout=PATIENT).correct


# ------------------------------------------------------------------------------ workers that die


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(1)
    assert pool.compare("x+1", "1+x", PATIENT) == "correct"
    yield pool
    pool.close()
    assert not pool._idle


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which every answer that reaches a worker is added."""
    answers: list[str] = []
    compare = Worker.compare

    def counted(self: Worker, gold: str, answer: str, limit: float) -> _verify_worker.Outcome:
        answers.append(answer)
        return compare(self, gold, answer, limit)

    monkeypatch.setattr(Worker, "compare", counted)
    return answers


@POSIX
def test_a_worker_killed_between_calls_is_replaced(pool: WorkerPool) -> None:
    first = pool._idle[0]
    os.kill(first.pid, signal.SIGKILL)
    assert pool.compare("x+2", "2+x", PATIENT) == "correct"
    assert not first.alive
    assert pool._idle != [first]


@POSIX
def test_a_worker_killed_in_the_middle_is_replaced_and_asked_again(
    pool: WorkerPool, asked: list[str]
) -> None:
    first = pool._idle[0]
    killer = threading.Timer(0.3, os.kill, (first.pid, signal.SIGKILL))
    killer.start()
    assert pool.compare("x+2", HANGS, 2.0) == "timeout"
    killer.join()
    assert asked == [HANGS, HANGS]
    assert not first.alive
    assert pool.compare("x+3", "3+x", PATIENT) == "correct"


@POSIX
def test_a_worker_that_falls_silent_is_replaced(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_verify_worker, "GRACE", 0.1)
    os.kill(pool._idle[0].pid, signal.SIGSTOP)
    assert pool.compare("x+4", "4+x", 0.1) == "timeout"
    monkeypatch.undo()
    assert pool.compare("x+4", "4+x", PATIENT) == "correct"  # a timeout is not remembered


def test_without_fork_the_parent_keeps_the_limit() -> None:
    pool = WorkerPool(1, forks=False)
    assert pool.compare("x+1", "1+x", PATIENT) == "correct"
    assert pool.compare("x+1", r"\to\to", PATIENT) == "unparsable"
    first = pool._idle[0]
    assert pool.compare("x+2", HANGS, 0.3) == "timeout"
    assert not first.alive
    assert pool.compare("x+2", "2+x", PATIENT) == "correct"
    pool.close()


def test_a_decided_pair_is_not_asked_again(asked: list[str]) -> None:
    gold, text = fresh_pair()
    assert all(v.correct for v in verify_batch([gold] * 40, [text] * 40, timeout=PATIENT))
    assert verify(gold, text).correct
    assert len(asked) == 1


def test_a_missing_math_verify_is_an_error_not_a_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "worker.py"
    monkeypatch.setattr(_verify_worker, "__file__", str(program))
    for source, said in (
        ("""print('{"error": "No module named math_verify"}')""", "No module named math_verify"),
        ("raise SystemExit(1)", "ended at once"),
    ):
        starts = tmp_path / "starts"
        starts.write_text("")
        program.write_text(f"open({str(starts)!r}, 'a').write('.')\n{source}")
        with pytest.raises(WorkerStartError, match=f"pip install math-verify.*{said}"):
            WorkerPool(1).compare("x+1", "1+x", 1.0)
        assert starts.read_text() == ".."


def run_script(source: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_parent_imports_neither_torch_nor_sympy_nor_math_verify() -> None:
    found = run_script(
        "import sys\n"
        "from i2b_lpo.verify import verify\n"
        r"assert verify('x+1', r'\boxed{1+x}', timeout=60).correct"
        "\nprint({'torch', 'sympy', 'math_verify', 'numpy'} & set(sys.modules))"
    )
    assert found == "set()\n"


@LINUX
def test_fork_and_exit_leave_each_others_workers_alone() -> None:
    # The forked child starts workers of its own, whoever held the pool's lock, and ends them, not
    # its parent's, when it exits.
    pids = run_script(
        "import os, sys, threading\n"
        "from i2b_lpo.verify import verify\n"
        "from i2b_lpo._verify_worker import shared_pool\n"
        r"same = lambda n: verify(f'x+{n}', rf'\boxed{{{n}+x}}', timeout=60).correct"
        "\nassert same(1)\n"
        "mine = [w.pid for w in shared_pool()._idle]\n"
        "held, release = threading.Event(), threading.Event()\n"
        "def hold():\n"
        "    with shared_pool()._condition:\n"
        "        held.set()\n"
        "        release.wait()\n"
        "threading.Thread(target=hold).start()\n"
        "held.wait()\n"
        "if (pid := os.fork()) == 0:\n"
        "    os._exit(2) if not same(2) else sys.exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "release.set()\n"
        "assert same(3) and mine == [w.pid for w in shared_pool()._idle]\n"
        "print(*mine)"
    )
    assert pids.split()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.split())


@LINUX
def test_a_killed_parent_leaves_no_process_behind() -> None:
    source = (
        "from i2b_lpo._verify_worker import WorkerPool\n"
        "pool = WorkerPool(1)\n"
        "assert pool.compare('x+1', '1+x', 60) == 'correct'\n"
        "print(pool._idle[0].pid, flush=True)\n"
        f"pool.compare('x+2', '{HANGS}', 1.5)"
    )
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        leader = int(parent.stdout.readline())

        def members() -> list[int]:
            found = []
            for stat in Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = stat.read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if fields[0] != "Z" and int(fields[3]) == leader:
                    found.append(int(stat.parent.name))
            return found

        while len(members()) < 2:  # the worker and its fork
            time.sleep(0.02)
        parent.kill()
    deadline = time.monotonic() + 60
    while members() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert members() == []
