"""The command line works with the network closed and an empty home folder."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import i2b_lpo

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CLI = "import sys; from i2b_lpo.cli import main; sys.exit(main(sys.argv[1:]))"


def run_offline(code: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT / "tests" / "offline")}
    env.pop("HF_HOME", None)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    "call",
    [
        "socket.create_connection(('192.0.2.1', 443))",
        "socket.create_connection(('example.invalid', 443))",
        "socket.gethostbyname('example.invalid')",
        "socket.socket().connect_ex(('192.0.2.1', 443))",
        "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 443))",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
        "__import__('urllib.request').request.urlopen('https://example.invalid')",
    ],
)
def test_the_guard_closes_the_network_to_child_processes(call: str, tmp_path: Path) -> None:
    done = run_offline(f"import socket; {call}", home=tmp_path)
    assert done.returncode == 1
    assert "Tests run without a network" in done.stderr


def test_the_guard_closes_the_network_to_this_process() -> None:
    with pytest.raises(RuntimeError, match=r"Tests run without a network.*192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 443))


def test_the_guard_leaves_the_machine_itself_open() -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"x")
            assert server.accept()[0].recv(1) == b"x"
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"y")
        assert right.recv(1) == b"y"


def test_the_bundled_policy_answers_a_question(tmp_path: Path) -> None:
    done = run_offline(CLI, "rollout", "--max-new-tokens", "48", home=tmp_path)
    assert done.returncode == 0, done.stderr
    bars = re.findall(r'^  "(?:[^"\\]|\\.)+" +\d\.\d{3}', done.stdout, re.M)
    assert 1 <= len(bars) <= 48, done.stdout


def test_info_names_what_is_bundled(tmp_path: Path) -> None:
    done = run_offline(CLI, "info", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"i2b-lpo {i2b_lpo.__version__}" in done.stdout
