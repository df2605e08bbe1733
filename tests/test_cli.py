"""The command line: what each command does, and one helpful line for each mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_policy
from transformers import AutoModelForCausalLM

import i2b_lpo
import i2b_lpo.config
import i2b_lpo.evaluation.measuring
import i2b_lpo.model.exporting
import i2b_lpo.model.policy
from i2b_lpo import commands
from i2b_lpo.cli import main
from i2b_lpo.config import (
    PRESETS,
    EvaluationConfig,
    RolloutConfig,
    RunConfig,
    TourConfig,
    read_run,
    to_toml,
)
from i2b_lpo.model.policy import BUNDLED, Policy, load_policy, save_policy
from i2b_lpo.model.steering import new_steering, save_steering
from i2b_lpo.trace import read_traces

COMMANDS = (
    "tour", "train", "train-latents", "evaluate", "rollout", "pretrain", "info", "notebooks",
    "tutorials", "export",
)  # fmt: skip
PACKAGE = Path(i2b_lpo.__file__).parent
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("saved") / "policy"
    save_policy(tiny_policy(max_position_embeddings=512), folder)
    return str(folder)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, policy: str) -> RunConfig:
    """The preset `tiny`, made small."""
    config = RunConfig(
        policy=policy,
        steps=3,
        questions=2,
        rollout=RolloutConfig(rollouts=2, max_new_tokens=6),
    )
    monkeypatch.setitem(PRESETS, "tiny", config)
    return config


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two notebooks beside the package."""
    folder = tmp_path / "checkout"
    for name in ("00_setup.ipynb", "01_entropy.ipynb", "notes.txt"):
        (folder / "notebooks").mkdir(parents=True, exist_ok=True)
        (folder / "notebooks" / name).write_text(name, encoding="utf-8")
    monkeypatch.setattr(i2b_lpo, "__file__", str(folder / "i2b_lpo" / "__init__.py"))
    return folder


def run(*arguments: Any) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as end:  # argparse
        assert isinstance(end.code, int)
        return end.code


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


# --- what the commands do -------------------------------------------------------------------------


def test_rollout_shows_a_question_and_the_entropy_of_each_token(
    policy: str, tmp_path: Path, capsys: Capture
) -> None:
    question = "What is 23*14?"
    arguments = ("--policy", policy, "--question", question, "--max-new-tokens", 6, "--samples", 2)
    output = tmp_path / "new" / "folder"
    assert run("rollout", *arguments, "--seed", 3, "--output", output) == 0
    shown = capsys.readouterr().out
    (trace,) = read_traces(output / "traces.jsonl")
    assert (trace.question.text, trace.question.answer) == (question, "322")
    assert len(trace.rollouts) == 2
    assert shown.startswith(f"{question}  (answer 322)")
    for rollout in trace.rollouts:
        for piece, entropy in zip(rollout.pieces, rollout.entropies, strict=True):
            assert f"{json.dumps(piece):16} {entropy:6.3f}" in shown
    assert run("rollout", *arguments, "--seed", 3) == 0
    assert capsys.readouterr().out == shown
    assert run("rollout", *arguments, "--seed", 4) == 0
    assert capsys.readouterr().out != shown


def test_rollout_takes_a_question_of_a_task_and_may_be_greedy(
    policy: str, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ("--policy", policy, "--task", "product", "--split", "test", "--temperature", 0)
    assert run("rollout", *arguments, "--max-new-tokens", 4, "--output", tmp_path) == 0
    (trace,) = read_traces(tmp_path / "traces.jsonl")
    assert trace.question.task == "product"
    assert trace.temperature == 0
    assert capsys.readouterr().out.startswith(trace.question.text)


@pytest.mark.parametrize("name", BUNDLED)
def test_rollout_needs_no_option_but_a_question(name: str, capsys: Capture) -> None:
    assert run("rollout", "--policy", name, "--question", "What is 23*14?") == 0
    shown = capsys.readouterr().out
    assert "\\boxed{" in json.loads('"' + "".join(pieces(shown)) + '"')


def pieces(shown: str) -> list[str]:
    rows = [line.split('"') for line in shown.splitlines() if line.startswith('  "')]
    return ["".join(row[1:-1]) for row in rows]


def test_evaluate_prints_metrics_and_writes_them(
    policy: str, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ("--policy", policy, "--task", "product", "--questions", 3, "--samples", 2)
    output = tmp_path / "evaluation"
    assert run("evaluate", *arguments, "--max-new-tokens", 5, "--output", output) == 0
    shown = capsys.readouterr().out
    assert "on product: 3 questions × 2 samples" in shown
    result = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    assert (result["questions"], result["samples"]) == (3, 2)
    for name, interval in result["metrics"].items():
        assert any(
            line.split()[: len(name.split()) + 1] == [*name.split(), f"{interval['mean']:.3f}"]
            for line in shown.splitlines()
        ), name
    traces = list(read_traces(output / "traces.jsonl"))
    assert [len(t.rollouts) for t in traces] == [2, 2, 2]
    assert sum(len(r) for t in traces for r in t.rollouts) / 6 == pytest.approx(
        result["metrics"]["length"]["mean"]
    )


def test_a_benchmark_can_be_read_from_a_local_copy(
    policy: str, tmp_path: Path, capsys: Capture
) -> None:
    for split in ("train", "test"):
        rows = [{"question": f"1+{i}?", "answer": f"Add.\n#### {1 + i}"} for i in range(12)]
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    arguments = ("--policy", policy, "--task", "gsm8k", "--data", tmp_path, "--split", "test")
    few = ("--questions", 2, "--samples", 1, "--max-new-tokens", 3)
    assert run("evaluate", *arguments, *few) == 0
    assert "on gsm8k: 2 questions × 1 samples" in capsys.readouterr().out
    assert run("evaluate", *arguments, "--questions", 13) == 2
    assert "holds 12 questions, 13 were asked for; ask for fewer" in capsys.readouterr().err


def test_train_writes_a_run_and_export_a_card(
    small: RunConfig, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "run"
    arguments = ("--task", "product", "--steps", 2, "--seed", 5, "--output", output)
    assert run("train", *arguments) == 0
    assert str(output) in capsys.readouterr().out
    config = read_run(output)
    assert config == replace(small, task="product", steps=2, seed=5)
    metrics = lines(output / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [0, 1]
    trained = AutoModelForCausalLM.from_pretrained(output / "policy")

    assert run("export", output, tmp_path / "card") == 0
    card = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\n")
    for part in ("independent reconstruction", "task `product`, 2 steps, seed 5", small.policy):
        assert part in card
    assert to_toml(config) in card
    assert json.dumps(metrics[-1]) in card
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "card")
    for name, weight in trained.state_dict().items():
        assert exported.state_dict()[name].equal(weight), name


def test_export_copies_a_policy(policy: str, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "copy"
    assert run("export", policy, folder) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    assert "A copy of" in (folder / "README.md").read_text(encoding="utf-8")
    weights, expected = (load_policy(x).model.state_dict() for x in (folder, policy))
    assert all(weights[name].equal(weight) for name, weight in expected.items())


def test_pretrain_writes_a_policy_of_the_bundled_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def stub(
        policy: Policy, task: Any, questions: Sequence[Any], **_: Any
    ) -> tuple[str, list[Any]]:
        assert {q.task for q in questions} == {task.name} == {"product"}
        return f"measured {policy.name}", []

    monkeypatch.setattr(i2b_lpo.evaluation.measuring, "evaluate", stub)
    assert run("pretrain", "--steps", 1, "--output", tmp_path / "p") == 0
    shown = capsys.readouterr().out
    assert f"measured {tmp_path / 'p'}" in shown
    assert 300 < load_policy(tmp_path / "p").vocab_size <= 420


@pytest.fixture
def touring(policy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to start a small tour in: groups of four, as M(1+K) needs. It has no latents."""
    settings = TourConfig(
        policy=policy,
        questions=2,
        rollout=RolloutConfig(rollouts=4, max_new_tokens=6),
        evaluation=EvaluationConfig(questions=3, samples=2),
    )
    (tmp_path / "tour.toml").write_text(to_toml(settings), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_tour_trains_two_ways_and_writes_a_page(
    touring: Path, policy: str, capsys: Capture
) -> None:
    latents = touring / f"{policy.replace('/', '--')}-latents"
    save_steering(new_steering(load_policy(policy), d_z=4), latents)
    output = touring / "tour"
    (output / "grpo").mkdir(parents=True)
    for old in (output / "index.html", output / "before.json", output / "grpo" / "metrics.jsonl"):
        old.write_text("of an earlier tour", encoding="utf-8")
    assert run("tour", "--config", "tour.toml", "--output", output, "--steps", 2) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] == f"Page: {output / 'index.html'} (open it in a browser)"
    head = next(line for line in shown.splitlines() if line.startswith("metric "))
    assert head.split()[1:6] == ["base", "GRPO", "I²B-LPO", "I²B-LPO", "−"]
    assert "\npass@1 " in shown and "\ntokens generated " in shown
    page = (output / "index.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and 'id="tree"' in page and 'id="scatter"' in page
    questions = []
    for name, where in (
        ("before", output),
        ("after", output / "grpo"),
        ("after", output / "i2b-lpo"),
    ):
        result = json.loads((where / f"{name}.json").read_text(encoding="utf-8"))
        assert (result["questions"], result["samples"]) == (3, 2)
        traces = list(read_traces(where / f"traces_{name}.jsonl"))
        assert [t.question.task for t in traces] == ["shop"] * 3
        assert all(r.branch is None for t in traces for r in t.rollouts), "measured without z"
        questions.append([t.question for t in traces])
    assert questions[0] == questions[1] == questions[2]
    spent = {}
    for folder, roots in (("grpo", 4), ("i2b-lpo", 1)):
        rows = lines(output / folder / "metrics.jsonl")
        assert [row["step"] for row in rows] == [0, 1]
        spent[folder] = [row["new_tokens"] for row in rows]
        assert read_run(output / folder).rollout.rollouts == roots
    grpo, ours = spent["grpo"], sum(spent["i2b-lpo"])
    stop = 1 if abs(grpo[0] - ours) <= abs(sum(grpo) - ours) else 2
    assert [p.name for p in (output / "grpo" / "policies").iterdir()] == [f"step-{stop}"]
    assert (output / "grpo" / "equal_tokens.json").exists() == (stop == 1)
    said = f"GRPO after {stop} step{'s' * (stop > 1)}, {sum(grpo[:stop]):,.0f} tokens, and I²B-LPO "
    assert said + f"after 2 steps, {ours:,.0f} tokens" in page
    assert ("GRPO, all 2 steps" in page) == (stop == 1)


def test_tour_needs_latents_before_it_does_anything(touring: Path, capsys: Capture) -> None:
    arguments = ("tour", "--config", "tour.toml", "--output", "tour")
    refused(capsys, "make them with: i2b-lpo train-latents --policy", *arguments)
    assert not (touring / "tour").exists()


def test_info_tells_versions_and_presets(capsys: Capture) -> None:
    assert run("info") == 0
    shown = capsys.readouterr().out
    for part in (i2b_lpo.__version__, "torch 2.", "transformers 5.", "cores", *PRESETS, *BUNDLED):
        assert part in shown
    for name, config in PRESETS.items():
        assert run("info", "--preset", name, "--toml") == 0
        assert tomllib.loads(capsys.readouterr().out) == config.to_json()


def test_info_tells_a_run_in_a_few_lines(capsys: Capture) -> None:
    words = ("--preset", "qwen2.5-7b", "--method", "i2b-lpo", "--set", "ib.keep=1")
    assert run("info", *words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("I²B-LPO (METHOD §0") and "Qwen/Qwen2.5-7B on math" in shown
    assert "400 steps of 32 questions × G = 8 trajectories" in shown
    assert "(M = 2 rollouts, each with K = 3 branches)" in shown
    assert "ib.keep=1" in shown and "grpo.alpha=0.005" in shown and "--toml" in shown
    assert run("info", "--preset", "tiny") == 0
    assert "differs from the preset tiny in: nothing else" in capsys.readouterr().out


def test_notebooks_are_copied(notebooks: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "mine"
    assert run("notebooks", folder) == 0
    names = ["00_setup.ipynb", "01_entropy.ipynb"]
    assert sorted(file.name for file in folder.iterdir()) == names
    assert (folder / names[1]).read_text(encoding="utf-8") == names[1]
    assert capsys.readouterr().out.split() == [str(folder / name) for name in names]
    # An installed package carries them inside.
    (notebooks / "i2b_lpo").mkdir()
    (notebooks / "notebooks").rename(notebooks / "i2b_lpo" / "_notebooks")
    assert run("notebooks", tmp_path / "again") == 0


# --- mistakes -------------------------------------------------------------------------------------


def refused(capsys: Capture, hint: str, *arguments: Any) -> None:
    """Exit code 2 and exactly one line on stderr, which holds `hint`; progress bars aside."""
    assert run(*arguments) == 2
    said = capsys.readouterr()
    message = [line for line in said.err.split("\n") if "it/s]" not in line]
    assert len(message) == 2, said.err
    assert re.match("i2b-lpo[ :]", message[0]), said.err
    assert message[1] == "", "the line has no end"
    assert hint in message[0]
    assert said.out == ""


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("", "COMMAND; see i2b-lpo --help"),
        ("fly", "invalid choice: 'fly' (choose from"),
        ("train", "--output; see i2b-lpo train --help"),
        ("pretrain", "--output; see i2b-lpo pretrain --help"),
        ("export x", "DIR; see i2b-lpo export --help"),
        ("notebooks", "DIR; see i2b-lpo notebooks --help"),
        ("rollout --colour red", "unrecognized arguments: --colour red; see i2b-lpo"),
        ("tour --steps 0", "'0' is not a whole number above 0"),
        ("tour --steps many", "'many' is not a whole number above 0"),
        ("evaluate --samples 1.5", "'1.5' is not a whole number above 0"),
        ("evaluate --questions -3", "--questions"),
        ("rollout --samples ²", "'²' is not a whole number above 0"),
        ("rollout --max-new-tokens 0", "'0' is not a whole number above 0"),
        ("rollout --seed x", "--seed: invalid int value: 'x'"),
        ("rollout --temperature hot", "--temperature: invalid float value: 'hot'"),
        ("rollout --temperature -1", "temperature is -1.0; give 0 (greedy) or more"),
        ("evaluate --temperature -1", "temperature is -1.0; give 0 (greedy) or more"),
        ("evaluate --temperature nan", "temperature is nan; give 0 (greedy) or more"),
        ("evaluate --temperature inf", "temperature is inf; give 0 (greedy) or more"),
        ("rollout --top-p 0", "top_p is 0.0; give a number above 0 and up to 1"),
        ("evaluate --top-p 1.1", "top_p is 1.1; give a number above 0 and up to 1"),
        ("rollout --question Hi", "write it like 'Mia buys"),
        ("rollout --question=", "write it like 'Mia buys"),
        ("rollout --task nope", "Unknown task 'nope'; choose one of shop, product, "),
        ("evaluate --task nope", "Unknown task 'nope'; choose one of shop, product, "),
        ("train --output run --task nope", "Unknown task 'nope'; choose one of shop, product, "),
        ("pretrain --output run --task gsm8k", "choose one of shop, product, functions"),
        ("evaluate --task nope.jsonl", "give a .json or .jsonl file"),
        ("evaluate --task gsm8k --data nope", "put the data there"),
        ("evaluate --task gsm8k", "or give a local copy"),
        ("rollout --split nope", "Unknown split 'nope'; choose one of train, validation, test"),
        ("evaluate --split nope", "Unknown split 'nope'; choose one of train, validation, test"),
        ("rollout --policy ./nope", "give an existing folder, a hub name, or a bundled policy"),
        ("evaluate --policy ./nope", "give an existing folder, a hub name, or a bundled policy"),
        ("train --output run --policy ./nope", "give an existing folder, a hub name, or a bundled"),
        ("export ./nope card", "give an existing folder, a hub name, or a bundled policy"),
        ("info --preset nope", "Unknown preset 'nope'; choose one of tiny, "),
        ("train --output run --preset nope", "Unknown preset 'nope'; choose one of tiny, "),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    arguments: str, hint: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, hint, *arguments.split())
    assert list(tmp_path.iterdir()) == [], "a refused command left something behind"


@pytest.mark.parametrize("command", ["rollout", "evaluate", "train"])
@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "tpu"])
def test_an_unknown_device_is_refused(
    command: str, device: str, policy: str, capsys: Capture, tmp_path: Path
) -> None:
    arguments = ("--policy", policy, "--device", device, "--output", tmp_path / "run")
    refused(capsys, device, command, *arguments)
    assert not (tmp_path / "run").exists()


def test_a_question_too_long_for_the_policy_is_refused(policy: str, capsys: Capture) -> None:
    arguments = ("--policy", policy, "--max-new-tokens", 5000)
    refused(capsys, "shorten one of them", "rollout", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--output", "DIR"),
        ("evaluate", "--output", "DIR"),
        ("rollout", "--output", "DIR"),
        ("pretrain", "--output", "DIR"),
        ("notebooks", "DIR"),
        ("export", "POLICY", "DIR"),
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("what", ["folder", "file"])
@pytest.mark.usefixtures("small", "notebooks")
def test_nothing_is_written_over(
    arguments: tuple[str, ...],
    what: str,
    policy: str,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_arguments: Any, **_settings: Any) -> None:
        raise AssertionError("loaded before the folder was looked at")

    for module in (i2b_lpo.model.policy, i2b_lpo.model.exporting):
        monkeypatch.setattr(module, "load_policy", refuse)
    place = tmp_path / "there"
    kept = place
    if what == "folder":
        place.mkdir()
        kept = place / "kept"
    kept.write_text("mine", encoding="utf-8")
    words = {"DIR": place, "POLICY": policy}
    policy_option = ("--policy", policy) if arguments[0] in ("evaluate", "rollout") else ()
    hint = "choose a new folder, or remove it first"
    refused(capsys, hint, *(words.get(a, a) for a in arguments), *policy_option)
    assert kept.read_text(encoding="utf-8") == "mine"
    if what == "folder":
        assert list(place.iterdir()) == [kept]


@pytest.mark.usefixtures("small")
def test_a_run_without_its_settings_is_no_run(tmp_path: Path, capsys: Capture) -> None:
    save_policy(tiny_policy(), tmp_path / "run" / "policy")
    refused(capsys, "run.toml", "export", tmp_path / "run", tmp_path / "card")
    assert not (tmp_path / "card").exists()


def test_a_package_without_notebooks_says_so(
    notebooks: Path, tmp_path: Path, capsys: Capture
) -> None:
    for file in (notebooks / "notebooks").iterdir():
        file.unlink()
    refused(capsys, "reinstall the package", "notebooks", tmp_path / "mine")


def test_a_run_that_breaks_down_says_so_in_one_line(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_arguments: Any) -> None:
        raise FloatingPointError("Step 3: loss: not every number is finite.")

    monkeypatch.setitem(commands.COMMANDS, "info", broken)
    assert run("info") in (1, 2)
    assert capsys.readouterr().err == "i2b-lpo info: Step 3: loss: not every number is finite.\n"


def test_an_error_of_many_lines_is_told_in_one(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_arguments: Any) -> None:
        raise ValueError("Can't read it.\n\n   Give another   file.\n")

    monkeypatch.setitem(commands.COMMANDS, "info", broken)
    refused(capsys, "i2b-lpo info: Can't read it. Give another file.", "info")


def test_a_programming_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_arguments: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setitem(commands.COMMANDS, "info", broken)
    with pytest.raises(TypeError):
        run("info")


def test_stopping_by_hand_is_no_mistake(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.COMMANDS, "info", stop)
    assert run("info") == 130
    assert capsys.readouterr().err.strip() == "i2b-lpo: stopped."


# --- help, and processes of their own -------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_exits_with_0(command: str, capsys: Capture) -> None:
    assert run(*command.split(), "--help") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"usage: i2b-lpo {command}".rstrip())
    assert shown.err == ""
    if not command:
        assert set(COMMANDS) == set(commands.COMMANDS)
        assert all(re.search(rf"(?m)^ +{name}\b", shown.out) for name in COMMANDS)


def test_the_version_is_the_packages(capsys: Capture) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == i2b_lpo.__version__


def alone(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": path} | variables,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


WITHOUT_TORCH = """
import sys
from pathlib import Path
import i2b_lpo
from i2b_lpo.cli import main
folder = Path(sys.argv[1])
i2b_lpo.__file__ = str(folder / "i2b_lpo" / "__init__.py")
for words in ("--help", "train --help", "train --steps x", "info --preset tiny",
              "train --output x --preset nope", f"notebooks {folder / 'mine'}"):
    try:
        code = main(words.split())
    except SystemExit as end:
        code = end.code
    print("code", code)
heavy = {"torch", "transformers", "accelerate", "numpy", "plotly", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_and_notebooks_answer_without_torch(notebooks: Path) -> None:
    done = alone("-c", WITHOUT_TORCH, str(notebooks))
    assert done.returncode == 0, done.stderr
    codes = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("code ")]
    assert codes == ["0", "0", "2", "0", "2", "0"]
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.slow
def test_the_module_runs_and_a_hub_name_out_of_reach_is_one_line(tmp_path: Path) -> None:
    empty = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = alone("-m", "i2b_lpo.cli", "rollout", "--policy", "no-such-owner/no-such-model", **empty)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "no-such-owner/no-such-model" in done.stderr
    assert "tiny-base" in done.stderr


@pytest.mark.slow
def test_rollout_can_be_written_to_a_file_that_knows_no_greek(policy: str) -> None:
    arguments = ("--policy", policy, "--max-new-tokens", "3", "--question", "What is 2*3?")
    done = alone("-m", "i2b_lpo.cli", "rollout", *arguments, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
