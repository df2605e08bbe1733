r"""The child's end of the pipe: a process that compares answers by a judge, such as math-verify.

Why a process: ``9^{9^{9^9}}`` keeps sympy busy forever inside one C call that no Python exception
can stop, and math-verify's own time limits use ``signal.alarm``: they fail outside the main thread
and disarm the caller's alarm. Here its limits are off, and the kernel ends the process.

How: ``python -P worker.py MODE JUDGE`` (this file; of the package it loads only that judge's file)
prepares the judge once, then answers one line of JSON per comparison. Where ``os.fork`` exists,
each comparison runs in a fork of that warm process with its own timer and memory limit: ending one
costs nothing, and no answer influences the next. Elsewhere the worker itself compares, and the
parent (`i2b_lpo.verify.pool`) ends and restarts it (about 1 s).

A judge is a module with two functions: ``prepare()`` imports what it needs, or raises, and
``against(gold)`` returns the function that gives an answer's outcome. `stage_two` is the one for
mathematics. In the mode ``confined`` the answer may be a program: once ``against`` has returned,
the fork gives up files, network, processes and modules that aren't loaded yet. That stops what a
policy stumbles upon in training. It isn't a sandbox against an adversary: Python has ways around
its own hooks, and root around limits.

In mathematics the strings come from a model and are only parsed as LaTeX: ``sympify`` and
``parse_expr``, which execute text, are reached only through math-verify's extractor of plain
expressions, which is not used.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, cast

__all__ = ["serve"]

MEMORY_LIMIT = 512 * 2**20  # bytes one comparison may allocate above the idle worker
LONGEST_OUTCOME = 2**16  # bytes
ORPHAN_CHECK = 1.0  # seconds between checks that the parent lives

# What a confined comparison may do; every other event that Python audits is refused. Compiling and
# executing text is its purpose.
CALCULATING = (
    "compile", "exec", "object.__delattr__", "object.__getattr__", "object.__setattr__",
    "sys._getframe", "sys._getframemodulename",  # of namedtuple
)  # fmt: skip


def load(place: str) -> ModuleType:
    """The judge in a file, by its path: a worker need not be able to import the package."""
    spec = spec_from_file_location(Path(place).stem, place)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outcome_of(judge: Any, gold: str, answer: str, confined: bool = False) -> str:
    """Return what a judge says of an answer, whatever a model's text makes it raise."""
    try:
        compare = judge.against(gold)
        if confined:
            _confine_this_process()
        return cast(str, compare(answer))
    except MemoryError:
        return "timeout"
    except Exception:
        return "unparsable"


def _confine_this_process() -> None:
    # By the kernel: no new descriptor, hence no file, socket or pipe; and no new process or thread,
    # unless the user is root.
    assert sys.platform != "win32"
    import resource

    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))

    # By Python, for root too. A hook can't be taken off, and all that this one reads is its own.
    def refuse(event: str, _: object, allowed: tuple[str, ...] = CALCULATING) -> None:
        if event not in allowed:
            raise PermissionError(event)

    sys.addaudithook(refuse)


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


def _compare_in_fork(
    judge: ModuleType, request: dict[str, Any], inherited: Sequence[int], confined: bool
) -> str:
    assert sys.platform != "win32"
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for descriptor in (*inherited, read_end):
                os.close(descriptor)  # or the parent would wait for this process's end of its pipe
            _limit_this_process(request["limit"])
            outcome = outcome_of(judge, request["gold"], request["answer"], confined)
            os.write(write_end, outcome.encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        sent = pipe.read(LONGEST_OUTCOME + 1)
    status = os.waitpid(pid, 0)[1]
    if sent:
        return sent.decode(errors="replace") if len(sent) <= LONGEST_OUTCOME else "unparsable"
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


def serve(place: str, mode: str) -> None:
    """Answer one JSON request line after another until the parent closes the pipe or ends."""
    forks, confined = mode != "direct", mode == "confined"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    if forks:
        _end_with_parent()
    # math-verify and the parser print; the protocol keeps the real stdout to itself.
    pipe = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def send(message: dict[str, str]) -> None:
        os.write(pipe, json.dumps(message).encode("ascii") + b"\n")

    try:
        judge = load(place)
        judge.prepare()
    except Exception as error:  # whatever a wrong version of math-verify raises
        send({"error": f"{type(error).__name__}: {error}"})
        return
    gc.collect()
    gc.freeze()  # a fork that never collects the parent's objects never copies their pages
    send({"error": ""})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if forks:
            outcome = _compare_in_fork(judge, request, (0, pipe), confined)
        else:
            # The parent ends this process at the limit; if the parent is gone, this does.
            faulthandler.dump_traceback_later(request["limit"] + ORPHAN_CHECK, exit=True)
            outcome = outcome_of(judge, request["gold"], request["answer"])
            faulthandler.cancel_dump_traceback_later()
        send({"outcome": outcome})


if __name__ == "__main__":
    serve(sys.argv[2], sys.argv[1])
