r"""The child's end of the pipe to math-verify: a process that compares.

Why a process: ``9^{9^{9^9}}`` keeps sympy busy forever inside one C call that no Python exception
can stop, and math-verify's own time limits use ``signal.alarm``: they fail outside the main thread
and disarm the caller's alarm. Here its limits are off, and the kernel ends the process.

How: ``python -P worker.py`` (this file; of the package it loads only `stage_two`) imports
math-verify once, then answers one line of JSON per comparison. Where ``os.fork`` exists, each
comparison runs in a fork of that warm process with its own timer and memory limit: ending one costs
nothing, and no answer influences the next. Elsewhere the worker itself compares, and the parent
(`i2b_lpo.verify.pool`) ends and restarts it (about 1 s).

The strings come from a model and are only parsed as LaTeX: ``sympify`` and ``parse_expr``, which
execute text, are reached only through math-verify's extractor of plain expressions, which is not
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
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

__all__ = ["Outcome", "serve"]

Outcome = Literal["correct", "wrong", "unparsable", "timeout"]

MEMORY_LIMIT = 512 * 2**20  # bytes one comparison may allocate above the idle worker
ORPHAN_CHECK = 1.0  # seconds between checks that the parent lives

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


@cache
def _mathematics() -> Any:
    # By its path: the package need not be importable where a worker is started.
    spec = spec_from_file_location("stage_two", Path(__file__).with_name("stage_two.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compare(gold: str, answer: str) -> Outcome:
    """Return what `stage_two.compare` says."""
    return cast(Outcome, _mathematics().compare(gold, answer))


def outcome_of(gold: str, answer: str) -> Outcome:
    """Return what `compare` says of two answers, whatever a model's text makes sympy raise."""
    try:
        return compare(gold, answer)
    except MemoryError:
        return "timeout"
    except Exception:
        return "unparsable"


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
    except FileNotFoundError:  # macOS: no size to add to, and no limit that the kernel enforces
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
    # Ended by its timer, or by a kernel out of memory; else by what the answer made it do.
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
    """Answer one JSON request line after another until the parent closes the pipe or ends."""
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
            # The parent ends this process at the limit; if the parent is gone, this does.
            faulthandler.dump_traceback_later(request["limit"] + ORPHAN_CHECK, exit=True)
            outcome = outcome_of(request["gold"], request["answer"])
            faulthandler.cancel_dump_traceback_later()
        send({"outcome": outcome})


if __name__ == "__main__":
    serve(forks=sys.argv[1] == "fork")
