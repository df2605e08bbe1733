r"""Both ends of the pipe to math-verify: a child process that compares, and the pool that owns it.

Why a process. ``9^{9^{9^9}}`` keeps sympy busy for ever inside one C call that no Python exception
can stop, and math-verify's own time limits use ``signal.alarm``: they fail outside the main thread
and disarm the caller's alarm. Here its limits are off and the kernel ends the process.

How. ``python _verify_worker.py`` (this file) imports math-verify once, then answers one line of
JSON per comparison. Where ``os.fork`` exists, each comparison runs in a fork of that warm process
with a timer and a memory limit of its own: ending one costs nothing, and no answer influences the
next.
Elsewhere the worker compares by itself, and the parent ends and restarts it (about 1 s).

The parent never imports math-verify or sympy. The strings come from a model and are only parsed as
LaTeX: ``sympify`` and ``parse_expr``, which execute text, are reached by math-verify's extractor of
plain expressions alone, and that one is not used.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import pairwise
from typing import Any, Literal, cast

__all__ = ["Outcome", "WorkerPool", "shared_pool"]

Outcome = Literal["correct", "wrong", "unparsable", "timeout"]

START_LIMIT = 120.0  # seconds for importing math-verify on a busy machine
GRACE = 2.0  # seconds the parent waits beyond a limit that the worker enforces itself
MEMORY_LIMIT = 512 * 2**20  # bytes one comparison may allocate above the idle worker
KNOWN_PAIRS = 10_000  # outcomes a pool remembers
DECIMAL_TOLERANCE = 1e-6  # relative: how close a decimal answer must come to an irrational one
PAIRS_PER_BUDGET = 64  # a batch gets twice the limit for each so many pairs
SHORTEST_SLICE = 0.1  # seconds; most comparisons need a fifth of it

# ------------------------------------------------------------------------------ the parent's end


class WorkerLostError(RuntimeError):
    """The worker process ended before it answered."""


class WorkerStartError(RuntimeError):
    """Two worker processes ended before they could take a comparison."""


class Worker:
    """One child process; used by one thread at a time.

    Args:
        forks: whether the child runs each comparison in a fork of itself.
        on_start: called from another thread once the child can compare, or has failed to start.
    """

    def __init__(self, forks: bool, on_start: Callable[[], None]) -> None:
        self.forks = forks
        self.started = False
        self.start_error = ""
        self._on_start = on_start
        self._replies: queue.SimpleQueue[dict[str, str] | None] = queue.SimpleQueue()
        # A fixed hash seed makes sympy's orderings, hence every verdict, the same in every run.
        # A session of its own: Ctrl-C stops the training loop, and kill() reaches the child's fork.
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, "fork" if forks else "direct"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        self.pid = self._process.pid
        threading.Thread(target=self._read, name="verify-worker", daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            greeting = pipe.readline()
            self.start_error = json.loads(greeting)["error"] if greeting else "it ended at once"
            self.started = True
            self._on_start()
            for line in pipe:
                self._replies.put(json.loads(line))
        self._replies.put(None)

    def compare(self, gold: str, answer: str, limit: float) -> Outcome:
        """Return the child's outcome; ``timeout`` after `limit` seconds.

        Raises:
            WorkerLostError: the child is gone, and its comparison has no outcome.
        """
        assert self._process.stdin is not None
        request = json.dumps({"gold": gold, "answer": answer, "limit": limit}) + "\n"
        begin = time.monotonic()
        try:
            self._process.stdin.write(request.encode("ascii"))
            self._process.stdin.flush()
            reply = self._replies.get(timeout=limit + GRACE if self.forks else limit)
        except (OSError, queue.Empty):
            reply = None
        if reply is not None:
            return cast(Outcome, reply["outcome"])
        self.kill()
        if time.monotonic() - begin < limit:
            raise WorkerLostError("the process that compares answers ended before it answered")
        return "timeout"

    @property
    def alive(self) -> bool:
        """Whether the child can take another comparison."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the child and its fork; harmless when they are gone already."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                if sys.platform == "win32":
                    self._process.kill()
                else:
                    os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # what was not yet flushed has no reader any more
            self._process.stdin.close()


class WorkerPool:
    """At most `size` workers, started when first needed and shared by all threads.

    Args:
        size: the largest number of workers, hence of comparisons at the same time.
        forks: see `Worker`; by default, whether the platform has ``os.fork``.
    """

    def __init__(self, size: int, forks: bool = hasattr(os, "fork")) -> None:
        self.size = size
        self.forks = forks
        self._condition = threading.Condition()
        self._idle: list[Worker] = []
        # By thread, so that a lease whose holder was struck by an exception from a signal handler
        # before it could give the worker back is found again at the thread's next call.
        self._leases: dict[int, Worker] = {}
        self._failed_starts = 0  # in a row; one may have been killed by somebody else
        # Rollouts of one question repeat each other's answers. A timeout is not remembered.
        self._known: dict[tuple[str, str], Outcome] = {}

    def _notify(self) -> None:
        with self._condition:
            self._condition.notify_all()

    def _take(self) -> Worker | None:
        # A started worker, if one is idle; otherwise one more is on its way.
        for worker in [worker for worker in self._idle if worker.started]:
            self._idle.remove(worker)
            if worker.alive and not worker.start_error:
                self._failed_starts = 0
                return worker
            worker.kill()
            if worker.start_error:
                self._failed_starts += 1
            if self._failed_starts == 2:
                self._failed_starts = 0
                raise WorkerStartError(
                    "comparing LaTeX answers needs math-verify in this environment "
                    f"(pip install math-verify); its process said: {worker.start_error}"
                )
        if len(self._idle) + len(self._leases) < self.size:
            self._idle.append(Worker(self.forks, self._notify))
        return None

    @contextlib.contextmanager
    def _lease(self, deadline: float) -> Iterator[Worker | None]:
        # Yields None when no worker is free and started by the deadline.
        thread = threading.get_ident()
        worker: Worker | None = None
        unharmed = False
        try:
            with self._condition:
                if stale := self._leases.pop(thread, None):
                    stale.kill()
                while (worker := self._take()) is None:
                    if not self._condition.wait(deadline - time.monotonic()):
                        break
                else:
                    self._leases[thread] = worker
            yield worker
            unharmed = worker is not None and worker.alive
        finally:
            with self._condition:
                if leased := self._leases.pop(thread, None):
                    if unharmed:
                        self._idle.append(leased)
                    else:
                        leased.kill()
                self._condition.notify_all()

    def compare(
        self, gold: str, answer: str, limit: float, *, deadline: float | None = None
    ) -> Outcome:
        """Compare two answers in a worker.

        `limit` does not include the wait for a free worker or for its import of math-verify. A
        worker that was killed from outside is replaced and the comparison repeated once; an answer
        that ends two workers is ``unparsable``.

        Args:
            gold: the reference answer, LaTeX.
            answer: the model's answer, LaTeX.
            limit: wall-clock seconds for the comparison.
            deadline: ``time.monotonic()`` until which to wait for a worker.

        Raises:
            WorkerStartError: math-verify cannot be imported by this interpreter.
        """
        if deadline is None:
            deadline = time.monotonic() + START_LIMIT
        if known := self._known.get((gold, answer)):
            return known
        for _ in range(2):
            outcome: Outcome = "timeout"
            try:
                with self._lease(deadline) as worker:
                    if worker is not None:
                        outcome = worker.compare(gold, answer, limit)
            except WorkerLostError:
                continue
            if outcome != "timeout":
                if len(self._known) >= KNOWN_PAIRS:
                    self._known.clear()
                self._known[gold, answer] = outcome
            return outcome
        return "unparsable"

    def compare_many(self, pairs: Sequence[tuple[str, str]], limit: float) -> list[Outcome]:
        """Compare many pairs within about twice `limit` seconds for each 64 of them.

        Each round gives every undecided pair an equal slice, at most `limit`, that together use up
        half of the time left; later rounds go to those that needed more. So a few answers that
        hang cannot take the time of the others, and one that gets all of `limit` has had its turn.

        Args:
            pairs: (gold, answer) pairs.
            limit: wall-clock seconds for one pair.

        Raises:
            WorkerStartError: as `compare`.
        """
        outcomes: list[Outcome] = [self._known.get(pair, "timeout") for pair in pairs]
        undecided = [i for i, outcome in enumerate(outcomes) if outcome == "timeout"]
        if len(undecided) == 1:
            outcomes[undecided[0]] = self.compare(*pairs[undecided[0]], limit)
        if len(undecided) < 2:
            return outcomes
        with self._lease(time.monotonic() + START_LIMIT):
            # The first import of math-verify is not the answers' time.
            deadline = time.monotonic() + 2 * limit * math.ceil(len(undecided) / PAIRS_PER_BUDGET)
        executor = ThreadPoolExecutor(self.size, thread_name_prefix="verify")
        try:
            share = 0.0
            while undecided and share < limit and (left := deadline - time.monotonic()) > 0:
                share = min(limit, max(SHORTEST_SLICE, self.size * left / (2 * len(undecided))))

                def attempt(index: int, share: float = share) -> Outcome:
                    slice_ = min(share, deadline - time.monotonic())
                    if slice_ <= 0:
                        return "timeout"
                    return self.compare(*pairs[index], slice_, deadline=deadline)

                found = list(executor.map(attempt, undecided))
                for index, outcome in zip(undecided, found, strict=True):
                    outcomes[index] = outcome
                undecided = [i for i in undecided if outcomes[i] == "timeout"]
        finally:
            executor.shutdown(cancel_futures=True)
        return outcomes

    def close(self) -> None:
        """End every worker; the pool starts new ones if it is used again."""
        with self._condition:
            for worker in (*self._idle, *self._leases.values()):
                worker.kill()
            self._idle.clear()


_shared: WorkerPool | None = None
_shared_lock = threading.Lock()


def shared_pool() -> WorkerPool:
    """Return this process's pool: one worker per core, at least two, at most four."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = WorkerPool(size=max(2, min(4, os.cpu_count() or 1)))
        return _shared


def _forget_after_fork() -> None:
    # A forked process must not talk into its parent's pipes, wait for its locks, end its workers.
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


@atexit.register
def _close_at_exit() -> None:
    if _shared is not None:
        _shared.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


# ------------------------------------------------------------------------------- the child's end

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
    # when nobody is left to kill it. The parent may have ignored or blocked the signal.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, seconds)
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


def serve(forks: bool) -> None:
    """Answer one request line of JSON after the other until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
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
            outcome = outcome_of(request["gold"], request["answer"])
        send({"outcome": outcome})


if __name__ == "__main__":
    serve(forks=sys.argv[1] == "fork")
