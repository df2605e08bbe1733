"""The sweep over other machines really computes otherwise, and really fails."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PORTABLE = runpy.run_path(str(ROOT / "scripts" / "portable.py"))

TRAINED = """
import json, torch
ones = torch.ones(10_000, dtype=torch.float64)
weight, idle = torch.nn.Parameter(ones.clone()), torch.nn.Parameter(ones.clone())
still = torch.optim.SGD([weight, idle], lr=0.0)
seen = []
for _ in range(4):
    weight.grad = torch.zeros_like(weight)
    still.step()
    seen.append((weight.detach() - 1).std().item())
assert torch.equal(idle.detach(), ones), "nothing trained this weight"
print(json.dumps([seen, torch.backends.mkldnn.enabled, torch.backends.cpu.get_cpu_capability()]))
"""


def trained(**variables: str) -> Any:
    """What a new process sees: spread of weights after 4 steps of rate 0, oneDNN, kernels."""
    path = os.pathsep.join([str(ROOT / "tests" / "offline"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", TRAINED],
        env=os.environ | {"PYTHONPATH": path} | variables,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_weights_stay_where_no_other_machine_is_asked_for() -> None:
    assert trained(I2B_MACHINE="")[:2] == [[0, 0, 0, 0], True]


def test_drift_changes_trained_weights_by_a_thousandth() -> None:
    spread, onednn, _ = trained(I2B_MACHINE="drift")
    assert onednn
    # After steps 1, 2 and 4, each time by 1e-3 of their size.
    assert spread == pytest.approx([1e-3, 2**0.5 * 1e-3, 2**0.5 * 1e-3, 3**0.5 * 1e-3], rel=0.05)
    assert spread[1] == spread[2]


def test_onednn_and_kernels_are_those_asked_for() -> None:
    machines = PORTABLE["MACHINES"]
    old = trained(I2B_MACHINE="no-onednn", **machines["old"])
    assert old == [[0, 0, 0, 0], False, "DEFAULT"]
    if PORTABLE["runs_here"]("avx2"):
        assert trained(**machines["avx2"])[2] == "AVX2"


def test_only_kernels_that_are_there_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    runs_here = PORTABLE["runs_here"]
    for own, found in {"DEFAULT": 3, "NEON": 3, "AVX2": 4, "AVX512": 5}.items():
        monkeypatch.setitem(runs_here.__globals__, "get_cpu_capability", lambda own=own: own)
        assert sum(map(runs_here, PORTABLE["MACHINES"])) == found, own


def test_a_wish_that_is_unknown_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        trained(I2B_MACHINE="drfit")
    assert "I2B_MACHINE knows ['drift', 'no-onednn'], not ['drfit']" in refused.value.stderr


def test_what_is_left_out_is_there() -> None:
    for name in PORTABLE["SAME_EVERYWHERE"]:
        assert len([*(ROOT / "tests").rglob(f"test_{name}.py")]) == 1, name


def test_every_page_and_every_other_test_is_run() -> None:
    (tests, pages) = PORTABLE["parts"]("avx2", None, 2).values()
    assert tests[0] == pages[0] == "-n1"  # two threads take both cores
    assert {Path(page).name for page in pages if page.endswith(".ipynb")} == {
        path.name for folder in PORTABLE["PAGES"] for path in (ROOT / folder).glob("*.ipynb")
    }
    assert list(PORTABLE["parts"]("drift", None, 2)) == ["notebooks"]
    assert list(PORTABLE["parts"]("old", "tests", 2)) == ["tests"]


def test_a_failure_is_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "test_made.py"
    file.write_text("def test_one(): pass\ndef test_two(): assert 0\n", encoding="utf-8")
    run = PORTABLE["run"]
    monkeypatch.setitem(run.__globals__, "LOGS", tmp_path)
    found = run("old", "tests", ["-c", os.devnull, f"--rootdir={ROOT}", str(file)])
    assert found["code"] == 1
    assert found["counts"] == {"passed": 1, "failed": 1}
    assert [name.split("::")[-1] for name in found["failed"]] == ["test_two"]
