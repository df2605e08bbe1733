r"""Answers in every notation, and exact arithmetic against trees of fractions: stage 1 alone."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

from i2b_lpo.verify import pool as pools
from i2b_lpo.verify.answers import form_of
from i2b_lpo.verify.verdict import equivalent, verify


def boxed(answer: str) -> str:
    return rf"The answer is \boxed{{{answer}}}."


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
    ("18", "eighteen"),
]

LEFT_OPEN = [  # by stage 1: not two numbers, and not the same string
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


@settings(max_examples=200)
@given(
    st.text(
        st.sampled_from("0123456789.,+-*/^(){}[]\\$%_=<>!:;'\"~ xie½²−٣\u202e\x00\ud800")
        | st.characters(),
        max_size=30,
    )
)
def test_stage_one_accepts_any_text(text: str) -> None:
    form = form_of(text)
    assert form == form_of.__wrapped__(text)  # a function of the text alone
    if form.text:
        assert equivalent(text, text)


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
    pools_before = dict(pools._shared)
    for other in (a, b):
        gold, answer = data.draw(written(a)), data.draw(written(other))
        assert verify(gold, boxed(answer)).reason == ("correct" if a == other else "wrong")
        assert equivalent(gold, answer) == (a == other)
    assert pools._shared == pools_before  # stage 1 alone: no pool was needed


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
