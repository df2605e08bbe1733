r"""Boxes against a brute-force reader, math-verify's known mistakes one by one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from i2b_lpo.verify.references import extract_boxed, gold_answer, gsm8k_gold
from i2b_lpo.verify.verdict import (
    MAX_CHARACTERS,
    Reason,
    check_gold,
    equivalent,
    verify,
    verify_batch,
)

PATIENT = 60.0  # seconds for a comparison that must not time out on a busy machine
HANGS = "9^{9^{9^9}}"


def boxed(answer: str) -> str:
    return rf"The answer is \boxed{{{answer}}}."


def reason(gold: str, answer: str, timeout: float = PATIENT) -> Reason:
    return verify(gold, boxed(answer), timeout=timeout).reason


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
        (r"\boxed{5} … \boxed{}", "5"),
        (r"\boxed{5} … \boxed{ }", "5"),
        (r"\boxed{ } … \boxed{}", ""),
        (r"\fbox{7}", "7"),
        (r"\boxed{6} … \fbox {7}", "7"),
        (r"\fbox{7", None),
        (r"\ffbox{7}", None),
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

    contents = []
    for box in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))):
        end = closing_brace(box.end())
        if end is not None:
            contents.append(text[box.end() : end])
    filled = [content for content in contents if content.strip()]
    return next(iter(filled + contents), None)


BOXES = ("\\boxed{", "\\fbox{", "\\boxed ")
TOKENS = (*BOXES, "{", "}", "}", "\\", "\\{", "\\}", "x", " ", "\n", "\ud800")


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


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("5 #### 4\n#### 1,072 ", "1,072"),
        (r"so \boxed{4} #### 5", "5"),
        (r"so \boxed{x+1}.", "x+1"),
        ("18 dollars", "18 dollars"),
    ],
)
def test_the_answer_of_a_reference(reference: str, answer: str, no_worker: None) -> None:
    assert gold_answer(reference) == answer
    assert verify(reference, boxed(answer)).reason == "correct"


@pytest.mark.parametrize(
    "gold",
    [
        "18 dollars and 50 cents",
        r"\text{5 hours and 30 minutes}",
        "He has 5 apples left",
        "5 and a half",
        "It is odd, as every square of an odd number is.",
    ],
)
def test_prose_as_a_gold_answer_is_refused(gold: str) -> None:
    with pytest.raises(ValueError, match=r"the gold answer .* is prose; give the number or name"):
        check_gold(gold)


@pytest.mark.parametrize(
    "gold",
    [
        *("18 dollars", "June 20", "1st", "2nd place", "none of the above", "x+1", "3:30 pm"),
        *("AB=9, CD=4", r"x<1\text{ or }x>2", r"12,40,\text{ and }77", "2 abc"),
        r"\text{Alice, Bob and Carol}",
    ],
)
def test_other_gold_answers_are_not(gold: str) -> None:
    check_gold(gold)


def test_bad_arguments_are_refused_before_anything_is_compared(no_worker: None) -> None:
    with pytest.raises(ValueError, match="one gold answer for each text"):
        verify_batch(["1", "2"], [boxed("x+1")])
    for gold in ("", " ", "$$", r"\boxed{}", "5 apples ####"):
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
        code.replace("'", '"'),  # a prime alone would keep it from math-verify
        code.replace("'", '"') + "+x",
    ):
        assert not verify("x+2", boxed(answer), timeout=5).correct
    assert not target.exists()
