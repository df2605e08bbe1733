r"""Hostile answers and hostile endings: nothing raises, nothing hangs, nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import nbformat
import pytest
from hypothesis import given, settings, strategies as st
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from verifying import HANGS, LINUX, PATIENT, POSIX, boxed, fresh_pair, numbers

from i2b_lpo.verify import pool as pools, worker as workers
from i2b_lpo.verify.answers import form_of
from i2b_lpo.verify.pool import Worker, WorkerLostError, WorkerPool
from i2b_lpo.verify.references import extract_boxed
from i2b_lpo.verify.verdict import MAX_CHARACTERS, Reason, Verdict, equivalent, verify, verify_batch

pytestmark = pytest.mark.slow

# ------------------------------------------------------------------------------------ the attacks


def nested(opening: str, closing: str, inner: str = "x") -> Iterator[str]:
    """Yield 40 levels, as many as an answer may have characters for, and 3000."""
    for depth in (40, (MAX_CHARACTERS - 20) // (len(opening) + len(closing)), 3000):
        yield opening * depth + inner + closing * depth


CODE = "__import__('os').system('touch executed')"
ATTACKS = {
    "towers": [
        HANGS,
        "9^9^9^9",
        "((((9^9)^9)^9)^9)^9",
        r"\left(9^{9}\right)^{\left(9^{9}\right)^{9}}",
        "9^{-9^{9^9}}",
        "0.9^{9^{9^9}}",
        r"\pi^{\pi^{\pi^{\pi^\pi}}}",
        "x^{x^{x^{x^{x}}}}",
        "2^" * 900 + "2",
        "2^{" * 400 + "2" + "}" * 400,
        r"\sqrt[9^{9^9}]{2}",
        "(x+1)^{10^{9}}",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{9^{9^9}}",
    ],
    "factorials": ["100000!", "((9!)!)!", "9!!!!!!!!", "100!!", "(10^9)!", r"\Gamma(10^9)"],
    "binomials": [
        r"\binom{10^9}{5\cdot 10^8}",
        r"\binom{10^9}{5*10^8}",
        r"{10^9 \choose 5}",
        r"\binom{\binom{100}{50}}{\binom{50}{25}}",
    ],
    "sums": [
        r"\sum_{n=1}^{10^{12}}",
        r"\sum_{n=1}^{10^{12}} n^{n}",
        r"\prod_{n=1}^{10^{12}} n",
        r"\int_0^1 e^{x^{x^x}} dx",
        r"\lim_{x\to\infty} (1+\frac{1}{x})^{x^{x}}",
    ],
    "nested": [
        *nested("(", ")"),
        *nested("{", "}"),
        *nested(r"\frac{1}{", "}"),
        *nested(r"\sqrt{", "}"),
        *nested(r"\left(", r"\right)"),
        *nested(r"\begin{pmatrix}", r"\end{pmatrix}"),
        *nested("x^{", "}"),
        *nested(r"\text{", "}"),
        *nested("[0,", "]", "1"),
        *nested(r"\{", r"\}"),
        "((" * 1500,
    ],
    "lists": [
        r"\{" + ",".join(map(str, range(5000))) + r"\}",
        r"\{" + ",".join(map(str, range(400))) + r"\}",
        ",".join(["1"] * 5000),
        "(" + ",".join(["1"] * 900) + ")",
        r"\begin{pmatrix}" + r"\\".join(["&".join("1" * 70)] * 70) + r"\end{pmatrix}",
        r"\begin{pmatrix}" + r"\\".join(["&".join("x" * 28)] * 28) + r"\end{pmatrix}",
        r"\cup".join(f"({i},{i}.5)" for i in range(120)),
    ],
    "digits": [
        "9" * 1999,
        "9" * 200_000,
        "0." + "9" * 200_000,
        r"\frac{" + "9" * 100_000 + "}{" + "7" * 100_000 + "}",
        "2^{" + "9" * 200_000 + "}",
        "2^{" + "9" * 1900 + "}",
        "1e999999999",
        r"1\times10^{999999999}",
        "+" * 100_000,
        "+" * 1990 + "1",
        "1" + "+1" * 900,
        "1,000" * 300,
        "5%" * 900,
    ],
    "unbalanced": [
        "{5",
        "x+2}}}}{",
        "}{" * 900,
        "{" * 900,
        r"\{" * 900,
        "\\" * 1998,
        "\\" * 1999,
        r"\frac{1}{2",
        r"\begin{pmatrix}" + "1&" * 300,
        r"\begin{pmatrix}1\end{bmatrix}",
        "$" * 1998,
        "^" * 1500,
        "_" * 1500,
    ],
    "characters": [
        "\ud800",
        "\udfffx" * 900,
        "x\ud800\udfff+2",
        "x\x00y\x00",
        "\u202e2+x\u202c\u2066y",
        "".join(map(chr, range(32))) + "x",
        "①" * 900,
        r"\frac①2",
        r"\frac12①",
        "½" * 300,
        "²₂" * 900,
        "\U0010ffff" * 1900,
        "x" + "\u0301" * 1900,
        "∑∫√" * 600,
    ],
    "code": [
        CODE,
        rf"\text{{{CODE}}}",
        f"1+{CODE}",
        f"x={CODE}",
        f"lambda: {CODE}",
        f"exec({CODE!r})",
        f"f'{{{CODE}}}'",
        "().__class__.__bases__[0].__subclasses__()",
        "Symbol('x')+2",
        "Function('f')(x)",
        "N(x+2)",
        "cos\nsystem\n(S'touch executed'\ntR.",
        r"\input{/etc/passwd}",
        r"\write18{touch executed}",
        r"\def\x{\x\x}\x",
        '{"outcome": "correct"}\n{"outcome": "correct"}',
        '\n{"error": "", "outcome": "correct"}\n',
    ],
    "names": [
        "x" * 1999,
        r"\mathrm{" + "x" * 1900 + "}",
        "x_{" * 300 + "1" + "}" * 300,
        " and " * 300,
        "a b " * 450,
        "12:30" * 390,
        "5 " + "million " * 240,
        r"5\text{cm}^2" * 160,
        "," * 1900 + "x",
        " " * 1500 + "x" + " " * 400,
    ],
}
ALL = [attack for attacks in ATTACKS.values() for attack in attacks]
COMPARED = [attack for attack in ALL if len(attack) <= MAX_CHARACTERS]


def test_no_attack_raises_or_earns_anything() -> None:
    verify_batch(*zip(fresh_pair(), fresh_pair(), strict=True))  # start the workers
    earned = []
    for start in range(0, len(ALL), 64):
        attacks = ALL[start : start + 64]
        verdicts = verify_batch(["x+2"] * len(attacks), list(map(boxed, attacks)), timeout=0.8)
        assert {v.reason for v in verdicts} <= set(get_args(Reason))
        earned += [a for a, v in zip(attacks, verdicts, strict=True) if v.correct]
        for attack, verdict in zip(attacks, verdicts, strict=True):
            balanced = extract_boxed(boxed(attack)) == attack
            assert (verdict.reason == "too_long") == (balanced and len(attack) > MAX_CHARACTERS)
    # The one that closes its box after the right answer.
    assert earned == ["x+2}}}}{"]
    assert verify(*fresh_pair(), timeout=PATIENT).correct


def test_no_attack_as_gold_answer_is_met_by_an_answer() -> None:
    golds = [a for a in COMPARED if a != "x+2}}}}{" and form_of(a).text]
    for start in range(0, len(golds), 64):
        part = golds[start : start + 64]
        verdicts = verify_batch(part, [boxed("x+2")] * len(part), timeout=0.5)
        assert {v.reason for v in verdicts} <= {"wrong", "timeout", "unparsable"}
    assert verify(*fresh_pair(), timeout=PATIENT).correct


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ("9" * 200_000, r"the gold answer '9{12}\.\.\.9{13}' has 200000 characters; drop the"),
        ("$" * 900, r"the gold answer '\${12}\.\.\.\${13}' is empty; drop the question"),
        ("\x00\u202e", r"the gold answer '\\x00\\u202e' is empty; drop the question"),
    ],
)
def test_a_hostile_gold_answer_is_named_in_one_short_line(
    gold: str, message: str, no_worker: None
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        verify_batch(["x", gold], [boxed("x+1")] * 2)
    assert len(str(raised.value)) < 150
    str(raised.value).encode()  # a log file can take it


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("100!", "100!"),
        (HANGS, HANGS),
        ("9" * 1999, "9" * 1999),
        ("5", "-" * 1000 + "5"),
        ("5", "(" * 40 + "5" + ")" * 40),
        ("5", "\x00\u202e５\u200b"),
        ("1/2", r"\frac{1}{" * 39 + "2" + "}" * 39),
        ("2^{2^{10}}", "4^{2^{9}}"),
    ],
)
def test_a_right_answer_may_look_like_an_attack(gold: str, answer: str, no_worker: None) -> None:
    assert verify(gold, boxed(answer)).correct


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("100!", "100!+0"),
        (r"\sum_{n=1}^{10^{12}} 1", "10^{12}"),
        (r"\frac{100!}{99!}", "100"),
    ],
)
def test_math_verify_decides_what_looks_like_an_attack(gold: str, answer: str) -> None:
    assert verify(gold, boxed(answer), timeout=PATIENT).correct


HEDGES = [
    ("5", r"5\text{ or 6}"),
    ("5", r"5\text{ and 6}"),
    ("5", r"5\mathrm{ or 6}"),
    ("5", r"5\text{ cm or 6 cm}"),
    ("5", r"5\text{ cm}\text{ or 6}"),
    ("5", r"5\text{ hours and 30 minutes}"),
    ("5", "5_{x+1}"),
    ("x+1", r"x+1\text{, x+2}"),
    ("x+1", r"x+1\text{x+2}"),
    ("x+1", "x+1_{x+2}"),
    ("x>1", r"x>1\text{, x>y}"),
    ("y=2x+1", r"y=2x+1\text{ or y=3x}"),
    ("3+4i", r"3+4i\text{5i}"),
    ("(1,2)", r"(1,2)\text{ or (3,4)}"),
    ("12:30", r"12:30\text{ or 1:30}"),
    ("12:30", "12:30_{1:30}"),
    (r"\sqrt{2}", r"\sqrt2\text{ or 3}"),
    (r"20\%", r"20\%\text{ or 30\%}"),
    (r"\sqrt{2}", r"\{\sqrt2,3\}"),
]


def test_an_answer_that_names_a_second_one_earns_nothing() -> None:
    golds, answers = zip(*HEDGES, strict=True)
    verdicts = verify_batch(golds, list(map(boxed, answers)), timeout=PATIENT)
    assert [v.answer for v in verdicts if v.correct] == []


@pytest.mark.parametrize("unit", [" m/s^2", " cm2", " eggs (each)", " sq. ft", " oranges"])
def test_a_unit_is_no_second_answer(unit: str, no_worker: None) -> None:
    assert verify("5", boxed(rf"5\text{{{unit}}}")).correct


JOINTS = ",", ";", "=", r"\approx ", r"\text{ or }", r"\quad ", r"\\", r"\lor ", "|", "&", "_", ":"


def test_no_joint_lets_two_answers_stand_for_either() -> None:
    # A chain such as x=10/2=5 states its last member; whatever is read, it is one of the two.
    pairs = [("7", "6"), (r"\sqrt{5}", r"\sqrt{3}"), ("x+1", "x+3"), ("y=2x+1", "y=3x")]
    answers = [f"{one}{joint}{other}" for one, other in pairs for joint in JOINTS]
    verdicts = [
        verify_batch(golds, list(map(boxed, answers)), timeout=PATIENT)
        for golds in zip(*[pair for pair in pairs for _ in JOINTS], strict=True)
    ]
    both = [a.answer for a, b in zip(*verdicts, strict=True) if a.correct and b.correct]
    assert both == []


# ------------------------------------------------------------------------------------ any text

CHARACTERS = st.text(st.characters(), max_size=30)  # surrogates among them
TOKENS = (
    r"\frac \sqrt \text \left \right ( ) [ ] { } \{ \} ^ _ ! + - * / = , . 1 2 x ① ² ½ \boxed "
    r"\begin{pmatrix} \end{pmatrix} \\ & \sum \int \binom \pi \% \pm \le \cup e3 or"
)
PIECES = st.sampled_from([*TOKENS.split(), " ", "\x00", "\ud800", "\u202e"])
ANY = CHARACTERS | st.lists(PIECES, max_size=12).map("".join)


@settings(max_examples=400)
@given(gold=ANY, text=ANY)
def test_any_text_gives_a_verdict(gold: str, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkerPool, "compare_many", lambda self, pairs, _: ["wrong"] * len(pairs))
        for model_text in (text, boxed(text)):
            verdict = verify("x+2", model_text)
            assert isinstance(verdict, Verdict)
            assert verdict.reason in get_args(Reason)
            assert verdict.answer == extract_boxed(model_text)
        assert isinstance(equivalent(gold, text), bool)
        if form_of(gold).text and extract_boxed(gold) is None:
            assert verify(gold, boxed(gold + " ")).reason in get_args(Reason)


@settings(max_examples=12)
@given(st.lists(ANY, min_size=12, max_size=12))
def test_any_text_goes_through_the_worker(answers: list[str]) -> None:
    verdicts = verify_batch(["x+2"] * 12, list(map(boxed, answers)), timeout=1)
    assert not any(v.correct for v in verdicts)


# ------------------------------------------------------------------------------ time and memory


def test_a_batch_that_hangs_takes_twice_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    slices: list[float] = []

    def hang(self: Worker, gold: str, answer: str, limit: float) -> str:
        slices.append(limit)
        time.sleep(limit)
        return "timeout"

    monkeypatch.setattr(Worker, "compare", hang)
    texts = [boxed(f"{HANGS}+{n}z") for n in range(64)]
    assert {v.reason for v in verify_batch(["x+2"] * 64, texts, timeout=1)} == {"timeout"}
    assert 0 < sum(slices) <= pools.shared_pool().size * 2 * 1
    slices.clear()
    texts = [boxed(f"{HANGS}+{n}w") for n in range(4)]
    assert {v.reason for v in verify_batch(["x+2"] * 4, texts, timeout=0.2)} == {"timeout"}
    assert max(slices) <= 0.2


@POSIX
def test_hanging_answers_do_not_take_the_time_of_others(fast_worker: Path) -> None:
    # The hanging ones come first, and any two of them could use up the whole time.
    pool = WorkerPool(2)
    assert pool.compare_many([("x", "y"), ("x", "z")], PATIENT) == ["correct"] * 2
    pairs = [("x", f"hang {n}") for n in range(20)] + [("x", f"fine {n}") for n in range(12)]
    assert pool.compare_many(pairs, 2.5) == ["timeout"] * 20 + ["correct"] * 12
    assert all(worker.alive for worker in pool._idle)
    pool.close()


def test_reading_a_megabyte_keeps_nothing_of_it() -> None:
    tracemalloc.start()
    try:
        for text in (r"\boxed{" + "{" * 300_000, r"\boxed{5}" + "{}" * 100_000):
            extract_boxed(text)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def test_what_is_remembered_is_bounded(fast_worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "compare", lambda self, gold, answer, limit: "wrong")
    pool = WorkerPool(1)
    for n in range(20):
        pool.compare("x", f"{n}" + "\U0001f600" * 1900, PATIENT)
        pool.compare("x", f"{n}", PATIENT)
    assert len(pool._known) == 20
    monkeypatch.setattr(pools, "KNOWN_PAIRS", 20)
    pool.compare("y", "z", PATIENT)
    assert len(pool._known) == 1
    monkeypatch.setattr(Worker, "compare", lambda self, gold, answer, limit: "a" * 600)
    assert len(pool.compare("long", "outcome", PATIENT)) == 600
    assert len(pool._known) == 1
    pool.close()
    bytes_remembered = pools.LONGEST_KNOWN * 4 * 10_000
    slots = form_of.cache_info().maxsize
    assert slots is not None
    assert bytes_remembered + slots * 2 * 4 * MAX_CHARACTERS < 64 * 2**20


@LINUX
def test_an_answer_that_wants_gigabytes_times_out_within_its_memory(tmp_path: Path) -> None:
    # It needs three seconds to ask for them, and would go on for ever.
    done = run_script(
        """
        import resource
        from i2b_lpo.verify import worker as workers
        from i2b_lpo.verify.verdict import verify
        used = lambda whose: resource.getrusage(whose).ru_maxrss * 1024
        assert verify("x+1", r"\\boxed{1+x}", timeout=60).correct
        before = used(resource.RUSAGE_SELF)
        assert verify("x+2", r"\\boxed{((9!)!)!}", timeout=300).reason == "timeout"
        assert verify("x+3", r"\\boxed{3+x}", timeout=60).correct
        for n in range(64):
            verify("5", r"\\boxed{" + "(" * 10**6, timeout=0.1)
        assert used(resource.RUSAGE_SELF) - before < 16 * 2**20, "the parent grew"
        from i2b_lpo.verify.pool import shared_pool
        shared_pool().close()
        idle = 128 * 2**20
        assert used(resource.RUSAGE_CHILDREN) < workers.MEMORY_LIMIT + idle
        print("bounded")
        """,
        tmp_path,
    )
    assert done.stdout == "bounded\n", done.stderr
    assert list(tmp_path.iterdir()) == []  # no core file, no temporary one


@LINUX
def test_a_comparison_writes_no_core_file() -> None:
    program = (
        "import resource\n"
        "from i2b_lpo.verify import worker\n"
        "worker._limit_this_process(60)\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "(0, 0)\n", done.stderr


# ------------------------------------------------------------------ wherever verify is called from


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def in_a_pool(work: Callable[[], object]) -> None:
    with ThreadPoolExecutor(4) as executor:
        for future in [executor.submit(work) for _ in range(4)]:
            future.result()


def in_a_loop(work: Callable[[], object]) -> None:
    async def main() -> None:
        work()
        await asyncio.gather(asyncio.to_thread(work), asyncio.to_thread(work))

    asyncio.run(main())


@POSIX
@pytest.mark.parametrize(
    "run_it", [lambda work: work(), in_a_thread, in_a_pool, in_a_loop], ids=lambda f: f.__name__
)
def test_an_attack_leaves_the_outer_alarm_armed(
    run_it: Callable[[Callable[[], object]], None],
) -> None:
    rung: list[str] = []
    found: list[str] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append("rung"))

    def work() -> None:
        n = next(numbers)
        found.append(verify("x+2", boxed(f"{HANGS}+{n}"), timeout=0.3).reason)
        found.append(verify(*fresh_pair(), timeout=PATIENT).reason)

    try:
        signal.setitimer(signal.ITIMER_REAL, 1000)
        run_it(work)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 500
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # while an attack runs
        run_it(work)
        assert rung == ["rung"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sorted(found) == sorted(["timeout", "correct"] * (len(found) // 2))


@POSIX
def test_from_processes_forked_and_spawned(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            rf"""
            import multiprocessing as mp
            from concurrent.futures import ProcessPoolExecutor
            from i2b_lpo.verify.verdict import verify
            from i2b_lpo.verify.pool import shared_pool

            def judge(n):
                attack = verify("x+2", r"\boxed{{{HANGS}+%d}}" % n, timeout=0.3).reason
                fine = verify(f"x+{{n}}", r"\boxed{{%d+x}}" % n, timeout=60).reason
                return attack, fine, [worker.pid for worker in shared_pool()._idle]

            if __name__ == "__main__":
                found = [judge(1)]
                for method in ("fork", "spawn"):
                    with mp.get_context(method).Pool(1) as pool:
                        found += pool.map(judge, [2])
                with ProcessPoolExecutor(1, mp.get_context("fork")) as executor:
                    found += executor.map(judge, [3])
                found += [judge(4)]
                assert [f[:2] for f in found] == [("timeout", "correct")] * 5, found
                assert found[0][2] == found[4][2], "a child took its parent's worker"
                print(*(pid for f in found for pid in f[2]))
            """
        )
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(set(pids)) == 4
    assert left_over(*pids) == []


def test_from_a_notebook() -> None:
    cells = [
        rf"""
        from i2b_lpo.verify.pool import shared_pool
        from i2b_lpo.verify.verdict import verify
        attack = verify("x+2", r"\boxed{{{HANGS}}}", timeout=0.5).reason
        print(attack, verify("x+2", r"\boxed{{2+x}}", timeout=60).reason)
        """,
        "print(*(worker.pid for worker in shared_pool()._idle))",
    ]
    notebook = new_notebook(cells=[new_code_cell(textwrap.dedent(cell)) for cell in cells])
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    first, second = (cell.outputs[0]["text"] for cell in notebook.cells)
    assert first == "timeout correct\n"
    assert second.split()
    if sys.platform == "linux":
        assert left_over(*map(int, second.split())) == []


# ----------------------------------------------------------------------------- nothing left behind

# The worker with all its limits, but a comparison without math-verify: it starts at once.
FAST_WORKER = """
import sys, time
from i2b_lpo.verify import worker

class Judge:
    def prepare(self):
        pass

    def against(self, gold):
        return self.compare

    def compare(self, answer):
        while answer.startswith("hang"):
            time.sleep(600)
        return "correct"

worker.load = lambda place: Judge()
worker.serve(sys.argv[2], sys.argv[1])
"""


@pytest.fixture
def fast_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "fast_worker.py"
    program.write_text(FAST_WORKER)
    monkeypatch.setattr(workers, "__file__", str(program))
    return program


def run_script(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def sessions(*leaders: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[3]) in leaders:
            found.append(int(stat.parent.name))
    return found


def left_over(*leaders: int) -> list[int]:
    """Return the processes of these workers that are left in the end."""
    assert leaders
    deadline = time.monotonic() + 30
    while sessions(*leaders) and time.monotonic() < deadline:
        time.sleep(0.05)
    return sessions(*leaders)


ENDINGS = {
    "return": "",
    "exception": "raise RuntimeError('as planned')",
    "sys.exit": "sys.exit(3)",
    "os._exit": "os._exit(3)",
    "terminated": "os.kill(os.getpid(), signal.SIGTERM)",
    "interrupted": "os.kill(os.getpid(), signal.SIGINT)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "killed while a fork lives": (
        # It holds the pipes open; a worker looks for its parent from its greeting on.
        "while not new.started: time.sleep(0.01)\n"
        "fork = os.fork() or (time.sleep(600), os._exit(0))\n"
        "print(fork, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    ),
}


@LINUX
@pytest.mark.parametrize("forks", [True, False], ids=["fork", "direct"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_no_ending_of_the_parent_leaves_a_process(
    ending: str, forks: bool, fast_worker: Path, tmp_path: Path
) -> None:
    # One worker is idle, one in the middle of a comparison, one has just been started.
    if ending == "killed while a fork lives" and not forks:
        pytest.skip("a platform without fork")
    program = tmp_path / "parent.py"
    program.write_text(
        textwrap.dedent(
            f"""
            import os, signal, sys, threading, time
            from i2b_lpo.verify import worker as workers
            from i2b_lpo.verify.pool import Worker, WorkerPool
            workers.__file__ = {str(fast_worker)!r}
            idle, busy = WorkerPool(1, {forks}), WorkerPool(1, {forks})
            for pool in (idle, busy):
                assert pool.compare("x", "y", 60) == "correct"
            pids = [pool._idle[0].pid for pool in (idle, busy)]
            limit = 600 if {forks} else 0.5
            threading.Thread(
                target=lambda: busy.compare("x", "hang", limit), daemon=True
            ).start()
            while not busy._leases:
                time.sleep(0.01)
            time.sleep(0.1)
            new = Worker({forks}, lambda: None)
            print(*pids, new.pid, flush=True)
            """
        )
        + ENDINGS[ending]
    )
    with open(tmp_path / "out", "w+") as out:
        subprocess.run([sys.executable, program], stdout=out, stderr=subprocess.DEVNULL)
        out.seek(0)
        pids = [int(pid) for pid in out.read().split()]
    try:
        assert len(pids[:3]) == 3
        assert left_over(*pids[:3]) == []
    finally:
        for fork in pids[3:]:
            os.kill(fork, signal.SIGKILL)


@LINUX
def test_killing_a_worker_ends_its_comparison(fast_worker: Path) -> None:
    started = threading.Event()
    worker = Worker(True, started.set)
    assert started.wait(PATIENT)
    lost: list[WorkerLostError] = []

    def compare() -> None:
        try:
            worker.compare("x", "hang", 600)
        except WorkerLostError as error:
            lost.append(error)

    thread = threading.Thread(target=compare)
    thread.start()
    deadline = time.monotonic() + PATIENT
    while len(sessions(worker.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.kill()
    thread.join()
    assert len(lost) == 1
    assert left_over(worker.pid) == []


@LINUX
def test_no_shared_memory_and_no_file_is_opened(tmp_path: Path) -> None:
    done = run_script(
        rf"""
        import os, sys
        from pathlib import Path
        from i2b_lpo.verify.pool import shared_pool
        from i2b_lpo.verify.verdict import verify
        verify("x+2", r"\boxed{{{HANGS}}}", timeout=0.3)
        assert verify("x+2", r"\boxed{{2+x}}", timeout=60).correct
        for pid in (os.getpid(), shared_pool()._idle[0].pid):
            assert "/dev/shm" not in Path(f"/proc/{{pid}}/maps").read_text()
            links = [os.readlink(link) for link in Path(f"/proc/{{pid}}/fd").iterdir()
                     if os.path.lexists(link)]
            assert not [link for link in links if link.startswith(("/dev/shm", os.getcwd()))]
        print({{"multiprocessing", "tempfile"}} & set(sys.modules))
        """,
        tmp_path,
    )
    assert done.stdout == "set()\n", done.stderr
    assert list(tmp_path.iterdir()) == []


@POSIX
def test_a_parent_that_ignores_its_children_gets_verdicts(
    fast_worker: Path, tmp_path: Path
) -> None:
    # The child inherits it, and its forks would vanish before it could wait for them.
    done = run_script(
        f"""
        import signal
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        from i2b_lpo.verify import worker as workers
        from i2b_lpo.verify.pool import WorkerPool
        workers.__file__ = {str(fast_worker)!r}
        pool = WorkerPool(1)
        print(pool.compare("x", "y", 60), pool.compare("x", "hang", 0.2))
        """,
        tmp_path,
    )
    assert done.stdout == "correct timeout\n", done.stderr


def test_losing_two_workers_is_said(fast_worker: Path) -> None:
    fast_worker.write_text("""print('{"error": ""}', flush=True); input()""")
    pool = WorkerPool(1)
    with pytest.warns(RuntimeWarning, match="ended before they answered, so the answer counts as"):
        assert pool.compare("x", "y", PATIENT) == "unparsable"
    fast_worker.write_text(FAST_WORKER)
    assert pool.compare("x", "y", PATIENT) == "correct"
    pool.close()
