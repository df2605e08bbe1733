r"""The mathematics of stage 2: two answers in LaTeX → do they mean the same?

math-verify parses and compares. What it gets wrong or omits is decided here, before or after it:
values that certainly differ, equations without a real solution, solved inequalities against
intervals, columns against tuples, a lone letter against an expression. Loaded only in the child
process (`i2b_lpo.verify.worker`), where sympy may be slow or large; nothing is imported before it
is needed there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from typing import Any, Literal

__all__ = ["against", "compare", "prepare"]

DECIMAL_TOLERANCE = 1e-6  # relative: how close a decimal answer must come to an irrational one
_JOINT = re.compile(r"\\text\{(and|or)\}")

# Compared, each with the next, before the first request: this fills the parser's tables with the
# usual forms of an answer, and every fork inherits them. The first two are equal, as a check.
WARM_UP = (
    r"\frac{\sqrt{3}}{2}",
    r"\frac{3}{2\sqrt3}",
    r"-\frac{2\pi}{3}+1",
    r"\left(3,\frac{\pi}{2}\right)",
    r"(-\infty,2)\cup(3,4]",
    r"(-1,6)",
    r"\begin{pmatrix}-1/2&\sqrt{3}\\0&1\end{pmatrix}",
    r"y=2x+3",
    r"2x-y+3=0",
    r"3-2i,-2,\sqrt[3]{4}",
    r"\{1\pm\sqrt{5},-2\}",
    r"10x\sqrt{21x}",
    r"(x-1)^3(x+1)",
    r"x^2-3x+2",
    r"\cos^2\alpha",
    r"-2\le x\le 7",
    r"[-2,7]",
    r"x\ge 3\text{or}x<1",
)


def prepare() -> None:
    """Import math-verify and fill its parser's tables; raises if it is none that can compare."""
    outcomes = [compare(gold, answer) for gold, answer in pairwise(WARM_UP)]
    if outcomes[0] != "correct":
        raise RuntimeError(f"it finds {WARM_UP[0]} and {WARM_UP[1]} {outcomes[0]}")


def against(gold: str) -> Callable[[str], str]:
    """What says of an answer whether it means the same as `gold`."""
    return lambda answer: compare(gold, answer)


def compare(gold: str, answer: str) -> Literal["correct", "wrong", "unparsable"]:
    """Return whether two answers in one notation mean the same."""
    reference, candidate = _parse(gold), _parse(answer)
    if candidate is None:
        return "unparsable"
    if reference is None:
        return "wrong"
    reference, candidate = _with_same_symbols(reference, candidate)
    if refuted(reference, candidate):
        return "wrong"
    return "correct" if _equal(reference, candidate) else "wrong"


def _parse(latex: str) -> Any:
    r"""Return what math-verify reads in an answer, None if it can't.

    Switched off in math-verify 0.9: units, because it mistakes the last letter of ``3t`` and ``3h``
    for one, and the search for another expression in an answer that cannot be read as a whole.
    Inequalities joined by "and" or "or" are read one by one.
    """
    joints = _JOINT.findall(latex)
    if joints and len(set(joints)) == 1:
        parts = [_region(_parse(part)) for part in _JOINT.split(latex)[::2]]
        regions = [part for part in parts if part is not None]
        if len(regions) < len(parts) or len({symbol for symbol, _ in regions}) != 1:
            return None
        sympy = import_module("sympy")
        join = sympy.Union if joints[0] == "or" else sympy.Intersection
        return sympy.Eq(regions[0][0], join(*(region for _, region in regions)), evaluate=False)
    math_verify = import_module("math_verify")
    normalization = import_module("latex2sympy2_extended").NormalizationConfig(
        basic_latex=True,
        units=False,
        malformed_operators=True,
        nits=True,
        boxed="last",
        equations=False,
    )
    config = math_verify.LatexExtractionConfig(
        try_extract_without_anchor=False,
        boxed_match_priority=0,
        normalization_config=normalization,
    )
    found = math_verify.parse(
        rf"\boxed{{{latex}}}", extraction_config=[config], parsing_timeout=None
    )
    return next((item for item in found if not isinstance(item, str)), None)


def _equal(gold: Any, answer: Any) -> bool:
    """Ask math-verify, and check its yes.

    It also says yes to values closer than 1e-15 (``1/2^99 = 1/2^98``) and to equations without a
    real solution (``x^2+1=0`` = ``x^2+2=0``): there `refuted` and `_same_solutions` say no.
    """
    sympy = import_module("sympy")
    ours, theirs = _region(gold), _region(answer)
    if ours and theirs:
        if ours[0] and theirs[0] and ours[0] != theirs[0]:
            return False
        gold, answer = ours[1], theirs[1]
    gold, answer = _as_tuple(gold, answer), _as_tuple(answer, gold)
    if _set_and_tuple(gold, answer):
        return False
    equations = isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq)
    if equations and _multiples(gold, answer):
        return True
    if import_module("math_verify").verify(gold, answer, timeout_seconds=None):
        return not equations or _same_solutions(gold, answer)
    # Against a letter it compares only names: k and k + 0.
    letters = [isinstance(side, sympy.Symbol) for side in (gold, answer)]
    if any(letters) and all(isinstance(side, sympy.Expr) for side in (gold, answer)):
        return bool(sympy.simplify(_real_roots(gold - answer)) == 0)
    return False


# ----------------------------------------------------------------------- sets, regions, columns


def _region(value: Any) -> tuple[Any, Any] | None:
    """Return the symbol (None: it names none) and the real set of a set or a solved inequality.

    Solved: a letter or its absolute value against numbers. ``x^2 < 4`` for ``(-2, 2)`` may be the
    question itself.
    """
    sympy = import_module("sympy")
    relations = (sympy.StrictLessThan, sympy.LessThan, sympy.StrictGreaterThan, sympy.GreaterThan)
    if isinstance(value, sympy.Set):
        return None, value
    if isinstance(value, sympy.Eq):
        is_member = isinstance(value.lhs, sympy.Symbol) and isinstance(value.rhs, sympy.Set)
        return (value.lhs, value.rhs) if is_member else None
    if isinstance(value, sympy.And):
        parts = [_region(part) for part in value.args]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts) or len({symbol for symbol, _ in found}) != 1:
            return None
        return found[0][0], sympy.Intersection(*(region for _, region in found))
    if not isinstance(value, relations):
        return None
    small, large = (value.lts, value.gts)
    is_open = isinstance(value, sympy.StrictLessThan | sympy.StrictGreaterThan)
    for letter, bound in ((small, large), (large, small)):
        symbol = letter.args[0] if isinstance(letter, sympy.Abs) else letter
        if not isinstance(symbol, sympy.Symbol) or not bound.is_extended_real:
            continue
        below = letter is small
        region = (
            sympy.Interval(-sympy.oo, bound, True, is_open)
            if below
            else sympy.Interval(bound, sympy.oo, is_open, True)
        )
        if letter is not symbol:
            mirrored = (
                sympy.Interval(-bound, sympy.oo, is_open, True)
                if below
                else sympy.Interval(-sympy.oo, -bound, True, is_open)
            )
            region = (
                sympy.Intersection(region, mirrored) if below else sympy.Union(region, mirrored)
            )
        return symbol, region
    return None


def _as_tuple(value: Any, other: Any) -> Any:
    # A column or a row is a tuple where the other side is one; (1, 2) is an open interval at first.
    sympy = import_module("sympy")
    is_tuple = isinstance(other, sympy.Tuple) or (
        isinstance(other, sympy.Interval) and other.left_open and other.right_open
    )
    if is_tuple and isinstance(value, sympy.MatrixBase) and 1 in value.shape:
        return sympy.Tuple(*value.flat())
    return value


def _set_and_tuple(gold: Any, answer: Any) -> bool:
    r"""Whether inner elements differ in kind: ``\{\{1,2\}\}`` and ``\{(1,2)\}``."""
    sympy = import_module("sympy")
    if not (isinstance(gold, sympy.FiniteSet) and isinstance(answer, sympy.FiniteSet)):
        return False
    inner = [{isinstance(part, sympy.FiniteSet) for part in side.args} for side in (gold, answer)]
    return inner[0] != inner[1]


# ------------------------------------------------------------------------- values and equations


def _real_roots(value: Any) -> Any:
    # Over the reals the cube root of x³ is x; sympy's is the principal one.
    sympy = import_module("sympy")

    def is_odd_root(part: Any) -> bool:
        return bool(
            isinstance(part, sympy.Pow)
            and isinstance(part.base, sympy.Pow)
            and part.base.exp.is_Integer
            and part.base.exp.is_odd
            and part.exp == 1 / part.base.exp
        )

    return value.replace(is_odd_root, lambda part: part.base.base)


def _with_same_symbols(gold: Any, answer: Any) -> tuple[Any, Any]:
    # The parser makes `i` a letter, and all letters real or not by the looks of each text: 2 i and
    # 2i would differ.
    sympy = import_module("sympy")
    symbols = gold.free_symbols | answer.free_symbols
    names = {symbol.name for symbol in symbols}
    if len(names) == len(symbols) and "i" not in names:
        return gold, answer
    same = {s: sympy.I if s.name == "i" else sympy.Symbol(s.name) for s in symbols}
    return gold.xreplace(same), answer.xreplace(same)


def refuted(gold: Any, answer: Any) -> bool:
    """Return True where two expressions certainly have different values.

    Asked before math-verify: most wrong answers end here, before `simplify` wastes time on them.
    """
    sympy = import_module("sympy")
    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq):
        return False
    if isinstance(gold, sympy.Eq):
        gold = gold.rhs
    if isinstance(answer, sympy.Eq):
        if not answer.free_symbols and _differ(answer.lhs, answer.rhs):
            return True  # 4 = 5 isn't a way to write 5
        answer = answer.rhs
    ours, theirs = _parts(gold), _parts(answer)
    if ours and theirs:
        return len(ours) != len(theirs) or any(
            all(refuted(one, other) for other in theirs) for one in ours
        )
    return _differ(gold, answer)


def _parts(value: Any) -> list[Any]:
    sympy = import_module("sympy")
    if isinstance(value, sympy.Interval):
        return [value.start, value.end]
    if isinstance(value, sympy.FiniteSet | sympy.Tuple):
        return list(value.args)
    if isinstance(value, sympy.MatrixBase):
        return list(value.flat())
    return []


def _differ(gold: Any, answer: Any) -> bool:
    sympy = import_module("sympy")
    both = (gold, answer)
    if not all(isinstance(side, sympy.Expr) for side in both):
        return False
    # A symbol against a product is math-verify's comparison of words; 20 % equals 20 by its rule.
    if any(side.is_Symbol or side.has(sympy.UnevaluatedExpr) for side in both):
        return False
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    point = {symbol: sympy.Rational(137 + 29 * i, 101) for i, symbol in enumerate(symbols)}
    try:
        ours, theirs = (side.doit().subs(point) for side in both)
        # evalf raises its precision until the difference shows a digit or `maxn` is reached; one
        # bit of precision left means that it never did.
        difference = [part.evalf(15, maxn=200) for part in (ours - theirs).as_real_imag()]
    except (ArithmeticError, AttributeError, NotImplementedError, TypeError, ValueError):
        return False
    if not all(part.is_Float or part.is_zero for part in difference):
        return False
    if any(side.has(sympy.Float) for side in both):
        size = max(abs(side.evalf(15)) for side in (ours, theirs))
        return any(abs(part) > DECIMAL_TOLERANCE * size for part in difference)
    return any(not part.is_zero and part._prec > 1 for part in difference)


def _multiples(gold: Any, answer: Any) -> bool:
    # 2x = 1 is x = 1/2. Not every side of an equation is a number: x ∈ [0, 1] is one to the parser.
    sympy = import_module("sympy")
    if not all(isinstance(side, sympy.Expr) for side in (*gold.args, *answer.args)):
        return False
    ratio = sympy.simplify((gold.lhs - gold.rhs) / (answer.lhs - answer.rhs))
    return bool(ratio.is_number and ratio.is_finite and not ratio.is_zero)


def _same_solutions(gold: Any, answer: Any) -> bool:
    sympy = import_module("sympy")
    if not all(isinstance(side, sympy.Expr) for side in (*gold.args, *answer.args)):
        return True
    symbols = sorted(gold.free_symbols, key=str)
    if not symbols:
        return False
    try:
        ours, theirs = (sympy.solve(side.doit(), symbols, dict=True) for side in (gold, answer))
    except NotImplementedError:
        return False
    return bool(ours) and all(
        any(
            one.keys() == other.keys() and not any(_differ(one[s], other[s]) for s in one)
            for other in theirs
        )
        for one in ours
    )
