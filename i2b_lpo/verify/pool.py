"""The parent's end of the pipe to a judge: the child processes, and the pool that owns them.

`worker` is the child's end and explains why it is a process. The parent never imports math-verify
or sympy.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from i2b_lpo.verify import worker as child
from i2b_lpo.verify.judges import MATHEMATICS, Judge

__all__ = ["WorkerPool", "shared_pool"]

START_LIMIT = 120.0  # seconds for importing math-verify on a busy machine
GRACE = 2.0  # seconds the parent waits beyond a limit that the worker enforces itself
KNOWN_PAIRS = 10_000  # outcomes a pool remembers
LONGEST_KNOWN = 500  # characters of a pair and its outcome that it remembers
PAIRS_PER_BUDGET = 64  # a batch gets twice the limit for each group of so many pairs
SHORTEST_SLICE = 0.1  # seconds; most comparisons need a fifth of it
LOST_TWICE = (
    "two processes that compare answers ended before they answered, so the answer counts as "
    "unparsable; is something short, such as memory or the number of processes?"
)


class WorkerLostError(RuntimeError):
    """The worker process ended before it answered."""


class WorkerStartError(RuntimeError):
    """Two worker processes ended before they could take a comparison."""


class Worker:
    """One child process; used by one thread at a time.

    Args:
        forks: whether the child runs each comparison in its own fork.
        on_start: called from another thread once the child can compare, or has failed to start.
        judge: what it compares by.
    """

    def __init__(
        self, forks: bool, on_start: Callable[[], None], judge: Judge = MATHEMATICS
    ) -> None:
        self.forks = forks
        self.started = False
        self.start_error = ""
        self._on_start = on_start
        self._replies: queue.SimpleQueue[dict[str, str] | None] = queue.SimpleQueue()
        mode = "confined" if judge.confined else "fork" if forks else "direct"
        given = judge.environment if judge.confined else os.environ
        self._folder: str | None = None
        if judge.confined:
            import tempfile  # mathematics needs no file

            self._folder = tempfile.mkdtemp(prefix="i2b-lpo-")
        # A fixed hash seed makes sympy's orderings, hence every verdict, the same in every run.
        # A session of its own: Ctrl-C stops the training loop, and kill() reaches the child's fork.
        self._process = subprocess.Popen(
            [sys.executable, *judge.flags, child.__file__, mode, str(judge.file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={n: os.environ[n] for n in given if n in os.environ} | {"PYTHONHASHSEED": "0"},
            cwd=self._folder,
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

    def compare(self, gold: str, answer: str, limit: float) -> str:
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
            return reply["outcome"]
        self.kill()
        if time.monotonic() - begin < limit:
            raise WorkerLostError("the process that compares answers ended before it answered")
        return "timeout"

    @property
    def alive(self) -> bool:
        """Whether the child can take another comparison."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the child and its fork; harmless if they are already gone."""
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
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class WorkerPool:
    """At most `size` workers, started when first needed and shared by all threads.

    Args:
        size: the largest number of workers, hence of simultaneous comparisons.
        forks: see `Worker`; by default, whether the platform has ``os.fork``.
        judge: what they compare by.

    Raises:
        ValueError: a confined judge on a platform without ``os.fork``.
    """

    def __init__(
        self, size: int, forks: bool = hasattr(os, "fork"), judge: Judge = MATHEMATICS
    ) -> None:
        if judge.confined and not forks:
            raise ValueError(
                "answers that are programs need limits that this system doesn't keep; use Linux, "
                "macOS or WSL."
            )
        self.size = size
        self.forks = forks
        self.judge = judge
        self._condition = threading.Condition()
        self._idle: list[Worker] = []
        # By thread, so that if an exception from a signal handler struck a lease's holder before it
        # could return the worker, the thread's next call finds the lease again.
        self._leases: dict[int, Worker] = {}
        self._failed_starts = 0  # in a row; somebody else may have killed one
        # Rollouts of one question repeat each other's answers. A timeout is not remembered.
        self._known: dict[tuple[str, str], str] = {}

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
                    f"{self.judge.needs}; its process said: {worker.start_error}"
                )
        if len(self._idle) + len(self._leases) < self.size:
            self._idle.append(Worker(self.forks, self._notify, self.judge))
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
    ) -> str:
        """Compare two answers in a worker.

        `limit` does not include the wait for a free worker or for its import of math-verify. A
        worker killed from outside is replaced and the comparison repeated once; an answer that ends
        two workers is ``unparsable``, with a warning.

        Args:
            gold: what the judge compares with; in mathematics the reference answer, LaTeX.
            answer: the model's answer.
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
            outcome = "timeout"
            try:
                with self._lease(deadline) as worker:
                    if worker is not None:
                        outcome = worker.compare(gold, answer, limit)
            except WorkerLostError:
                continue
            if outcome != "timeout" and len(gold + answer + outcome) <= LONGEST_KNOWN:
                if len(self._known) >= KNOWN_PAIRS:
                    self._known.clear()
                self._known[gold, answer] = outcome
            return outcome
        warnings.warn(LOST_TWICE, RuntimeWarning, stacklevel=2)
        return "unparsable"

    def compare_many(self, pairs: Sequence[tuple[str, str]], limit: float) -> list[str]:
        """Compare many pairs within about twice `limit` seconds for each 64 of them.

        Each round gives every undecided pair an equal slice, at most `limit`; together the slices
        use half of the time left. Later rounds go to the pairs that needed more. So a few hanging
        answers cannot take the others' time, and a pair that got all of `limit` has had its turn.

        Args:
            pairs: (gold, answer) pairs.
            limit: wall-clock seconds for one pair.

        Raises:
            WorkerStartError: as `compare`.
        """
        outcomes = [self._known.get(pair, "timeout") for pair in pairs]
        undecided = [i for i, outcome in enumerate(outcomes) if outcome == "timeout"]
        if len(undecided) == 1:
            outcomes[undecided[0]] = self.compare(*pairs[undecided[0]], limit)
        if len(undecided) < 2:
            return outcomes
        with self._lease(time.monotonic() + START_LIMIT):
            # The first import of math-verify doesn't count against the answers.
            deadline = time.monotonic() + 2 * limit * math.ceil(len(undecided) / PAIRS_PER_BUDGET)
        executor = ThreadPoolExecutor(self.size, thread_name_prefix="verify")
        try:
            share = 0.0
            while undecided and share < limit and (left := deadline - time.monotonic()) > 0:
                share = min(limit, max(SHORTEST_SLICE, self.size * left / (2 * len(undecided))))

                def attempt(index: int, share: float = share) -> str:
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


_shared: dict[Judge, WorkerPool] = {}
_shared_lock = threading.Lock()


def shared_pool(judge: Judge = MATHEMATICS) -> WorkerPool:
    """Return this process's pool of a judge: one worker per core, at least two, at most four."""
    with _shared_lock:
        if judge not in _shared:
            _shared[judge] = WorkerPool(size=max(2, min(4, os.cpu_count() or 1)), judge=judge)
        return _shared[judge]


def _forget_after_fork() -> None:
    # A forked process must not use its parent's pipes, wait for its locks or end its workers.
    global _shared, _shared_lock
    _shared, _shared_lock = {}, threading.Lock()


@atexit.register
def _close_at_exit() -> None:
    for pool in _shared.values():
        pool.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
