"""A run that is killed anywhere goes on as if it had never stopped, and refuses to be another."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import FakeTask
from tiny import tiny_policy

import i2b_lpo.training.checkpoint
import i2b_lpo.training.learner
import i2b_lpo.training.loop
import i2b_lpo.training.step
import i2b_lpo.training.updating
from i2b_lpo.config import (
    NO_IB,
    BranchConfig,
    CheckpointConfig,
    GRPOConfig,
    IBConfig,
    OptimizerConfig,
    RolloutConfig,
    RunConfig,
    read_run,
)
from i2b_lpo.infra.signals import Interrupted
from i2b_lpo.method.psa import Strength
from i2b_lpo.model.policy import Policy, load_policy
from i2b_lpo.model.steering import Steering, load_steering, new_steering
from i2b_lpo.trace import Question
from i2b_lpo.training.checkpoint import newest_checkpoint, restore, save_checkpoint
from i2b_lpo.training.learner import Learner, build_learner
from i2b_lpo.training.loop import train
from i2b_lpo.training.step import StepRecord

pytestmark = pytest.mark.slow

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

WHOLE = RunConfig(
    steps=4,
    questions=2,
    rollout=RolloutConfig(rollouts=2, max_new_tokens=8, batch=12),
    branch=BranchConfig(branches=2, fraction=0.5),
    ib=IBConfig(keep=1),
    grpo=GRPOConfig(micro_tokens=100, alpha=0.01),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    checkpoint=CheckpointConfig(every=2, keep=2),
)
GRPO = replace(
    WHOLE, rollout=RolloutConfig(rollouts=4, max_new_tokens=8), branch=BranchConfig(), ib=NO_IB
)
RUNS = {
    "grpo": GRPO,
    "two updates a step": replace(GRPO, grpo=GRPOConfig(updates=2, variant="dapo")),
    "latent": WHOLE,
    "plain": replace(WHOLE, grpo=GRPOConfig(logprob="plain", micro_tokens=100)),
    "train_psa": replace(WHOLE, grpo=GRPOConfig(train_psa=True, micro_tokens=100)),
}


def by_text(question: Question, text: str) -> float:
    """A reward that draws random numbers, as a user's own may."""
    return float(zlib.crc32(text.encode()) % 2) + random.random() / 8


def setting(config: RunConfig) -> tuple[Policy, Steering | None]:
    policy = tiny_policy(attention_dropout=0.1)  # draws in the update
    if not config.branch.branches:
        return policy, None
    torch.manual_seed(5)
    steering = new_steering(policy, d_z=4)
    with torch.no_grad():
        for parameter in steering.fusion.parameters():
            parameter.mul_(20)  # so that z matters
    return policy, steering


def digest(record: StepRecord) -> list[str]:
    """Every number of a step: tokens, z, log-probs, rewards, scores, advantages, losses."""
    numbers = {k: v for k, v in record.metrics.items() if not k.endswith("_seconds")}
    traces = json.dumps([trace.to_json() for trace in record.traces])
    text = f"{traces}{record.advantages.tolist()}{numbers}"
    return [str(int(record.metrics["step"])), hashlib.sha256(text.encode()).hexdigest()]


def go(
    config: RunConfig, output: Path, log: Path, resume: bool = False, task: FakeTask | None = None
) -> None:
    """Train in `output`, adding each step's digest to `log`, then those of weights and moments."""

    def write(*words: str) -> None:
        with log.open("a") as file:
            file.write(" ".join(words) + "\n")

    learners: list[Learner] = []

    def note(learner: Learner, record: StepRecord) -> None:
        write(*digest(record))
        learners[:] = [learner]

    policy, steering = setting(config)
    train(
        config, policy, task or FakeTask(), steering=steering, reward=by_text, output=output,
        resume=resume, on_step=note, progress=False,
    )  # fmt: skip
    for learner in learners:
        state = [learner.scorer.state_dict(), learner.optimizer.state_dict()]
        found = hashlib.sha256(
            json.dumps(state, default=lambda t: t.tolist(), sort_keys=True).encode()
        )
        write("end", found.hexdigest())


def steps(log: Path) -> dict[str, set[str]]:
    """Step → every digest it had; one, however often the run was stopped."""
    found: dict[str, set[str]] = {}
    for line in log.read_text().splitlines():
        step, number = line.split()
        found.setdefault(step, set()).add(number)
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, set[str]]]:
    """The digests of a run that was never stopped."""
    known: dict[str, dict[str, set[str]]] = {}

    def of(name: str) -> dict[str, set[str]]:
        if name not in known:
            folder = tmp_path_factory.mktemp("whole")
            go(RUNS[name], folder / "run", folder / "log")
            known[name] = steps(folder / "log")
        return known[name]

    return of


@pytest.fixture(autouse=True)
def _one_thread(_torch_threads: None) -> None:
    """A fork has no other threads and would wait for them for ever; sums depend on their number."""
    torch.set_num_threads(1)


def killed(work: Callable[[], None]) -> int:
    """Do the work in a child process; returns the number of the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def kill_at(module: Any, name: str, call: int, before: bool = True) -> None:
    """From now on call `call` of module.name kills this process, before or after its work."""
    real, calls = getattr(module, name), [0]

    def watched(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **named)
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, watched)


PLACES: dict[str, tuple[Any, str, int, bool]] = {
    # the second or third step of a run that is saved every two steps
    "rollout": (i2b_lpo.rollout.branching, "sample", 2, False),
    "branching": (i2b_lpo.rollout.branching, "records", 3, True),
    "verification": (i2b_lpo.rollout.branching, "verified", 3, True),
    "scoring": (i2b_lpo.training.step, "score_traces", 3, False),
    "between micro-batches": (i2b_lpo.training.updating, "policy_loss", 12, True),
    "before the optimizer's step": (torch.optim.AdamW, "step", 3, True),
    "after the optimizer's step": (torch.optim.AdamW, "step", 3, False),
    "before the save": (i2b_lpo.training.loop, "save_checkpoint", 1, True),
    "in the save": (i2b_lpo.training.checkpoint, "save_file", 2, False),
    "in the second save": (i2b_lpo.training.checkpoint, "save_file", 4, False),
    "after the save": (i2b_lpo.training.loop, "save_checkpoint", 1, False),
    "before the policy is saved": (i2b_lpo.training.loop, "save_policy", 1, True),
}


@needs_fork
@pytest.mark.parametrize("place", PLACES)
def test_after_a_kill_anywhere_the_run_is_the_same(
    place: str, tmp_path: Path, reference: Callable[[str], dict[str, set[str]]]
) -> None:
    output, log = tmp_path / "run", tmp_path / "log"

    def die() -> None:
        kill_at(*PLACES[place])
        go(WHOLE, output, log)

    assert killed(die) == signal.SIGKILL, "the place was never reached"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no checkpoint yet
        go(WHOLE, output, log, resume=True)
    expected = reference("latent")
    if place != "before the policy is saved":  # no step was left to note the end
        assert steps(log) == expected
    assert steps(log).items() <= expected.items() or steps(log) == expected
    lines = (output / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]
    assert (output / "policy" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_run_goes_on_bit_for_bit(
    name: str, tmp_path: Path, reference: Callable[[str], dict[str, set[str]]]
) -> None:
    output, log = tmp_path / "run", tmp_path / "log"
    go(replace(RUNS[name], steps=2), output, log)
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))  # without its end
    go(RUNS[name], output, log, resume=True)
    assert steps(log) == reference(name)
    assert len(steps(log)) == 5


def test_a_step_leaves_the_global_generators_as_it_found_them(tmp_path: Path) -> None:
    random.seed(1), torch.manual_seed(1)
    before = random.getstate(), torch.get_rng_state().tolist()
    policy, _ = setting(GRPO)
    torch.manual_seed(1)
    train(replace(GRPO, steps=1), policy, FakeTask(), reward=by_text, progress=False)
    assert (random.getstate(), torch.get_rng_state().tolist()) == before


# --- the save itself ------------------------------------------------------------------------------


def learner_and_history(config: RunConfig = WHOLE, done: int = 1) -> tuple[Learner, list[Any]]:
    policy, steering = setting(config)
    learner = build_learner(policy, config, steering=steering)
    records = [
        i2b_lpo.training.step.train_step(learner, FakeTask(), i, reward=by_text)
        for i in range(done)
    ]
    return learner, [record.metrics for record in records]


def state_of(learner: Learner) -> str:
    state = [learner.scorer.state_dict(), learner.optimizer.state_dict()["state"]]
    return hashlib.sha256(
        json.dumps(state, default=lambda t: t.tolist(), sort_keys=True).encode()
    ).hexdigest()


@needs_fork
def test_killed_at_any_file_operation_of_the_save_the_old_or_the_new_one_is_whole(
    tmp_path: Path,
) -> None:
    learner, history = learner_and_history(replace(WHOLE, checkpoint=CheckpointConfig(keep=1)), 2)
    operations = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
    old = tmp_path / "old"
    save_checkpoint(learner, FakeTask(), old, history[:1])
    found, number, ended = [], 0, False
    while not ended:
        number += 1
        output = tmp_path / "run"
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(old, output)

        def die(output: Path = output, last: int = number) -> None:
            seen = [0]

            def hook(event: str, arguments: Any) -> None:
                if event in operations:
                    seen[0] += 1
                    if seen[0] == last:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            save_checkpoint(learner, FakeTask(), output, history)

        ended = killed(die) == 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what is half done is never taken for a checkpoint
            checkpoint = newest_checkpoint(output)
        assert checkpoint is not None
        found.append(checkpoint.step)
        # And the next save clears up.
        save_checkpoint(learner, FakeTask(), output, history)
        assert [p.name for p in (output / "checkpoints").iterdir()] == ["step-00000002"]
    assert number > 20
    assert found == sorted(found) and set(found) == {1, 2}


def test_a_checkpoint_gives_back_weights_moments_and_metrics(tmp_path: Path) -> None:
    learner, history = learner_and_history(done=2)
    save_checkpoint(learner, FakeTask(), tmp_path, history)
    expected = state_of(learner)
    other, _ = learner_and_history(done=1)
    assert state_of(other) != expected
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.step == 2
    assert restore(other, FakeTask(), checkpoint) == history
    assert state_of(other) == expected


def test_without_any_optimizer_step_there_are_no_moments(tmp_path: Path) -> None:
    learner, _ = learner_and_history(done=0)
    save_checkpoint(learner, FakeTask(), tmp_path, [{"step": 0.0}])
    other, _ = learner_and_history(done=1)
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    restore(other, FakeTask(), checkpoint)
    assert len(other.optimizer.state) == 0
    assert state_of(other) == state_of(learner)


def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, history = learner_and_history(done=2)
    save_checkpoint(learner, FakeTask(), tmp_path, history[:1])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = r"^Can't write the checkpoint of step 2 .*No space left.*older checkpoints are intact"
    with pytest.raises(OSError, match=message):
        save_checkpoint(learner, FakeTask(), tmp_path, history)
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


@needs_fork
def test_a_file_that_can_grow_no_further_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    import resource

    learner, history = learner_and_history(done=2)
    save_checkpoint(learner, FakeTask(), tmp_path, history[:1])

    def cramped() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
        with pytest.raises(OSError, match="Can't write the checkpoint of step 2"):
            save_checkpoint(learner, FakeTask(), tmp_path, history)

    assert killed(cramped) == 0
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1


def test_old_checkpoints_go_and_the_newest_stay(tmp_path: Path) -> None:
    config = replace(GRPO, steps=7, checkpoint=CheckpointConfig(every=2, keep=2))
    policy, _ = setting(config)
    train(config, policy, FakeTask(), reward=by_text, output=tmp_path, progress=False)
    there = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert there == ["step-00000006", "step-00000007"], "the last step is always saved"


def test_no_checkpoints_if_none_are_wanted(tmp_path: Path) -> None:
    config = replace(GRPO, steps=1, checkpoint=CheckpointConfig(every=0))
    policy, _ = setting(config)
    train(config, policy, FakeTask(), reward=by_text, output=tmp_path, progress=False)
    assert not (tmp_path / "checkpoints").exists()


# --- latents --------------------------------------------------------------------------------------


def test_a_fusion_that_was_trained_is_saved_as_latents_also_after_a_stop(tmp_path: Path) -> None:
    config = RUNS["train_psa"]
    policy, steering = setting(config)
    assert steering is not None
    steering = replace(steering, version=3, card={"kept": True})
    fresh = [p.clone() for p in steering.fusion.parameters()]
    train(
        config, policy, FakeTask(), steering=steering, reward=by_text, output=tmp_path / "whole",
        progress=False,
    )  # fmt: skip
    assert steering.version == 3, "until its run has ended, its branches are of this version"
    loaded = load_steering(load_policy(tmp_path / "whole" / "policy"), tmp_path / "whole/latents")
    assert (loaded.version, loaded.strength) == (4, steering.strength)
    assert loaded.card == {"kept": True, "train_psa_steps": 4}
    pairs = zip(loaded.fusion.parameters(), steering.fusion.parameters(), fresh, strict=True)
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in pairs)
    for a, b in zip(loaded.cvae.parameters(), steering.cvae.parameters(), strict=True):
        assert torch.equal(a, b)
    for stop, resume in ((True, False), (False, True)):
        policy, again = setting(config)
        assert again is not None
        train(
            config, policy, FakeTask(), steering=replace(again, version=3, card={"kept": True}),
            reward=by_text, output=tmp_path / "parted", resume=resume,
            stop=partial(bool, stop), progress=False,
        )  # fmt: skip
    for file in ("steering.json", "steering.safetensors"):
        parted, whole = (tmp_path / run / "latents" / file for run in ("parted", "whole"))
        assert parted.read_bytes() == whole.read_bytes()


def test_a_fusion_that_was_not_trained_is_not_saved_again(tmp_path: Path) -> None:
    policy, steering = setting(WHOLE)
    config = replace(WHOLE, steps=1)
    train(
        config, policy, FakeTask(), steering=steering, reward=by_text, output=tmp_path,
        progress=False,
    )  # fmt: skip
    assert not (tmp_path / "latents").exists()


# --- broken checkpoints ---------------------------------------------------------------------------


def _truncate(folder: Path) -> None:
    file = folder / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _flip(folder: Path) -> None:
    content = bytearray((folder / "optimizer.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "optimizer.safetensors").write_bytes(content)


def _swap(folder: Path) -> None:
    for name in ("weights.safetensors", "metrics.jsonl"):
        shutil.copy(folder.with_name("step-00000002") / name, folder / name)


def _rewrite(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "manifest.json").write_text(text)

    return change


BREAKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated weights": (_truncate, "weights.safetensors was cut off or changed"),
    "one bit of the moments": (_flip, "optimizer.safetensors was cut off or changed"),
    "files of another step": (_swap, "weights.safetensors was cut off or changed"),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), "no weights.safetensors"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "no manifest.json"),
    "an empty manifest": (_rewrite(""), "Expecting value"),
    "a manifest of something else": (_rewrite("{}"), "format"),
    "no object": (_rewrite("[]"), "list indices"),
    "a format to come": (_rewrite('{"format": 99}'), "format 99, this version reads 1"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    go(RUNS["latent"], folder, folder / "log")
    return folder


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_checkpoint_is_named_and_the_one_before_it_taken(
    name: str, tmp_path: Path, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    harm, message = BREAKS[name]
    harm(tmp_path / "run" / "checkpoints" / "step-00000004")
    with pytest.warns(UserWarning, match=f"step-00000004 is broken .*{message}.*; trying the one"):
        checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint is not None and checkpoint.step == 2
    with pytest.warns(UserWarning, match="is broken"):
        go(WHOLE, tmp_path / "run", tmp_path / "run" / "log", resume=True)
    assert all(len(found) == 1 for found in steps(tmp_path / "run" / "log").values())
    found = newest_checkpoint(tmp_path / "run")  # mended
    assert found is not None and found.step == 4


def test_if_all_are_broken_nothing_is_begun_in_silence(tmp_path: Path, finished: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        _truncate(folder)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    policy, steering = setting(WHOLE)
    with (
        pytest.warns(UserWarning, match="is broken"),
        pytest.raises(ValueError, match=r"No checkpoint in .* is whole .*start again in another"),
    ):
        train(WHOLE, policy, FakeTask(), steering=steering, output=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


# --- another run ----------------------------------------------------------------------------------


def refused(
    finished: Path, message: str, config: RunConfig = WHOLE, task: FakeTask | None = None,
    change: Callable[[Policy, Steering], Any] = lambda policy, steering: None,
) -> None:  # fmt: skip
    policy, steering = setting(config)
    assert steering is not None
    change(policy, steering)
    weights = [p.clone() for p in policy.model.parameters()]
    files = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    with pytest.raises(ValueError, match=message):
        train(config, policy, task or FakeTask(), steering=steering, output=finished, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights, policy.model.parameters(), strict=True))
    assert files == {p: p.stat().st_mtime_ns for p in finished.rglob("*")}, "nothing was written"


def test_other_settings_are_refused_by_name(finished: Path) -> None:
    other = replace(WHOLE, seed=1, grpo=replace(WHOLE.grpo, alpha=0.5))
    refused(finished, r"other settings .*grpo.alpha 0.01 → 0.5, seed 0 → 1.*same ones", other)


def test_fewer_steps_than_were_done_are_refused(finished: Path) -> None:
    hint = "has done 4 steps, more than the 3 asked for; give --steps 4 or more"
    refused(finished, hint, replace(WHOLE, steps=3))


def test_another_task_is_refused(finished: Path) -> None:
    refused(
        finished, "the task's questions changed", task=FakeTask(asked=(Question("a", "b", "1"),))
    )


def _new_latents(policy: Policy, steering: Steering) -> None:
    with torch.no_grad():
        next(steering.cvae.parameters()).add_(1e-3)


def _new_template(policy: Policy, steering: Steering) -> None:
    policy.tokenizer.chat_template += " "


def _new_strength(policy: Policy, steering: Steering) -> None:
    object.__setattr__(steering, "strength", Strength(gamma=0.5))


def test_other_latents_or_another_template_are_refused(finished: Path) -> None:
    refused(finished, "the latents changed", change=_new_latents)
    refused(finished, "the latents changed", change=_new_strength)
    refused(finished, "chat template or instruction changed", change=_new_template)


def test_another_number_of_processes_is_refused(tmp_path: Path, finished: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    manifest = tmp_path / "run" / "checkpoints" / "step-00000004" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"processes": 1', '"processes": 2'))
    refused(tmp_path / "run", r"made by 2 process\(es\) and this run has 1: .*Continue with 2")


def test_weights_of_another_size_are_refused(tmp_path: Path, finished: Path) -> None:
    checkpoint = newest_checkpoint(finished)
    assert checkpoint is not None
    learner = build_learner(tiny_policy(intermediate_size=32), GRPO)
    made = i2b_lpo.training.checkpoint._identity(learner, FakeTask(), 4)
    other = replace(checkpoint, manifest={**checkpoint.manifest, **made})
    with pytest.raises(ValueError, match="other names or sizes than tiny qwen3"):
        restore(learner, FakeTask(), other)


def test_more_steps_and_other_saves_are_welcome_and_other_memory_is_said(
    tmp_path: Path, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    log = tmp_path / "run" / "log"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        longer = replace(WHOLE, steps=5, checkpoint=CheckpointConfig(every=5, keep=1))
        go(longer, tmp_path / "run", log, resume=True)
    assert set(steps(log)) == {*"01234", "end"}
    assert read_run(tmp_path / "run").steps == 5
    less = replace(longer, steps=6, grpo=replace(WHOLE.grpo, micro_tokens=50))
    with pytest.warns(UserWarning, match=r"not bit for bit .*grpo.micro_tokens 100 → 50"):
        go(less, tmp_path / "run", log, resume=True)


def test_settings_that_change_nothing_refuse_no_resume(tmp_path: Path, finished: Path) -> None:
    other = replace(
        WHOLE,
        steps=5,
        data="moved",
        branch=replace(WHOLE.branch, latents="moved"),
        grpo=replace(WHOLE.grpo, ratio_cap=9.0),  # of the plain mode
    )
    for config in (other, replace(WHOLE, steps=5)):
        folder = tmp_path / config.data / "run"
        shutil.copytree(finished, folder)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            go(config, folder, folder / "log", resume=True)
    assert steps(tmp_path / "moved" / "run" / "log") == steps(tmp_path / "run" / "log")
    with pytest.warns(UserWarning, match=r"not bit for bit .*device 'cpu' → 'cuda'"):
        go(replace(WHOLE, steps=6, device="cuda"), folder, folder / "log", resume=True)


IDLE = {
    "branch.rule": (GRPO, replace(GRPO, branch=BranchConfig(rule="argmax"))),
    "ib.keep": (GRPO, replace(GRPO, ib=replace(NO_IB, keep=1))),
    "grpo.logprob": (GRPO, replace(GRPO, grpo=replace(GRPO.grpo, logprob="plain"))),
    "branch.sampler": (
        replace(WHOLE, branch=BranchConfig(2, fusion="none")),
        replace(WHOLE, branch=BranchConfig(2, fusion="none", sampler="independent")),
    ),
    "branch.fraction": (
        replace(WHOLE, branch=BranchConfig(2, rule="uniform")),
        replace(WHOLE, branch=BranchConfig(2, rule="uniform", fraction=0.5)),
    ),
    "ib.renormalise": (
        replace(WHOLE, ib=IBConfig(filter="none")),
        replace(WHOLE, ib=IBConfig(filter="none", renormalise=True)),
    ),
}


@pytest.mark.parametrize("name", IDLE)
def test_an_idle_setting_changes_no_number(name: str) -> None:
    assert all(name in config.idle() for config in IDLE[name])
    found = []
    for config in IDLE[name]:
        policy, steering = setting(config)
        records: list[StepRecord] = []

        def keep(_: Learner, record: StepRecord, kept: list[StepRecord] = records) -> None:
            kept.append(record)

        train(
            replace(config, steps=2), policy, FakeTask(), steering=steering, on_step=keep,
            progress=False,
        )  # fmt: skip
        weights = [p.tolist() for p in policy.model.parameters()]
        rows = [r for s in records for t in s.traces for r in t.rollouts]
        scored = [(r.ids, r.reward, r.kept) for r in rows]
        found.append((scored, [s.advantages.tolist() for s in records], weights))
    assert found[0] == found[1]


def test_a_run_is_never_overwritten(finished: Path) -> None:
    policy, steering = setting(WHOLE)
    with pytest.raises(ValueError, match="holds a run; go on with --resume"):
        train(WHOLE, policy, FakeTask(), steering=steering, output=finished)


def test_resume_needs_a_run(tmp_path: Path) -> None:
    policy, _ = setting(GRPO)
    with pytest.raises(ValueError, match="holds no run to go on with"):
        train(GRPO, policy, FakeTask(), output=tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match=r"name its folder"):
        train(GRPO, policy, FakeTask(), resume=True)


# --- signals --------------------------------------------------------------------------------------


@dataclass
class Sender:
    """A reward that sends a signal when it is asked for the n-th time."""

    number: int
    at: int
    asked: int = 0

    def __call__(self, question: Question, text: str) -> float:
        self.asked += 1
        if self.asked == self.at:
            os.kill(os.getpid(), self.number)
        return by_text(question, text)


@pytest.fixture
def handlers() -> Iterator[None]:
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner may ignore it
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    after = {s: signal.getsignal(s) for s in before}
    signal.signal(signal.SIGINT, ours)
    assert before == after, "handlers are given back"


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(
    number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    policy, _ = setting(GRPO)
    run = {"task": FakeTask(), "output": tmp_path, "progress": False}
    with pytest.raises(Interrupted, match=r"after 1 of 4 steps, saved in .*--resume") as caught:
        train(GRPO, policy, reward=Sender(number, at=3), **run)  # type: ignore[arg-type]
    assert caught.value.number == number
    assert "Stopping after this step" in capfd.readouterr().err
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1, "the third step comes first otherwise"


@pytest.mark.usefixtures("handlers")
def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    policy, _ = setting(GRPO)
    asked = Sender(signal.SIGINT, at=3)

    def twice(question: Question, text: str) -> float:
        if asked.asked == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return asked(question, text)

    with pytest.raises(Interrupted, match="in the middle of a step"):
        train(GRPO, policy, FakeTask(), reward=twice, output=tmp_path, progress=False)
    assert newest_checkpoint(tmp_path) is None


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    policy, _ = setting(GRPO)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        asked = Sender(signal.SIGINT, at=3)
        train(GRPO, policy, FakeTask(), reward=asked, output=tmp_path, progress=False)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == GRPO.steps


@pytest.mark.usefixtures("handlers")
def test_without_checkpoints_a_signal_does_what_it_did(tmp_path: Path) -> None:
    policy, _ = setting(GRPO)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(GRPO, policy, FakeTask(), reward=Sender(signal.SIGINT, at=3), progress=False)
    assert not isinstance(caught.value, Interrupted)


def test_a_run_that_is_asked_to_stop_is_saved_and_goes_on(
    tmp_path: Path, reference: Callable[[str], dict[str, set[str]]]
) -> None:
    policy, _ = setting(GRPO)
    calls: list[int] = []

    def enough() -> bool:
        calls.append(1)
        return len(calls) == 3

    history = train(
        GRPO, policy, FakeTask(), reward=by_text, output=tmp_path, stop=enough, progress=False
    )
    assert len(history) == 3 and (tmp_path / "policy").is_dir()
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.step == 3
    go(GRPO, tmp_path, tmp_path / "log", resume=True)
    expected = reference("grpo")
    assert steps(tmp_path / "log") == {name: expected[name] for name in ("3", "end")}
