"""Run the tests, notebooks and solutions as other machines would compute them.

    python scripts/portable.py [MACHINE…] [--only tests|notebooks] [--processes 2]

Nothing that is compared may depend on which kernels a processor has, on how many threads add up a
sum, or on the last bits of trained weights. Each machine below is this one, made to compute like
another; by default all run that this processor supports. Their output is in artifacts/portable/,
and a finished machine is not run again until a tracked file changes. Test files that compare
nothing that torch computes are left out.

On 2 cores of an AMD EPYC the pages of one machine take 4 to 8 minutes, its tests 5 to 10; all of
them have not been timed in one run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from torch.backends.cpu import get_cpu_capability

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "artifacts" / "portable"

# ATen's, MKL's and oneDNN's kernels: three libraries, three variables.
OLD = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
AVX512 = {"ATEN_CPU_CAPABILITY": "avx512"}
ONE, TWO = {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2"}
MACHINES = {
    "old": OLD | ONE,
    "avx2": AVX2 | TWO,
    "avx512": AVX512 | ONE,
    "no-onednn": {"I2B_MACHINE": "no-onednn"} | TWO,
    "drift": {"I2B_MACHINE": "drift"} | ONE,
}
# Weights that a test trains are compared bit for bit with a second way to train them, so drift
# is for pages, which show what came out of a training.
PAGES_ONLY = ("drift",)
SAME_EVERYWHERE = (
    "answers", "browser", "docs", "hostile_text", "notebooks", "offline", "packaging",
    "storage", "verify", "verify_attack", "verify_pool",
)  # fmt: skip
PAGES = ("notebooks", "tutorials/solutions")
COUNTS = re.compile(r"(\d+) (passed|failed|errors?|skipped)")


def runs_here(machine: str) -> bool:
    """Whether this processor has the kernels that `machine` asks for."""
    levels = ("DEFAULT", "AVX2", "AVX512")
    asked = MACHINES[machine].get("ATEN_CPU_CAPABILITY", "default").upper()
    own = get_cpu_capability()
    return asked == "DEFAULT" or (own in levels and levels.index(own) >= levels.index(asked))


def parts(machine: str, only: str | None, processes: int) -> dict[str, list[str]]:
    """pytest's arguments for the tests and for the pages."""
    left_out = [f"--ignore-glob=*/test_{name}.py" for name in SAME_EVERYWHERE]
    pages = [str(path) for folder in PAGES for path in ROOT.glob(f"{folder}/*.ipynb")]
    made = {
        "tests": left_out,
        # With a file of tests/ comes its conftest.py, which says what nbval compares.
        "notebooks": ["--dist=loadfile", "--nbval", "tests/test_notebooks.py", *sorted(pages)],
    }
    if machine in PAGES_ONLY:
        del made["tests"]
    workers = max(1, processes // int(MACHINES[machine]["OMP_NUM_THREADS"]))
    return {
        name: [f"-n{workers}", *arguments]
        for name, arguments in made.items()
        if only in (None, name)
    }


def digest() -> str:
    """One number for all tracked files as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    names = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    found = hashlib.sha256()
    for path in filter(Path.is_file, names):
        found.update(f"{path}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def run(machine: str, part: str, arguments: list[str]) -> dict[str, Any]:
    """One call of pytest; what it printed is kept."""
    log, begin = LOGS / f"{machine}-{part}.txt", time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", *arguments]
    with log.open("w") as lines:
        done = subprocess.run(
            command, cwd=ROOT, stdout=lines, stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"} | MACHINES[machine],
        )  # fmt: skip
    text = log.read_text("utf-8", "replace")
    return {
        "code": done.returncode,
        "counts": {kind: int(n) for n, kind in COUNTS.findall(text.strip().splitlines()[-1])},
        "failed": re.findall(r"^(?:FAILED|ERROR) (\S+(?: Cell \d+)?)", text, re.M),
        "minutes": round((time.perf_counter() - begin) / 60, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("machines", nargs="*", metavar="MACHINE", help=", ".join(MACHINES))
    parser.add_argument("--only", choices=("tests", "notebooks"))
    parser.add_argument("--processes", type=int, default=2, help="cores to use (default 2)")
    given = parser.parse_args()
    if unknown := set(given.machines) - set(MACHINES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(MACHINES)}")
    wanted = given.machines or [name for name in MACHINES if runs_here(name)]
    if missing := [name for name in wanted if not runs_here(name)]:
        parser.error(f"this processor ({get_cpu_capability()}) can't run {', '.join(missing)}")
    LOGS.mkdir(parents=True, exist_ok=True)
    state, file = digest(), LOGS / "results.json"
    results: dict[str, Any]
    kept = json.loads(file.read_text()) if file.exists() else {}
    results = kept if kept.get("state") == state else {"state": state}
    for machine in wanted:
        for part, arguments in parts(machine, given.only, given.processes).items():
            name = f"{machine} {part}"
            if results.get(name, {"code": 1})["code"]:
                results[name] = run(machine, part, arguments)
                file.write_text(json.dumps(results, indent=2))
            row = results[name]
            counts = ", ".join(f"{n} {kind}" for kind, n in row["counts"].items()) or "no result"
            print(f"{name:20} {counts}; {row['minutes']} min", *row["failed"], sep="\n    ")
            sys.stdout.flush()
    shown = [r for n, r in results.items() if n != "state" and n.split()[0] in wanted]
    sys.exit(any(r["code"] for r in shown))


if __name__ == "__main__":
    main()
