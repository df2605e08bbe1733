"""Python functions as a domain: questions, blocks, unit tests, and what hostile code can't do."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from verifying import LINUX, POSIX

from i2b_lpo.tasks import functions
from i2b_lpo.tasks.domains import DOMAINS, judge
from i2b_lpo.tasks.functions import FUNCTIONS, function_questions, write_function
from i2b_lpo.tasks.loading import load_examples, load_task
from i2b_lpo.trace import Question
from i2b_lpo.verify import worker
from i2b_lpo.verify.judges import CALLING
from i2b_lpo.verify.pool import Worker, WorkerPool, shared_pool
from i2b_lpo.verify.verdict import Verdict

pytestmark = POSIX
SPLITS = ("train", "validation", "test")
DOUBLE = Question(
    "double",
    "Write a function f(x) that returns x times 2.",
    "def f(x):\n    return x*2",
    domain="functions",
    checks=json.dumps({"call": "f", "inputs": [[1], [2], [-3]], "outputs": [2, 4, -6]}),
)


def block(code: str) -> str:
    return f"Let me see.\n```python\n{code}\n```\nThat's it."


def expecting(*outputs: object) -> Question:
    """`DOUBLE` called once for each of these values, with no argument."""
    tests = {"call": "f", "inputs": [[] for _ in outputs], "outputs": outputs}
    return replace(DOUBLE, checks=json.dumps(tests))


def verdict(code: str, question: Question = DOUBLE) -> Verdict:
    (found,) = judge([question], [block(code)])
    assert found.answer == code
    return found


# --- questions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_questions_are_reproducible_and_of_their_split(split: str) -> None:
    task = load_task("functions")
    questions = task.questions(split, 60, seed=3)
    assert questions == load_task("functions").questions(split, 60, seed=3)
    assert questions != task.questions(split, 60, seed=4)
    assert {2, 3} <= {q.level for q in questions} <= {1, 2, 3}  # few have one step
    assert {(q.task, q.domain) for q in questions} == {("functions", "functions")}
    others = {
        q.text
        for other in SPLITS
        if other != split
        for q, _ in zip(function_questions(other, random.Random(0)), range(3000), strict=False)
    }
    assert not others & {q.text for q in questions}
    assert task.batch(7, 4, seed=0) == task.batch(7, 4, seed=0) != task.batch(8, 4, seed=0)


def test_the_written_solutions_are_right_and_the_policys_frame_holds_them() -> None:
    questions = load_task("functions").questions("train", 40, seed=0)
    before, after = FUNCTIONS.frame
    texts = [f"{before}{q.answer}{after}" for q in questions]
    assert {v.reason for v in judge(questions, texts)} == {"correct"}
    assert [FUNCTIONS.extract(text) for text in texts] == [q.answer for q in questions]
    wrong = [text.removesuffix(after) + "+1" + after for text in texts]
    assert {(v.reward, v.reason) for v in judge(questions, wrong)} == {(0.0, "wrong")}


def test_a_question_reads_from_left_to_right() -> None:
    question = functions._question((("plus", 9), ("times", 6), ("minus", 2)))
    assert question.text == (
        "Write a function f(x) that returns x plus 9, then times 6, then minus 2."
    )
    assert question.answer == "def f(x):\n    return (x+9)*6-2"
    assert json.loads(question.checks)["outputs"] == [10, 46, 52, 58, 64, 70, 112]
    assert write_function((("times", 3), ("times", 4))) == "def f(x):\n    return x*3*4"
    assert write_function((("plus", 3), ("minus", 4))) == "def f(x):\n    return x+3-4"


def test_examples_are_train_questions_with_right_solutions() -> None:
    draw = load_examples("functions")(random.Random(0))
    examples = list(itertools.islice(draw, 30))
    train = {q.text: q for q in load_task("functions").questions("train", 4000, seed=1)}
    known = [(train[text], one) for text, one, _ in examples if text in train]
    assert len(known) > 10
    assert {v.reason for v in judge(*map(list, zip(*known, strict=True)))} == {"correct"}


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown split 'dev'; choose one of train"):
        load_task("functions").questions("dev", 1, seed=0)


# --- where the answer is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "before"),
    [
        ("```python\na\n```", "a", ""),
        ("so\n```\na\nb\n```\nend", "a\nb", "so\n"),
        ("```\na\n```\nno:\n```py\nb\n```\n", "b", "```\na\n```\nno:\n"),
        ("```\na\n```\n```\nb", "a", ""),  # what is judged is the closed one
        ("so\n```python\na", None, "so\n"),
        ("```a```", None, ""),
        ("def f(x): return x", None, None),
        ("`x`", None, None),
        ("", None, None),
    ],
)
def test_the_last_closed_block_is_the_answer(
    text: str, answer: str | None, before: str | None
) -> None:
    assert FUNCTIONS.extract(text) == answer
    at = FUNCTIONS.begins(text)
    assert (None if at is None else text[:at]) == before


def test_a_megabyte_of_fences_is_read_once() -> None:
    begin = time.monotonic()
    assert FUNCTIONS.extract("```\n" * 250_000) == ""
    assert FUNCTIONS.extract("`" * 1_000_000) is None
    assert time.monotonic() - begin < 5


def test_votes_are_for_the_same_lines() -> None:
    assert FUNCTIONS.equivalent("def f(x):\n  return x\n", "def f(x):  \n\n  return x")
    assert not FUNCTIONS.equivalent("def f(x):\n  return x*2", "def f(x):\n  return 2*x")


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "def f(x):\n    return x*2",
        "f = lambda x: x+x",
        "def f(x):\n    print('busy')\n    return x<<1",
        "import math\nfrom functools import reduce\n"
        "def f(x):\n    return reduce(int.__add__, [x, x])",
        "def f(x):\n    return x*2.0",  # equal, as an assert would have it
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\n"
        "def f(x):\n    return sum(P(x, x))",
        "from typing import *\nclass F:\n    def __call__(self, x: int) -> int:\n"
        "        return 2*x\nf = F()",
    ],
)
def test_a_right_answer_scores_1(code: str) -> None:
    found = verdict(code)
    assert (found.reward, found.correct, found.reason) == (1.0, True, "correct")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(x):\n    return x*3", "wrong"),
        ("def f(x):\n    return x*2 if x > 0 else 0", "wrong"),  # one test of three
        ("def g(x):\n    return x*2", "wrong"),
        ("def f():\n    return 2", "wrong"),
        ("def f(x):\n    return 1/0", "wrong"),
        ("def f(x):\n    return str(x*2)", "wrong"),
        ("def f(x):\n    return {x*2}", "wrong"),  # no JSON
        ("def f(x):\n    return float('nan')", "wrong"),
        ("def f(x):\n    return 10**5000", "wrong"),  # more digits than are read
        ("import numpy\ndef f(x):\n    return x*2", "wrong"),
        ("raise SystemExit", "wrong"),
        ("import os\nos._exit(0)", "unparsable"),
        ("def f(x) return x*2", "unparsable"),
        ("return 2", "unparsable"),
        ("\x00", "unparsable"),
        ("(" * 3000, "unparsable"),
        ("x = " + "-" * 3900 + "1", "unparsable"),
        ("#" * 4001, "too_long"),
        ("", "no_answer"),
        ("  \n", "no_answer"),
    ],
)
def test_a_wrong_answer_scores_0(code: str, reason: str) -> None:
    (found,) = judge([DOUBLE], [block(code)])
    assert (found.reward, found.correct) == (0.0, False)
    # What is nested too deeply for one version of Python is right for another.
    assert found.reason == reason or (reason == "unparsable" and found.reason == "wrong")


def test_values_of_every_plain_kind_are_compared() -> None:
    values = [None, True, 1.5, "é", [1, [2]], {"a": [None]}]
    code = f"values = iter({values!r})\ndef f():\n    return next(values)"
    assert verdict(code, expecting(*values)).correct
    assert verdict("def f():\n    return (1, 2)", expecting([1, 2])).correct, "a tuple is a list"
    assert not verdict("def f():\n    return [1, 2, 3]", expecting([1, 2])).correct


def test_an_outcome_is_the_same_each_time() -> None:
    asked = json.dumps({"call": "f", "inputs": [[]]})
    code = "import random\ndef f():\n    return [hash('abc'), random.random()]"
    outcomes = set()
    for _ in range(3):
        pool = WorkerPool(1, judge=CALLING)
        outcomes.add(pool.compare(asked, code, 30.0))
        pool.close()
    assert len(outcomes) == 1 and "." in outcomes.pop()


@pytest.mark.parametrize("checks", ["", "[]", "{}", '{"call": "f", "inputs": [], "outputs": []}'])
def test_a_question_without_unit_tests_is_refused(checks: str) -> None:
    with pytest.raises(ValueError, match="'double' has no unit tests"):
        judge([replace(DOUBLE, checks=checks)], [block("def f(x): return x")])


# --- hostile code ---------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "TIMEOUT", 0.5)


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    """One worker, so that each answer meets what the one before has left of it."""
    pool = WorkerPool(1, judge=CALLING)
    yield pool
    pool.close()


def members(leader: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and leader in (int(fields[1]), int(fields[2]), int(fields[3])):
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "def f(x):\n    while True: pass",
        "def f(x):\n    return 9**9**9",
        "import re\ndef f(x):\n    return re.match('(a*)*b', 'a'*40)",
        "import signal\nsignal.setitimer(0, 0)\nwhile True: pass",
        "import gc, signal\nsignal.signal(14, signal.SIG_IGN)\nwhile True: pass",
        "import os\nfor n in range(3, 99):\n    try: os.close(n)\n    except OSError: pass\n"
        "while True: pass",
    ],
)
def test_an_answer_that_never_ends_times_out(
    code: str, pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = time.monotonic()
    asked = json.dumps({"call": "f", "inputs": [[1]]})
    assert pool.compare(asked, code, 0.5) == "timeout"
    assert time.monotonic() - begin < 20
    assert pool.compare(asked, "def f(x): return 2", 30.0) == "[2]", "the next one is judged"


@LINUX
@pytest.mark.parametrize(
    "code",
    [
        "def f(x):\n    return [0] * 10**10",
        "def f(x):\n    a = []\n    while True: a.append(' ' * 10**6)",
        "x = 'a' * (600 * 2**20)\ndef f(x):\n    return x*2",
    ],
)
def test_memory_is_limited(code: str) -> None:
    assert verdict(code).reason == "timeout"


FLOOD = """
import os
for n in range(98, 2, -1):
    try:
        while True:
            os.write(n, b'a' * 65536)
    except OSError:
        pass
while True: pass
"""


@LINUX
def test_an_outcome_is_limited_and_so_is_what_the_worker_keeps_of_it(pool: WorkerPool) -> None:
    asked = json.dumps({"call": "f", "inputs": [[1]]})
    assert pool.compare(asked, "def f(x):\n    return 'a' * 2**17", 30.0) == "unparsable"
    leader = pool._idle[0].pid
    assert pool.compare(asked, FLOOD, 1.0) == "unparsable"
    assert pool._idle[0].pid == leader
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{leader}/status").read_text())
    assert peak is not None
    assert int(peak[1]) < 100_000


def test_a_loop_ends_by_its_own_timer(pool: WorkerPool) -> None:
    asked = json.dumps({"call": "f", "inputs": [[1]]})
    assert pool.compare(asked, "def f(x): return 2", 30.0) == "[2]"
    leader = pool._idle[0].pid
    assert pool.compare(asked, "while True: pass", 0.3) == "timeout"
    assert pool._idle[0].pid == leader, "the parent had to end the worker"


def test_a_flood_of_prints_goes_nowhere(
    impatient: None, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert verdict("while True: print('a' * 4096)").reason == "timeout"
    told = "import sys\ndef f(x):\n    print('told', x)\n    print('told', file=sys.stderr)\n"
    assert verdict(told + "    return x*2").correct
    assert capfd.readouterr() == ("", "")


SECRET = "s3cret"


@pytest.mark.slow
def test_neither_files_nor_the_environment_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    shared_pool(CALLING).close()  # a worker that is started now would be given it
    asked = expecting(SECRET)
    for code in (
        f"def f():\n    return open({str(file)!r}).read()",
        f"import os\ndef f():\n    return os.read(os.open({str(file)!r}, 0), 99).decode()",
        f"import pathlib\ndef f():\n    return pathlib.Path({str(file)!r}).read_text()",
        f"import io\ndef f():\n    return io.FileIO({str(file)!r}).read().decode()",
        "import os\ndef f():\n    return os.environ['HF_TOKEN']",
        "import posix\ndef f():\n    return posix.environ[b'HF_TOKEN'].decode()",
        f"def f():\n    return [v for v in open('/proc/{os.getpid()}/environ')]",
    ):
        assert verdict(code, asked).reason == "wrong", code
    assert verdict(f"def f():\n    return {SECRET!r}", asked).correct, "the test itself"


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "kept"
    file.write_text("as it was")
    for code in (
        "open('here', 'w').write('x')",
        f"open({str(tmp_path / 'there')!r}, 'w').write('x')",
        f"import os\nos.remove({str(file)!r})",
        f"import os\nos.rename({str(file)!r}, {str(tmp_path / 'moved')!r})",
        f"import os\nos.mkdir({str(tmp_path / 'folder')!r})",
        f"import os\nos.symlink('/etc', {str(tmp_path / 'link')!r})",
        f"import os\nos.truncate({str(file)!r}, 0)",
        f"import os\nos.chmod({str(file)!r}, 0)",
    ):
        assert verdict(f"{code}\ndef f(x):\n    return x*2").reason == "wrong", code
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == "as it was"
    assert os.access(file, os.R_OK) and file.stat().st_mode & 0o600


@POSIX
def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = server.getsockname()
        for code in (
            f"import socket\nsocket.create_connection({address}).close()",
            f"import _socket\ns = _socket.socket()\ns.connect({address})",
        ):
            assert verdict(f"{code}\ndef f(x):\n    return x*2").reason == "wrong"
        with pytest.raises(TimeoutError):
            server.accept()


@LINUX
@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass",
        "import subprocess\nsubprocess.Popen(['sleep', '600'])",
        "import _posixsubprocess",
        "import os\nos.posix_spawn('/bin/sleep', ['sleep', '600'], {})",
        "import os\nos.system('sleep 600 &')",
        "import os\nos.execv('/bin/sleep', ['sleep', '600'])",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()",
    ],
)
def test_no_process_is_started_or_left(code: str, pool: WorkerPool) -> None:
    asked = json.dumps({"call": "f", "inputs": [[1]]})
    assert pool.compare(asked, "def f(x): return 2", 30.0) == "[2]"
    (leader,) = (idle.pid for idle in pool._idle)
    assert json.loads(pool.compare(asked, code + "\ndef f(x):\n    return 2", 5.0)) != [2]
    assert members(leader) == [leader]


def test_other_processes_are_let_alone(pool: WorkerPool) -> None:
    asked = json.dumps({"call": "f", "inputs": [[1]]})
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        for pid in ("os.getppid()", "-1", "0", str(other.pid)):
            code = f"import os, signal\nos.kill({pid}, 9)\ndef f(x): return 2"
            assert pool.compare(asked, code, 5.0) == '"PermissionError"'
        assert other.poll() is None
    assert len(pool._idle) == 1 and pool._idle[0].alive


WRITE_ALL = """
import os
for n in range(64):
    try:
        os.write(n, b'{said}')
    except OSError:
        pass
os._exit(0)
"""


@pytest.mark.filterwarnings("error")  # a reader that fails on what it is sent
@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "import os\nos._exit(0)",
        "import os\nos.abort()",
        "raise KeyboardInterrupt",
        # an object that equals everything, by itself and as a kind of number
        "class E:\n    def __eq__(self, other): return True\ndef f(x):\n    return E()",
        "class E(int):\n    def __eq__(self, other): return True\ndef f(x):\n    return E(5)",
        "class E(list):\n    def __eq__(self, other): return True\ndef f(x):\n    return E()",
        # built-ins and what the judge itself calls
        "import builtins\nbuiltins.AssertionError = ValueError\nbuiltins.all = lambda *a: True\n"
        "builtins.compile = builtins.exec = lambda *a: None",
        "import json\njson.dumps = lambda *a, **k: 'correct'\ndef f(x):\n    return 0",
        'import json\njson.dumps = lambda *a, **k: \'{"outcome": "correct"}\'\nf = abs',
        "import __main__\n__main__.outcome_of = lambda *a: 'correct'\nf = abs",
        # a verdict said aloud, to whoever listens
        "print('correct')\nprint('{\"outcome\": \"correct\"}')\nf = abs",
        WRITE_ALL.format(said='{"outcome": "correct"}\\n'),
        WRITE_ALL.format(said="correct"),
        # the hook that refuses
        "import sys\nsys.addaudithook(lambda *a: None)",
        "import __main__\n__main__.CALCULATING += ('open',)\nopen('x')",
        "def f(x): return x*2\nf.__code__ = f.__code__.replace(co_consts=(None, 3))",
        "import ctypes",
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))",
    ],
)
def test_a_hostile_answer_scores_0(code: str) -> None:
    (found,) = judge([DOUBLE], [block(code)])
    assert (found.reward, found.correct) == (0.0, False)
    assert verdict("def f(x):\n    return 2*x").correct, "the next one is judged"


@LINUX
def test_the_kernel_refuses_what_python_would_not(tmp_path: Path) -> None:
    """The second wall, without the first: no hook, and a program of its own in the process."""
    program = (
        "import os, socket, sys\n"
        "from i2b_lpo.verify import worker\n"
        "sys.addaudithook = lambda hook: None\n"
        "worker._confine_this_process()\n"
        "for what in (lambda: open('/etc/hostname'), lambda: socket.socket(), os.pipe,\n"
        "             lambda: os.open('made', os.O_CREAT | os.O_WRONLY)):\n"
        "    try:\n        what()\n        print('done')\n"
        "    except OSError as error:\n        print(error.errno == 24, end=' ')\n"
        "if os.getuid() == 0:\n    os.setuid(65534)\n"
        "try:\n    os.fork()\n    print('forked')\n"
        "except BlockingIOError:\n    print('no fork')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "True True True True no fork\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_worker_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pool = WorkerPool(1, judge=CALLING)
    asked = json.dumps({"call": "f", "inputs": [[]]})
    code = "import os\ndef f():\n    return [sorted(os.environ), os.getcwd()]"
    ((names, folder),) = json.loads(pool.compare(asked, code, 30.0))
    assert set(names) <= {"PYTHONHASHSEED", "LC_CTYPE"}  # the second is Python's own
    assert [Path(folder)] == list(tmp_path.iterdir())
    pool.close()
    assert list(tmp_path.iterdir()) == []


# --- only where it is asked for -------------------------------------------------------------------


def test_other_tasks_run_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(
        Worker, "__init__", lambda self, forks, notify, judge: started.append(judge)
    )
    question = load_task("shop").questions("train", 1, seed=0)[0]
    code = block("raise SystemExit")
    assert judge([question], [code])[0].reason == "no_answer"
    assert judge([question], [rf"\boxed{{{question.answer}}}"])[0].correct
    function = load_task("functions").questions("train", 1, seed=0)[0]
    for text in (code, "no block", ""):
        FUNCTIONS.extract(text)
        FUNCTIONS.begins(text)
        FUNCTIONS.equivalent(text, code)
    assert judge([function], ["no block"])[0].reason == "no_answer"
    assert started == []


def test_a_system_that_cannot_confine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without_forks = partial(WorkerPool, 1, False)
    monkeypatch.setattr(functions, "shared_pool", without_forks)
    with pytest.raises(ValueError, match="need limits that this system doesn't keep; use Linux"):
        load_task("functions")


def test_a_system_without_limit_of_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.warns(UserWarning, match="macOS keeps no limit of memory"):
        load_task("functions")
    assert set(DOMAINS) >= {"maths", "functions"}
    assert worker.MEMORY_LIMIT == 512 * 2**20, "what the messages say"
