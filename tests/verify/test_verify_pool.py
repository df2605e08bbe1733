r"""Limits of time and memory, and workers that are interrupted in every way we know of."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from verifying import HANGS, LINUX, PATIENT, POSIX, boxed, fresh_pair

from i2b_lpo.verify import pool as pools, worker as workers
from i2b_lpo.verify.pool import Worker, WorkerPool, WorkerStartError, shared_pool
from i2b_lpo.verify.verdict import verify, verify_batch

pytestmark = pytest.mark.slow


def reason(gold: str, answer: str, timeout: float = PATIENT) -> str:
    return verify(gold, boxed(answer), timeout=timeout).reason


# ---------------------------------------------------------------------- limits of time and memory


@LINUX
def test_a_comparison_has_a_memory_limit() -> None:
    program = (
        "from i2b_lpo.verify import worker\n"
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

    def counted(self: Worker, gold: str, answer: str, limit: float) -> str:
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
    monkeypatch.setattr(pools, "GRACE", 0.1)
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
    monkeypatch.setattr(workers, "__file__", str(program))
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
        "from i2b_lpo.verify.verdict import verify\n"
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
        "from i2b_lpo.verify.verdict import verify\n"
        "from i2b_lpo.verify.pool import shared_pool\n"
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
        "from i2b_lpo.verify.pool import WorkerPool\n"
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
