"""Settings: what a method owns, files and `--set`, and that a run's folder repeats the run."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
import shutil
import tomllib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from test_cli import lines, refused, run
from tiny import tiny_policy
from transformers import AutoModelForCausalLM
from verifying import POSIX

import i2b_lpo
from i2b_lpo.cli import _parser
from i2b_lpo.commands import BASES
from i2b_lpo.config import (
    PRESETS,
    BranchConfig,
    EvaluateConfig,
    GRPOConfig,
    IBConfig,
    LatentConfig,
    PretrainConfig,
    RolloutConfig,
    RunConfig,
    TourConfig,
    compose,
    flat,
    names,
    preset,
    read_run,
    write_run,
)
from i2b_lpo.method.methods import METHODS, with_method
from i2b_lpo.tasks.benchmarks import BENCHMARKS
from i2b_lpo.tasks.domains import DOMAINS
from i2b_lpo.tour import run_of
from i2b_lpo.training.loop import train

Capture = pytest.CaptureFixture[str]
PACKAGE = Path(i2b_lpo.__file__).parent
HF = "hf_" + "a1B2" * 9


# --- what a method owns ---------------------------------------------------------------------------

OWN = {
    "preset": RunConfig(),
    "7b": preset("qwen2.5-7b"),
    "of the user": replace(
        preset("tiny"), seed=3, rollout=RolloutConfig(rollouts=16, top_p=0.9), data="x",
        grpo=GRPOConfig(variant="dapo", alpha=0.3, updates=2, micro_tokens=99),
    ),
    "branches of the user": RunConfig(
        rollout=RolloutConfig(rollouts=4),
        branch=BranchConfig(branches=1, rule="argmax", latents="mine"),
        ib=IBConfig(keep=1, cost_weight=0.1),
        grpo=GRPOConfig(train_psa=True, alpha=0.1),
    ),
    "two rounds": RunConfig(
        rollout=RolloutConfig(rollouts=4), branch=BranchConfig(branches=2, rounds=2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_the_last_method_alone_counts(name: str) -> None:
    base = OWN[name]
    alone = {method: with_method(base, method) for method in METHODS}
    for first, last in itertools.product(METHODS, METHODS):
        assert with_method(with_method(base, first), last) == alone[last], (first, last)
    assert {made.group for made in alone.values()} == {base.group}
    grpo, whole = (flat(alone[method]) for method in METHODS)
    owned = {"method", "rollout.rollouts", "grpo.alpha", "grpo.train_psa"}
    owned |= {k for k in grpo if k.startswith(("branch.", "ib."))}
    kept = {k: v for k, v in flat(base).items() if k not in owned}
    for made in (grpo, whole):
        assert {k: v for k, v in made.items() if k not in owned} == kept
    defaults = flat(RunConfig())
    for key in owned - {"rollout.rollouts"}:
        assert grpo[key] == defaults[key], f"not GRPO: {key}"
    assert grpo["rollout.rollouts"] == base.group


def test_a_presets_whole_method_goes_back_to_the_preset() -> None:
    for base in PRESETS.values():
        assert with_method(with_method(base, "i2b-lpo"), "grpo") == base


def test_the_groups_size_counts_every_round() -> None:
    sizes = {(1, 1): 8, (3, 1): 16, (2, 2): 28, (0, 3): 4}
    for (branches, rounds), size in sizes.items():
        branch = BranchConfig(branches=branches, rounds=rounds)
        assert RunConfig(rollout=RolloutConfig(rollouts=4), branch=branch).group == size


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", BASES)
def test_every_commands_settings_come_back_from_their_file(command: str, tmp_path: Path) -> None:
    base = BASES[command]
    write_run(base, tmp_path, command)
    data = tomllib.loads((tmp_path / "run.toml").read_text("utf-8"))
    assert set(names(type(base))) == set(flat(base))
    for name, value in flat(base).items():
        *section, key = name.split(".")
        assert (data[section[0]] if section else data)[key] == value, name
    assert compose(base, file=tmp_path / "run.toml") == base


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=60, deadline=None)
@given(
    policy=TEXT, task=TEXT, seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 10**30),
    rate=st.floats(0, 1, exclude_min=True, exclude_max=True), norm=st.floats(1e-300, None),
    alpha=st.floats(allow_nan=False, allow_infinity=False), flag=st.booleans(),
)  # fmt: skip
@pytest.mark.slow
def test_any_settings_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, policy: str, task: str, seed: int, steps: int,
    rate: float, norm: float, alpha: float, flag: bool,
) -> None:  # fmt: skip
    config = RunConfig(policy=policy, task=task, seed=seed, steps=steps, shard=flag)
    config = replace(
        config,
        grpo=GRPOConfig(alpha=alpha),
        optimizer=replace(config.optimizer, learning_rate=rate, max_grad_norm=norm),
    )
    folder = tmp_path_factory.mktemp("any")
    write_run(config, folder, "train")
    assert read_run(folder) == config


def test_no_decay_is_inf_in_a_file(tmp_path: Path) -> None:
    config = LatentConfig(decay=None)
    write_run(config, tmp_path, "train-latents")
    assert "\ndecay = inf\n" in (tmp_path / "run.toml").read_text("utf-8")
    assert compose(LatentConfig(), file=tmp_path / "run.toml") == config
    assert compose(LatentConfig(), sets=["decay=inf"]).decay is None
    assert compose(config, sets=["decay=0.25"]).decay == 0.25


def test_what_is_given_later_counts(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    text = "steps = 5\nseed = 7\nquestions = 3\n[grpo]\nmicro_tokens = 100\n[rollout]\nbatch = 9\n"
    file.write_text(text, encoding="utf-8")
    base = preset("qwen2.5-0.5b")
    found = compose(base, file=file, named={"seed": 8, "questions": 4}, sets=["questions=5"])
    assert (found.steps, found.seed, found.questions) == (5, 8, 5), "file < option < --set"
    assert (found.grpo.micro_tokens, found.rollout.batch) == (100, 9)
    rest = {k: v for k, v in flat(found).items() if flat(base)[k] != v}
    assert set(rest) == {"steps", "seed", "questions", "grpo.micro_tokens", "rollout.batch"}
    twice = compose(base, sets=["steps=1", "rollout.top_p = 0.5", "steps=2"])
    assert (twice.steps, twice.rollout.top_p) == (2, 0.5)


def test_a_method_beats_the_file_and_set_beats_the_method(tmp_path: Path) -> None:
    write_run(replace(RunConfig(), steps=4), tmp_path, "train")
    with pytest.warns(UserWarning, match=r"--method i2b-lpo sets anew .*branch\.branches 0 → 3"):
        found = compose(
            RunConfig(),
            file=tmp_path / "run.toml",
            method="i2b-lpo",
            with_method=with_method,
            sets=["ib.keep=1"],
            named={"branch.latents": "mine"},
        )
    expected = with_method(replace(RunConfig(), steps=4), "i2b-lpo")
    expected = replace(expected, ib=IBConfig(keep=1))
    assert found == replace(expected, branch=replace(expected.branch, latents="mine"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing of the file was lost
        compose(RunConfig(), file=tmp_path / "run.toml", method="grpo", with_method=with_method)


def test_values_are_changed_together() -> None:
    ours = with_method(RunConfig(), "i2b-lpo")
    found = compose(ours, sets=["ib.estimator=none", "ib.filter=none"])  # alone, the first is wrong
    assert found.ib.estimator == "none"


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "sets", "hint"),
    [
        ("train", ["grpo.micro_token=200"], "no setting 'grpo.micro_token'; did you mean grpo.mi"),
        ("train", ["micro_tokens=200"], "no setting 'micro_tokens'; did you mean grpo.micro_"),
        ("train", ["rollouts=2"], "did you mean rollout.rollouts"),
        ("train", ["method=i2b-lpo"], "give --method i2b-lpo instead, which also sets what"),
        ("train", ["zzz=2"], "no setting 'zzz'; choose one of method, policy, task, data, device"),
        ("train", ["grpo=2"], "grpo is a section; name one of grpo.variant, grpo.alpha"),
        ("train", ["steps"], "write it like --set steps=VALUE"),
        ("train", ["=5"], "no setting ''"),
        ("train", ["steps=many"], "steps is 'many'; give a whole number"),
        ("train", ["steps=2.5"], "steps is '2.5'; give a whole number"),
        ("train", ["steps="], "steps is ''; give a whole number"),
        ("train", ["steps=0"], "steps is 0; give at least 1"),
        ("train", ["steps=" + "9" * 5000], "give a whole number"),
        ("train", ["shard=yes"], "shard is 'yes'; give true or false"),
        ("train", ["rollout.temperature=hot"], "rollout.temperature is 'hot'; give a number"),
        ("train", ["rollout.temperature=nan"], "rollout.temperature is 'nan'; give a number"),
        ("train", ["rollout.temperature=inf"], "rollout.temperature is inf; give 0 (greedy) or m"),
        ("train", ["rollout.temperature=0"], "rollout.temperature must be above 0; training needs"),
        ("train", ["rollout.top_p=2"], "rollout.top_p is 2.0; give a number above 0 and up to 1"),
        ("train", ["rollout.batch=0"], "rollout.batch is 0; give at least 1"),
        ("train", ["grpo.alpha=inf"], "grpo.alpha is inf; give a finite number"),
        ("train", ["optimizer.warmup_steps=-1"], "optimizer.warmup_steps is -1; give at least 0"),
        ("train", ["branch.rule=argmax"], "branch.rule changes nothing here: there are no branch"),
        ("train", ["ib.keep=1"], "ib.keep changes nothing here: nothing is scored"),
        ("train", ["grpo.train_psa=true"], "grpo.train_psa has nothing to train"),
        ("train", ["evaluation.questions=3"], "there is no setting 'evaluation.questions'"),
        ("train", ["branch.branches=1", "branch.rule=magic"], "Unknown branch.rule 'magic'"),
        ("train", ["branch.branches=1", "branch.fusion=magic"], "Unknown branch.fusion 'magic'"),
        ("train", ["branch.branches=1", "branch.sampler=magic"], "Unknown branch.sampler 'magic'"),
        ("train", ["ib.estimator=magic"], "Unknown ib.estimator 'magic'; choose one of answer_"),
        ("train", ["ib.estimator=answer_information", "ib.filter=x"], "Unknown ib.filter 'x'; cho"),
        ("train", ["grpo.variant=magic"], "Unknown grpo.variant 'magic'; choose one of grpo, "),
        ("train", ["grpo.logprob=both"], "grpo.logprob is 'both'; choose latent or plain"),
        ("train", ["task=magic"], "Unknown task 'magic'; choose one of shop, product"),
        ("train", ["policy=./magic"], "give an existing folder, a hub name, or a bundled policy"),
        ("train", ["device=magic"], "This machine has no device 'magic'"),
        ("train-latents", ["rule=magic"], "Unknown rule 'magic'; choose one of top_fraction"),
        ("train-latents", ["fusion=none"], "Unknown fusion 'none'; choose one of psa"),
        ("train-latents", ["objective=x"], "objective is 'x'; choose steer or selector"),
        ("train-latents", ["gamma=2"], "gamma is 2.0; give a number from 0 to 1"),
        ("train-latents", ["decay=0"], "decay is 0.0; give a positive number of tokens"),
        ("train-latents", ["temperature=0"], "temperature is 0.0; give a positive number"),
        ("train-latents", ["task=magic"], "Unknown task 'magic'"),
        ("evaluate", ["split=magic"], "Unknown split 'magic'; choose one of train, validation"),
        ("evaluate", ["branch.branches=2"], "there is no setting 'branch.branches'"),
        ("evaluate", ["rollout.rollouts=0"], "rollout.rollouts is 0; give at least 1"),
        ("rollout", ["branch.fusion=input"], "branch.fusion changes nothing here: there are no br"),
        ("rollout", ["branch.branches=1", "branch.rule=magic"], "Unknown branch.rule 'magic'"),
        ("rollout", ["branch.branches=1", "branch.latents=no"], "There are no latents for tiny"),
        ("tour", ["grpo.variant=magic"], "Unknown grpo.variant 'magic'"),
        ("tour", ["grpo.alpha=0.1"], "grpo.alpha is 0.1; the tour's methods set it, leave it out"),
        ("tour", ["grpo.train_psa=true"], "grpo.train_psa has nothing to train"),
        ("tour", ["rollout.rollouts=6"], "I²B-LPO needs a multiple of 4"),
        ("tour", ["checkpoint.every=5"], "there is no setting 'checkpoint.every'"),
        ("tour", ["policy=tiny-grpo", "latents=nowhere"], "There are no latents for tiny-grpo"),
        ("pretrain", ["tokens=7"], "tokens is 7; give 256 to 16384"),
        ("pretrain", ["habit_from=2"], "habit_from is 2.0; give a share from 0 to 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:40],
)  # fmt: skip
def test_a_wrong_setting_is_one_line_before_any_file_is_written(
    command: str, sets: list[str], hint: str, capsys: Capture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = [word for text in sets for word in ("--set", text)]
    refused(capsys, hint, command, *words, "--output", "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("steps = 'many'", "mine.toml: steps is 'many'; give a whole number"),
        ("steps = true", "mine.toml: steps is 'True'; give a whole number"),
        ("steps = 5.0", "mine.toml: steps is '5.0'; give a whole number"),
        ("shard = 1", "mine.toml: shard is '1'; give true or false"),
        ("task = 5", "mine.toml: task is '5'; give text"),
        ("task = ['shop']", "mine.toml: task is"),
        ("grpo = 5", "mine.toml: grpo is a section; name one of"),
        ("[steps]\nx = 5", "mine.toml: steps is"),
        ("[grpo]\nmicro_token = 5", "mine.toml: there is no setting 'grpo.micro_token'; did you"),
        ("[gpro]\nmicro_tokens = 5", "mine.toml: there is no setting 'gpro'; did you mean"),
        ("steps = 0", "mine.toml: steps is 0; give at least 1"),
        ("[rollout]\ntemperature = nan", "mine.toml: rollout.temperature is 'nan'; give a number"),
        ("[grpo]\nalpha = inf", "mine.toml: grpo.alpha is inf; give a finite number"),
        ("steps = ", "mine.toml is no TOML"),
        ("steps = 5\nsteps = 6", "mine.toml is no TOML"),
        ("x = " + "[" * 50_000, "mine.toml is no TOML"),
        ("\x00", "mine.toml is no TOML"),
        (f"task = 'https://me:pass@host/{HF}'\nsteps = 'a'", "mine.toml: steps is 'a'"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(
    text: str, hint: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(text, encoding="utf-8")
    refused(capsys, hint, "train", "--config", "mine.toml", "--output", "x")
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("nowhere.toml", "Can't read nowhere.toml (No such file or directory)"),
        (".", "is a folder; give the file of settings in it, run.toml"),
        ("config.json", "config.json is JSON; settings are read from TOML"),
        ("latin.toml", "latin.toml is no TOML"),
    ],
)
def test_what_is_no_file_of_settings_is_named(
    file: str, hint: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text("{}", encoding="utf-8")
    Path("latin.toml").write_bytes(b"task = '\xe9'")
    refused(capsys, hint, "train", "--config", file, "--output", "x")


@pytest.mark.parametrize("command", BASES)
@pytest.mark.parametrize("seed", [2**32, 2**64, 10**40, -1])
def test_a_seed_beyond_the_range_is_refused(
    command: str, seed: int, capsys: Capture, tmp_path: Path
) -> None:
    hint = f"seed is {seed}; give a whole number from 0 to 4294967295."
    refused(capsys, hint, command, "--seed", seed, "--output", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_largest_seed_trains(home: Path) -> None:
    config = RunConfig(
        seed=2**32 - 1, steps=1, questions=1, rollout=RolloutConfig(rollouts=2, max_new_tokens=4)
    )
    policy = tiny_policy()
    from test_train import FakeTask

    assert len(train(config, policy, FakeTask(), progress=False)) == 1
    # train_step makes a generator's seed of it, for the last of many steps and processes.
    torch.Generator().manual_seed((config.seed * 1_000_003 + 10**6) * 4096 + 4095)


PYTHON = [
    replace(RunConfig(), branch=BranchConfig(branches=1, rule="magic")),
    replace(RunConfig(), branch=BranchConfig(branches=1, fusion="magic")),
    replace(RunConfig(), branch=BranchConfig(branches=1, fusion="none", sampler="magic")),
    replace(RunConfig(), ib=IBConfig(estimator="magic")),
    replace(RunConfig(), ib=IBConfig(filter="magic")),
    replace(RunConfig(), grpo=GRPOConfig(variant="magic")),
]


@pytest.mark.parametrize("config", PYTHON)
def test_python_too_refuses_an_unknown_name_before_a_file_is_written(
    config: RunConfig, tmp_path: Path
) -> None:
    from test_train import FakeTask

    with pytest.raises(ValueError, match=r"Unknown \w+\.\w+ 'magic'; choose one of \w+"):
        train(config, tiny_policy(), FakeTask(), output=tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()


# --- a run's folder repeats the run ---------------------------------------------------------------


def same_files(one: Path, other: Path) -> None:
    for name in ("run.toml", "metrics.jsonl"):
        if (one / name).exists():
            texts = [
                re.sub(r'"\w+_seconds": [0-9.]+', "", (f / name).read_text("utf-8"))
                for f in (one, other)
            ]
            assert texts[0] == texts[1], name
    first, second = (
        AutoModelForCausalLM.from_pretrained(folder / "policy").state_dict()
        for folder in (one, other)
    )
    assert all(first[name].equal(weight) for name, weight in second.items())


def test_a_run_is_repeated_from_its_file(home: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = [{"question": f"What is {i}+1?", "answer": str(i + 1)} for i in range(30)]
    for split in ("train", "test"):
        text = "\n".join(json.dumps({**r, "answer": f"#### {r['answer']}"}) for r in rows)
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    sets = (
        "questions=2", "rollout.max_new_tokens=6", "rollout.rollouts=2", "grpo.variant=dapo",
        "branch.branches=2", "branch.fraction=0.5", "grpo.micro_tokens=200", "rollout.top_p=0.95",
        "rollout.temperature=0.9", "optimizer.learning_rate=1e-3", "ib.keep=1",
    )  # fmt: skip
    words = [word for text in sets for word in ("--set", text)]
    named = ("--policy", home / "policy", "--latents", home / "latents", "--steps", 2, "--seed", 9)
    data = ("--task", "gsm8k", "--data", tmp_path)
    assert run("train", "--method", "i2b-lpo", *named, *data, *words, "--output", first) == 0
    assert run("train", "--config", first / "run.toml", "--output", second) == 0
    same_files(first, second)
    assert not (first / "config.json").exists()
    assert (first / "run.toml").read_text("utf-8").startswith("# Repeat it: i2b-lpo train --config")
    with_seed = ("--config", first / "run.toml", "--seed", 10)
    assert run("train", *with_seed, "--output", other) == 0
    assert lines(other / "metrics.jsonl")[0]["reward"] is not None
    with pytest.raises(AssertionError):
        same_files(first, other)


def test_rollouts_and_evaluations_are_repeated_from_their_files(
    home: Path, tmp_path: Path, capsys: Capture
) -> None:
    common = ("--policy", home / "policy", "--seed", 4, "--top-p", 0.9, "--max-new-tokens", 6)
    latents = ("--branches", 2, "--set", f"branch.latents={home / 'latents'}")
    commands = {"evaluate": ("--questions", 3, "--samples", 2), "rollout": latents}
    for command, words in commands.items():
        first, second = tmp_path / command, tmp_path / f"{command} again"
        assert run(command, *common, *words, "--output", first) == 0
        shown = capsys.readouterr().out
        assert run(command, "--config", first / "run.toml", "--output", second) == 0
        assert capsys.readouterr().out == shown
        for file in first.iterdir():
            assert file.read_bytes() == (second / file.name).read_bytes(), file.name


@pytest.mark.slow
def test_latents_are_repeated_from_their_file(tmp_path: Path, capsys: Capture) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    sets = ("selector_steps=3", "batch=8", "d_z=4", "decay=inf", "max_new_tokens=60")
    words = [word for text in sets for word in ("--set", text)]
    small = ("--questions", 4, "--steps", 2, *words)
    assert run("train-latents", *small, "--output", first) == 0
    assert run("train-latents", "--config", first / "run.toml", "--output", second) == 0
    assert json.loads((first / "steering.json").read_text())["strength"]["decay"] is None
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


@pytest.mark.slow
@pytest.mark.parametrize("task", ["shop", pytest.param("functions", marks=POSIX)])
def test_a_pretraining_writes_its_file(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    asked = []

    def stub(_policy: Any, task: Any, *_: Any, **__: Any) -> tuple[str, Sequence[Any]]:
        asked.append(task.name)
        return "", []

    monkeypatch.setattr("i2b_lpo.evaluation.measuring.evaluate", stub)
    first, second = tmp_path / "first", tmp_path / "second"
    words = ("--task", task, "--steps", 2, "--set", "tokens=400")
    assert run("pretrain", *words, "--output", first) == 0
    assert run("pretrain", "--config", first / "run.toml", "--output", second) == 0
    one, other = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (first, second))
    assert all(one[name].equal(weight) for name, weight in other.items())
    assert asked == [task, task]
    assert PretrainConfig(task="functions").idle() and not PretrainConfig().idle()
    assert run("pretrain", *words, "--set", "shop_share=0.5", "--output", tmp_path / "third") == (
        2 if task == "functions" else 0
    )
    if task == "functions":
        told = "shop_share changes nothing here: it is of shop, not functions; leave it out"
        assert told in capsys.readouterr().err


def test_info_writes_a_file_that_trains(home: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ("--preset", "qwen2.5-7b", "--method", "i2b-lpo", "--set", "rollout.batch=7")
    assert run("info", *words, "--toml") == 0
    (tmp_path / "mine.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    expected = with_method(preset("qwen2.5-7b"), "i2b-lpo")
    expected = replace(expected, rollout=replace(expected.rollout, batch=7))
    assert compose(RunConfig(), file=tmp_path / "mine.toml") == expected


@pytest.mark.parametrize(
    ("file", "text", "version"),
    [
        ("config.json", "{}", "0.1"),
        ("run.toml", "steps = 3\n[rollout]\nsamples = 4\n", "0.1"),
        ("run.toml", 'version = "0.1.7"\nsteps = 3\n', "0.1.7"),
        ("run.toml", 'version = "99.0.0"\nsteps = 3\n', "99.0.0"),
    ],
)
def test_a_run_of_another_version_is_refused(
    file: str, text: str, version: str, home: Path, tmp_path: Path, capsys: Capture
) -> None:
    old = tmp_path / "old"
    shutil.copytree(home / "policy", old / "policy")
    (old / file).write_text(text, encoding="utf-8")
    (old / "metrics.jsonl").write_text("", encoding="utf-8")
    before = sorted(old.rglob("*"))
    hint = f"{old} holds a run of version {version} of i2b_lpo, whose settings have other"
    small = ("--policy", home / "policy", "--steps", 1)
    refused(capsys, hint, "train", *small, "--resume", "--output", old)
    refused(capsys, hint, "export", old, tmp_path / "card")
    shutil.copytree(old, tmp_path / "tour" / "grpo")
    hint = f"holds a run of version {version} of i2b_lpo"
    refused(capsys, hint, "tour", "--output", tmp_path / "tour")
    assert sorted(old.rglob("*")) == before and not (tmp_path / "card").exists()


def test_a_run_says_its_version_and_its_method(tmp_path: Path) -> None:
    run = with_method(RunConfig(), "i2b-lpo")
    write_run(run, tmp_path, "train")
    data = tomllib.loads((tmp_path / "run.toml").read_text("utf-8"))
    assert (data["version"], data["method"]) == (i2b_lpo.__version__, "i2b-lpo")
    (tmp_path / "run.toml").write_text(
        (tmp_path / "run.toml").read_text("utf-8").replace(i2b_lpo.__version__, "0.2.99")
    )
    assert read_run(tmp_path) == run  # another patch of the same version


def test_a_file_that_names_a_method_means_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('method = "i2b-lpo"\n[ib]\nkeep = 1\n', encoding="utf-8")
    found = compose(RunConfig(), file=tmp_path / "mine.toml", with_method=with_method)
    whole = with_method(RunConfig(), "i2b-lpo")
    assert found == replace(whole, ib=replace(whole.ib, keep=1))


# --- secrets --------------------------------------------------------------------------------------


def test_a_secret_is_neither_written_nor_taken_for_a_name(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(task=f"https://me:hunter2@host/a.jsonl?token={HF}")
    write_run(config, tmp_path, "train")
    text = (tmp_path / "run.toml").read_text("utf-8")
    assert "hunter2" not in text and HF not in text
    assert 'task = "https://[redacted]@host/a.jsonl?token=[redacted]"' in text
    file = ("--config", tmp_path / "run.toml")
    hint = "a secret isn't written down; give it again by --set task=…"
    refused(capsys, hint, "train", *file, "--output", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert compose(RunConfig(), file=tmp_path / "run.toml", named={"task": "shop"}).task == "shop"
    (tmp_path / "bad.toml").write_text(f"steps = '{HF}'", encoding="utf-8")
    assert run("train", "--config", tmp_path / "bad.toml", "--output", tmp_path / "x") == 2
    assert run("train", "--set", f"steps={HF}", "--output", tmp_path / "x") == 2
    assert run("train", "--set", f"{HF}", "--output", tmp_path / "x") == 2
    assert run("train", "--set", f"{HF}=5", "--output", tmp_path / "x") == 2
    said = capsys.readouterr()
    assert HF not in said.out + said.err


# --- what a message tells to set ------------------------------------------------------------------


def spoken() -> list[tuple[str, str]]:
    """Every text in the package that isn't documentation, with a … in place of each value."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text("utf-8"))
        documentation = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        inner = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node) if part is not node
        }  # fmt: skip
        for node in ast.walk(tree):
            if id(node) in documentation | inner:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append((file.name, node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = (str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values)
                found.append((file.name, "".join(parts)))
    return found


@pytest.mark.slow
def test_every_setting_that_a_message_names_can_be_set() -> None:
    known = {name for base in BASES.values() for name in names(type(base))}
    sections = {name.partition(".")[0] for name in known if "." in name}
    dotted = re.compile(rf"(?<![\w.])(?:{'|'.join(sections)})\.[a-z_]+(?![\w.(])")
    asked = re.compile(r"--set ([^\s=]+)=")
    told = [(f, hit) for f, text in spoken() for hit in dotted.findall(text) if " " in text]
    assert len(told) > 25 and [(f, name) for f, name in told if name not in known] == []
    offered = [(f, hit) for f, text in spoken() for hit in asked.findall(text)]
    offered = [(f, name) for f, name in offered if name not in ("NAME", "…")]
    assert len(offered) > 6 and [(f, name) for f, name in offered if name not in known] == []


def test_no_message_offers_an_argument_of_python_alone_where_there_is_an_option() -> None:
    options = {
        word.removeprefix("--").replace("-", "_")
        for command in _parser()._subparsers._group_actions[0].choices.values()  # type: ignore[union-attr]
        for action in command._actions
        for word in action.option_strings
    }
    options |= {name.rpartition(".")[2] for base in BASES.values() for name in names(type(base))}
    options |= {"path"}  # --data
    # These names mean something else where they stand: a call in Python, a figure's legend.
    given = re.compile(r"\b([a-z_]+)=(?:True|False|[.,;]|$)")
    bad = [
        (file, text)
        for file, text in spoken()
        if " " in text
        for name in given.findall(text)
        if name in options and "--" not in text
    ]
    assert bad == []


def test_the_missing_latents_command_makes_the_latents_of_this_run(
    home: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my policy"
    shutil.copytree(home / "policy", folder)
    for split in ("train", "test"):
        rows = [{"question": f"{i}+1?", "answer": f"#### {1 + i}"} for i in range(12)]
        Path(f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ("--policy", folder, "--task", "gsm8k", "--data", ".", "--preset", "qwen2.5-0.5b")
    short = ("--set", "rollout.max_new_tokens=9", "--output", "x")
    assert run("train", "--method", "i2b-lpo", *words, *short) == 2
    said = capsys.readouterr().err
    command = shlex.split(said.partition("make them with: ")[2])
    assert command[:2] == ["i2b-lpo", "train-latents"]
    arguments = _parser().parse_args(command[1:])
    from i2b_lpo.commands import _settings

    made = _settings(arguments, LatentConfig())
    expected = LatentConfig(
        policy=str(folder), task="gsm8k", data=".", temperature=0.9, max_new_tokens=9
    )
    assert made == expected
    assert not Path("x").exists()


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", BASES)
def test_help_tells_every_setting_and_its_default(command: str, capsys: Capture) -> None:
    assert run(command, "--help") == 0
    shown = capsys.readouterr().out
    listed = dict(
        word.split("=", 1) for word in shown.rpartition("named options, --set\n")[2].split()
    )
    assert listed == {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in flat(BASES[command]).items()
    }


def option_help(command: str, option: str, capsys: Capture) -> str:
    assert run(command, "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    found = re.search(rf" {option} [A-Z]+ (.*?)(?= --| settings of )", shown)
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("train-latents", "--questions", LatentConfig().questions),
        ("train-latents", "--steps", LatentConfig().steps),
        ("evaluate", "--questions", EvaluateConfig().questions),
        ("evaluate", "--samples", EvaluateConfig().rollout.rollouts),
        ("evaluate", "--max-new-tokens", EvaluateConfig().rollout.max_new_tokens),
        ("tour", "--steps", TourConfig().steps),
        ("rollout", "--samples", 1),
        ("pretrain", "--steps", 1200),
    ],
)
def test_an_options_help_tells_its_default(
    command: str, option: str, value: int, capsys: Capture
) -> None:
    assert option_help(command, option, capsys).endswith(f"({value})")


def test_help_lists_the_tasks_there_are(capsys: Capture) -> None:
    listed = option_help("train", "--task", capsys)
    own = [task for domain in DOMAINS.values() for task in domain.tasks]
    assert listed.startswith(f"{', '.join([*own, *BENCHMARKS])}, or a .jsonl file")


def _tour_defaults() -> RunConfig:
    return run_of(TourConfig(), "grpo")


def test_the_tour_starts_from_the_preset() -> None:
    tiny = preset("tiny")
    grpo = _tour_defaults()
    assert replace(grpo, checkpoint=tiny.checkpoint) == with_method(tiny, "grpo")
    ours = run_of(TourConfig(latents="mine"), "i2b-lpo")
    expected = with_method(tiny, "i2b-lpo")
    branch = replace(expected.branch, latents="mine")
    assert replace(ours, checkpoint=tiny.checkpoint) == replace(expected, branch=branch)


def test_help_tells_the_minutes_that_were_measured(capsys: Capture) -> None:
    readme = (PACKAGE.parent / "README.md").read_text("utf-8")
    assert run("--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for command, measured in {
        "tour": r"`make tour` .*\| ([0-9]+) min",
        "train-latents": r"i2b-lpo train-latents .*# ([0-9]+) minutes",
        "pretrain": r"i2b-lpo pretrain .*, ([0-9]+) minutes:",
    }.items():
        said, found = (
            re.search(rf" {command} [^()]*\(([0-9]+) min", shown),
            re.search(measured, readme),
        )
        assert said and found and said[1] == found[1], command
