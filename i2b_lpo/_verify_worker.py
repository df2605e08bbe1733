r"""The child's end of the pipe to math-verify: a process that compares.

Why a process. ``9^{9^{9^9}}`` keeps sympy busy for ever inside one C call that no Python exception
can stop, and math-verify's own time limits use ``signal.alarm``: they fail outside the main thread
and disarm the caller's alarm. Here its limits are off and the kernel ends the process.

How. ``python -P _verify_worker.py`` (this file; it imports nothing of the package) imports
math-verify once, then answers one line of JSON per comparison. Where ``os.fork`` exists, each
comparison runs in a fork of that warm process with a timer and a memory limit of its own: ending
one costs nothing, and no answer influences the next. Elsewhere the worker compares by itself, and
the parent (`i2b_lpo._verify_pool`) ends and restarts it (about 1 s).

The strings come from a model and are only parsed as LaTeX: ``sympify`` and ``parse_expr``, which
execute text, are reached by math-verify's extractor of plain expressions alone, and that one is not
used.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, Literal, cast

__all__ = ["Outcome", "serve"]

Outcome = Literal["correct", "wrong", "unparsable", "timeout"]

MEMORY_LIMIT = 512 * 2**20  # bytes one comparison may allocate above the idle worker
ORPHAN_CHECK = 1.0  # seconds between two looks whether the parent lives
DECIMAL_TOLERANCE = 1e-6  # relative: how close a decimal answer must come to an irrational one

# Compared, each with the next, before the first request: the parser's tables fill up with the usual
# forms of an answer, and every fork inherits them. The first two are equal, as a check.
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
)


def outcome_of(gold: str, answer: str) -> Outcome:
    """Return what `compare` says of two answers, whatever a model's text makes sympy raise."""
    try:
        return compare(gold, answer)
    except MemoryError:
        return "timeout"
    except Exception:
        return "unparsable"


def compare(gold: str, answer: str) -> Outcome:
    r"""Ask math-verify, and check its yes.

    Switched off in math-verify 0.9: units, because it takes the last letter of ``3t`` and ``3h``
    for one, and the search for another expression in an answer that cannot be read as a whole. It
    also says yes to values closer than 1e-15 (``1/2^99 = 1/2^98``) and to equations without a real
    solution (``x^2+1=0`` = ``x^2+2=0``): there `refuted` and `_same_solutions` say no.
    """
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

    def parse(latex: str) -> Any:
        found = math_verify.parse(
            rf"\boxed{{{latex}}}", extraction_config=[config], parsing_timeout=None
        )
        return next((item for item in found if not isinstance(item, str)), None)

    reference, candidate = parse(gold), parse(answer)
    if candidate is None:
        return "unparsable"
    if reference is None:
        return "wrong"
    reference, candidate = _with_same_symbols(reference, candidate)
    if refuted(reference, candidate):
        return "wrong"
    sympy = import_module("sympy")
    equations = isinstance(reference, sympy.Eq) and isinstance(candidate, sympy.Eq)
    if equations and _multiples(reference, candidate):
        return "correct"
    if not math_verify.verify(reference, candidate, timeout_seconds=None):
        return "wrong"
    return "wrong" if equations and not _same_solutions(reference, candidate) else "correct"


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
    """Return True where two expressions have different values for certain.

    Asked before math-verify: most wrong answers end here, before `simplify` works on them in vain.
    """
    sympy = import_module("sympy")
    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq):
        return False
    if isinstance(gold, sympy.Eq):
        gold = gold.rhs
    if isinstance(answer, sympy.Eq):
        if not answer.free_symbols and _differ(answer.lhs, answer.rhs):
            return True  # 4 = 5 is no way to write 5
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


def _limit_this_process(seconds: float) -> None:
    if sys.platform == "win32":
        return
    import resource

    # The timer's default action ends the process from outside Python, deep in C or not, and even
    # when nobody is left to kill it.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core file in the user's folder
    try:
        with open("/proc/self/statm", encoding="ascii") as pages:
            used = int(pages.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:  # macOS: no size to add to, and no limit that the kernel would keep
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = used + MEMORY_LIMIT
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _compare_in_fork(request: dict[str, Any], inherited: Sequence[int]) -> Outcome:
    assert sys.platform != "win32"
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for descriptor in (*inherited, read_end):
                os.close(descriptor)  # or the parent would wait for this process's end of its pipe
            _limit_this_process(request["limit"])
            outcome = outcome_of(request["gold"], request["answer"])
            os.write(write_end, outcome.encode("ascii"))
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        outcome_sent = pipe.read().decode("ascii")
    status = os.waitpid(pid, 0)[1]
    if outcome_sent:
        return cast(Outcome, outcome_sent)
    # Ended by its timer, or by a kernel that ran out of memory; else by what the answer made it do.
    ended = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGKILL)
    return "timeout" if ended else "unparsable"


def _end_with_parent() -> None:
    # The pipe's end comes late when a fork of the parent holds it open, or in a long comparison.
    assert sys.platform != "win32"
    parent = os.getppid()

    def look(*_: object) -> None:
        if os.getppid() != parent:
            os.killpg(os.getpid(), signal.SIGKILL)

    # The parent may have ignored or blocked these signals, and a process inherits that.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, look)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, ORPHAN_CHECK, ORPHAN_CHECK)


def serve(forks: bool) -> None:
    """Answer one request line of JSON after the other until the parent closes the pipe or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    if forks:
        _end_with_parent()
    # math-verify and the parser print; the protocol keeps the real stdout to itself.
    pipe = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def send(message: dict[str, str]) -> None:
        os.write(pipe, json.dumps(message).encode("ascii") + b"\n")

    try:
        outcomes = [compare(gold, answer) for gold, answer in pairwise(WARM_UP)]
        if outcomes[0] != "correct":
            raise RuntimeError(f"it finds {WARM_UP[0]} and {WARM_UP[1]} {outcomes[0]}")
    except Exception as error:  # whatever a wrong version of math-verify raises
        send({"error": f"{type(error).__name__}: {error}"})
        return
    gc.collect()
    gc.freeze()  # a fork that never collects the parent's objects never copies their pages
    send({"error": ""})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if forks:
            outcome = _compare_in_fork(request, (0, pipe))
        else:
            # The parent ends this process at the limit; if there is none any more, this does.
            faulthandler.dump_traceback_later(request["limit"] + ORPHAN_CHECK, exit=True)
            outcome = outcome_of(request["gold"], request["answer"])
            faulthandler.cancel_dump_traceback_later()
        send({"outcome": outcome})


if __name__ == "__main__":
    serve(forks=sys.argv[1] == "fork")
