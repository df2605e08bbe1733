"""The commands of forks and latents, run as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from i2b_lpo.cli import main
from i2b_lpo.config import read_run
from i2b_lpo.trace import read_traces

QUESTION = "Mia buys 23 pens at $14 and 37 cups at $6. What is the cost?"


@pytest.mark.slow
def test_latents_are_made_saved_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = tmp_path / "latents"
    make = ["train-latents", "--questions", "12", "--steps", "3", "--output", str(latents)]
    make += ["--set", "selector_steps=40"]
    assert main(make) == 0
    report = json.loads(capsys.readouterr().out.rsplit("Latents:", 1)[0])
    card = json.loads((latents / "steering.json").read_text())["card"]
    assert card["validation"] == report
    assert card["rollout_tokens"] > 12 * 4 * 20 and card["config"]["steps"] == 3
    assert set(report["log_prob"]) == {"posterior", "prior", "without"}

    run = tmp_path / "run"
    common = ["train", "--steps", "1", "--latents", str(latents)]
    assert main([*common, "--method", "i2b-lpo", "--output", str(run)]) == 0
    row = json.loads((run / "metrics.jsonl").read_text())
    assert row["kept"] == pytest.approx(2 / 3)
    settings = read_run(run)
    assert settings.branch.latents == str(latents) and settings.rollout.rollouts == 2

    capsys.readouterr()
    assert main([*common, "--output", str(tmp_path / "other")]) == 2
    assert "branch.latents changes nothing here: there are no branches" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main(make) == 2, "an existing folder was written over"


@pytest.mark.parametrize("fusion", ["psa", "none"])
def test_a_tree_is_printed_and_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fusion: str
) -> None:
    ask = ["rollout", "--question", QUESTION, "--samples", "2", "--branches", "3"]
    assert main([*ask, "--fusion", fusion, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    (trace,) = read_traces(tmp_path / "out" / "traces.jsonl")
    assert printed.startswith(str(trace))
    assert [len(members) for members in trace.branch_sets()] == [3, 3]
    assert printed.count(" from token ") == 6
    names = {r.branch.fusion for r in trace.rollouts if r.branch}
    assert names == {fusion}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rollout", "--branches", "2", "--fusion", "magic"], "Unknown branch.fusion 'magic'"),
        (["rollout", "--branches", "2", "--fusion", "input"], "trained for the fusion 'psa'"),
        (["train", "--method", "ppo", "--output", "x"], "invalid choice: 'ppo'"),
        (["train-latents", "--fusion", "magic", "--output", "x"], "Unknown fusion 'magic'"),
        (["train-latents", "--objective", "magic", "--output", "x"], "choose steer or selector"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    error = capsys.readouterr().err
    last = error.rstrip().splitlines()[-1]
    assert code == 2 and message in last and "Traceback" not in error
    assert not (tmp_path / "x").exists()
