"""Two processes, whole or sharded (FSDP2), make the steps of one, fail together and leave nothing.

One torchrun makes all steps, with `work` in each of its two processes; the tests read what these
wrote. The ends (an exception, kill -9) have launches of their own.
"""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from test_train import FakeTask, by_chance, scored, setting, without_seconds
from test_update_branches import CONFIG, policy_and_steering, trees_of
from tiny import tiny_policy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_
from transformers import AutoModelForCausalLM

import i2b_lpo.tasks.maths
import i2b_lpo.training.learner
import i2b_lpo.training.loop
import i2b_lpo.training.step
import i2b_lpo.training.updating
from i2b_lpo.config import GRPOConfig, IBConfig, RunConfig
from i2b_lpo.infra.memory import OutOfMemory
from i2b_lpo.method.grpo import VARIANTS
from i2b_lpo.model.logprobs import policy_logprobs
from i2b_lpo.model.steering import load_steering
from i2b_lpo.trace import Branch, Trace
from i2b_lpo.training.batch import Trajectory, trajectories_of
from i2b_lpo.training.learner import Learner, build_learner
from i2b_lpo.training.loop import train
from i2b_lpo.training.processes import agree, gathered, own_device, scatter_like, unsharded
from i2b_lpo.training.step import StepRecord, train_step
from i2b_lpo.training.updating import update, without_z

pytestmark = pytest.mark.slow

TENSORS = dict[str, Tensor]
KINDS = ("whole", "sharded")


# --- what each process does ---------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Some updates, and which of two processes gets sample number i."""

    config: RunConfig
    rank_of: Callable[[int, Trajectory], int]
    branches: bool = False
    updates: int = 1


def _asked(i: int, sample: Trajectory) -> int:
    """Whole questions: their prompts have different lengths."""
    return len(sample.prompt_ids) % 2


def _trained(**grpo: Any) -> RunConfig:
    return replace(CONFIG, questions=4, grpo=replace(CONFIG.grpo, alpha=0.1, **grpo))


CASES = {
    **{name: Case(setting(alpha=0.1, variant=name), lambda i, s: i % 2) for name in VARIANTS},
    "more passes on one": Case(setting(70, alpha=0.1), lambda i, s: int(i % 4 == 0)),
    "nothing to learn on one": Case(setting(alpha=0.1), lambda i, s: int(s.advantage == 0)),
    "latent": Case(_trained(), _asked, True, updates=2),
    "plain": Case(_trained(logprob="plain", ratio_cap=1.5), _asked, True, updates=2),
    "train_psa": Case(_trained(train_psa=True), _asked, True, updates=2),
    "z on one only": Case(
        _trained(train_psa=True), lambda i, s: int(s.rollout.branch is None), True, updates=2
    ),
}


def prepare(
    case: Case, accelerator: Accelerator | None = None, sharded: bool = False
) -> tuple[Learner, list[list[Trajectory]]]:
    """A learner, and the samples of all processes for each of its updates."""
    config = replace(case.config, optimizer=replace(case.config.optimizer, max_grad_norm=0.5))
    if case.branches:
        policy, steering = policy_and_steering()
        traces = trees_of(policy, steering, config)
        size = len(traces[0].rollouts)
        scores = (torch.arange(len(traces) * size) % 5 - 2.0).view(-1, size) / 4
        samples = trajectories_of(traces, scores)
    else:
        policy, steering = tiny_policy(dtype=torch.float64), None
        samples = scored(policy, config)
        if VARIANTS[config.grpo.variant].drop_uniform:
            gone = samples[3].prompt_ids
            samples = [
                replace(s, dropped=True, advantage=0.0) if s.prompt_ids == gone else s
                for s in samples
            ]
    learner = build_learner(
        policy, config, steering=steering, accelerator=accelerator, sharded=sharded
    )
    return learner, [samples[part :: case.updates] for part in range(case.updates)]


def weights_of(learner: Learner) -> TENSORS:
    with unsharded(learner.scorer):
        return {n: p.detach().clone() for n, p in learner.scorer.named_parameters()}


def moments_of(learner: Learner) -> list[Tensor]:
    return [
        gathered(t).clone() for state in learner.optimizer.state.values() for t in state.values()
    ]


def take(case: Case, learner: Learner, parts: Sequence[Sequence[Trajectory]]) -> dict[str, Any]:
    """Make the updates; returns their gradients before clipping, their metrics and the weights."""
    gradients: list[TENSORS] = []

    def watched(parameters: Any, *arguments: Any) -> None:
        named = learner.scorer.named_parameters()
        whole = {n: gathered(p.grad).clone() for n, p in named if p.grad is not None}
        gradients.append(whole)
        clip_grads_with_norm_(parameters, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(i2b_lpo.training.updating, "clip_grads_with_norm_", watched)
        if learner.config.grpo.logprob == "plain":  # all of them before the first update
            ready = iter(without_z(learner, [s for part in parts for s in part]))
            parts = [[next(ready) for _ in part] for part in parts]
        metrics = [update(learner, part) for part in parts]
    return {
        "gradients": gradients,
        "metrics": metrics,
        "weights": weights_of(learner),
        "moments": moments_of(learner),
    }


def steps(accelerator: Accelerator, sharded: bool) -> dict[str, Any]:
    """Two whole steps with branches and scores; one process decodes fewer tokens."""
    config = replace(_trained(updates=2, train_psa=True), ib=IBConfig())
    config = replace(config, optimizer=replace(config.optimizer, max_grad_norm=1e9))
    policy, steering = policy_and_steering()
    if accelerator.process_index == 1:
        policy = replace(policy, eos_ids=tuple(range(150)))
    learner = build_learner(
        policy, config, steering=steering, accelerator=accelerator, sharded=sharded
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(i2b_lpo.tasks.maths, "verify_batch", by_chance)
        records = [train_step(learner, FakeTask(), step) for step in range(2)]
    return {
        "traces": [r.traces for r in records],
        "metrics": without_seconds([r.metrics for r in records]),
        "weights": weights_of(learner),
    }


def failure(call: Callable[[], Any]) -> tuple[str, str]:
    """What `call` raises."""
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def faults(accelerator: Accelerator, sharded: bool) -> dict[str, Any]:
    """Something goes wrong on the second process alone, in an update and before it."""
    rank = accelerator.process_index
    learner, (first, second) = prepare(CASES["train_psa"], accelerator, sharded)
    mine, more = ([s for s in part if _asked(0, s) == rank] for part in (first, second))
    update(learner, mine)  # so that there are moments
    before = [*weights_of(learner).values(), *moments_of(learner)]
    found: dict[str, Any] = {}

    def same() -> bool:
        after = [*weights_of(learner).values(), *moments_of(learner)]
        left = [p.grad is not None for p in learner.scorer.parameters()]
        equal = (torch.equal(a, b) for a, b in zip(before, after, strict=True))
        return all(equal) and not any(left)

    broken = replace(more[0].rollout, logprobs=(float("nan"),) * len(more[0].rollout))
    nan = [replace(more[0], rollout=broken, advantage=1.0), *more[1:]] if rank else more
    found["nan"] = (*failure(lambda: update(learner, nan, step=7)), same())
    old = replace(more[0].rollout, branch=Branch(0, len(more[0].prompt_ids), "psa", (0.0,) * 4))
    foreign = [replace(more[0], rollout=old), *more[1:]] if rank else more
    found["foreign"] = (*failure(lambda: update(learner, foreign, step=7)), same())
    with pytest.MonkeyPatch.context() as patch:
        if rank:
            patch.setattr(i2b_lpo.training.learner, "policy_logprobs", _infinite_backward)
        found["gradient"] = (*failure(lambda: update(learner, more, step=7)), same())
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True):
        if rank:
            patch.setattr(i2b_lpo.training.learner, "policy_logprobs", _limited(0))
        found["alone"] = (*failure(lambda: update(learner, more, step=7)), same())
    with pytest.MonkeyPatch.context() as patch:
        if rank:
            patch.setattr(i2b_lpo.training.step, "reward_table", _no_reward)
        patch.setattr(i2b_lpo.tasks.maths, "verify_batch", by_chance)
        found["reward"] = (*failure(lambda: train_step(learner, FakeTask(), 7)), same())
    if sharded:
        with unsharded(learner.scorer):
            inside = failure(lambda: update(learner, more))
        found["inside"] = (*inside, same())
    for name, backward in (("forward", False), ("backward", True)):
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if rank:
                patch.setattr(i2b_lpo.training.learner, "policy_logprobs", _limited(100, backward))
            metrics = update(learner, more)
        found[name] = (metrics, weights_of(learner), [str(w.message) for w in told])
    return found


def halved(accelerator: Accelerator, sharded: bool) -> list[Any]:
    """The good updates of `faults` with the micro-batches that memory leaves them there."""
    learner, (first, second) = prepare(CASES["train_psa"], accelerator, sharded)
    rank = accelerator.process_index
    mine, more = ([s for s in part if _asked(0, s) == rank] for part in (first, second))
    update(learner, mine)
    config = learner.config
    small = replace(learner, config=replace(config, grpo=replace(config.grpo, micro_tokens=100)))
    return [(update(small, more), weights_of(learner)) for _ in range(2)]


def _infinite_backward(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
    logp, entropy = policy_logprobs(*arguments, **named)
    logp.register_hook(lambda gradient: gradient * float("inf"))
    return logp, entropy


def _limited(tokens: int, backward: bool = False) -> Callable[..., tuple[Tensor, Tensor]]:
    """Passes over more tokens run out of memory."""

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def limited(model: Any, ids: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if ids.numel() > tokens and not backward:
            refuse()
        logp, entropy = policy_logprobs(model, ids, *arguments, **named)
        if ids.numel() > tokens:
            hidden = model.get_decoder().embed_tokens.weight
            logp = logp + 0 * hidden.sum()
            logp.register_hook(refuse)
        return logp, entropy

    return limited


def _no_reward(traces: Sequence[Trace], *, step: int = 0) -> Tensor:
    raise FloatingPointError(f"Step {step}: the reward of question 29 is nan; no parameter was")


def agreements(accelerator: Accelerator) -> list[tuple[str, str]]:
    """What each of two processes is told of pairs of errors."""
    small, final = MemoryError("full"), OutOfMemory("one sentence")
    pairs: list[tuple[Exception | None, Exception | None]] = [
        (None, None),
        (None, small),
        (small, FloatingPointError("NaN")),
        (final, small),
        (ValueError("zero"), FloatingPointError("one")),
        (None, UnicodeDecodeError("utf-8", b"?", 0, 1, "bad")),
        (KeyError("gone"), None),
    ]
    told = (agree(accelerator, pair[accelerator.process_index]) for pair in pairs)
    return [(type(error).__name__, str(error)) for error in told]


def shards(accelerator: Accelerator) -> bool:
    """Sharded parameters are gathered and scattered without a change, and each has its part."""
    learner, _ = prepare(CASES["train_psa"], accelerator, sharded=True)
    for parameter in learner.scorer.parameters():
        assert isinstance(parameter, DTensor)
        whole = gathered(parameter)
        part = scatter_like(parameter, whole)
        assert isinstance(part, DTensor) and type(whole) is Tensor
        assert torch.equal(part.to_local(), parameter.to_local())
        assert part.placements == parameter.placements
        assert parameter.to_local().numel() < whole.numel()
    local = sum(p.to_local().numel() for p in learner.scorer.parameters())
    return bool(local < 0.6 * sum(p.numel() for p in learner.scorer.parameters()))


def runs(folder: Path, sharded: bool) -> list[Any]:
    """Metrics and weights of a run of three steps, and of one that went on after its second."""
    config = replace(setting(100), questions=4, shard=sharded)
    found = []
    for name, stops in (("whole", (3,)), ("parted", (2, 3))):
        for at, end in enumerate(stops):
            policy = tiny_policy()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(i2b_lpo.tasks.maths, "verify_batch", by_chance)
                history = train(
                    replace(config, steps=end), policy, FakeTask(), output=folder / name,
                    resume=at > 0, progress=False,
                )  # fmt: skip
        weights = {n: gathered(p).detach() for n, p in policy.model.named_parameters()}
        found.append((history, weights))
    return found


def latents(folder: Path, sharded: bool) -> TENSORS:
    """A run that trains the fusion: what it has become; the run saves it as latents too."""
    policy, steering = policy_and_steering(torch.float32)
    config = replace(_trained(train_psa=True), steps=1, shard=sharded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(i2b_lpo.tasks.maths, "verify_batch", by_chance)
        train(config, policy, FakeTask(), steering=steering, output=folder, progress=False)
    return {n: gathered(p).detach() for n, p in steering.fusion.named_parameters()}


def work(folder: Path) -> None:
    """What each of the two processes does."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=60))
    accelerator = Accelerator(cpu=True, kwargs_handlers=[patience])
    assert accelerator.num_processes == torch.distributed.get_world_size() == 2
    rank = accelerator.process_index
    found: dict[str, Any] = {"agree": agreements(accelerator), "shards": shards(accelerator)}
    policy = tiny_policy(seed=rank)
    build_learner(policy, setting(), accelerator=accelerator)
    found["first"] = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    for kind in KINDS:
        sharded = kind == "sharded"
        for name, case in CASES.items():
            learner, parts = prepare(case, accelerator, sharded)
            mine = [[s for i, s in enumerate(p) if case.rank_of(i, s) == rank] for p in parts]
            found[f"{kind} {name}"] = take(case, learner, mine)
        found[f"{kind} steps"] = steps(accelerator, sharded)
        found[f"{kind} faults"] = faults(accelerator, sharded)
        found[f"{kind} halved"] = halved(accelerator, sharded)
    for kind in KINDS:
        found[f"{kind} train"] = runs(folder / kind, kind == "sharded")
        found[f"{kind} latents"] = latents(folder / f"{kind}-psa", kind == "sharded")
    torch.save(found, folder / str(rank))
    torch.distributed.destroy_process_group()


# --- the launcher -------------------------------------------------------------------------------

MARK = "I2B_LPO_TEST_RUN"


def start(folder: Path, call: str, mark: str) -> subprocess.Popen[str]:
    """Two processes that make `call` in this module; all their children carry `mark`."""
    worker = folder / "worker.py"
    worker.write_text(f"import test_processes\ntest_processes.{call}\n", encoding="utf-8")
    package = Path(i2b_lpo.__file__).parent.parent
    variables = {
        "PYTHONPATH": os.pathsep.join([str(package), *filter(None, sys.path)]),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        MARK: mark,
    }
    if sys.platform == "linux":  # else gloo looks for an address of the machine's name
        variables["GLOO_SOCKET_IFNAME"] = "lo"
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            str(worker),
        ],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_over(mark: str) -> list[int]:
    """The processes of a run that are still there."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            inside = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes()
            zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if inside and not zombie:
            found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def shared_memory() -> set[str]:
    return {entry.name for entry in Path("/dev/shm").iterdir()}


@contextmanager
def nothing_left(mark: str, seconds: float) -> Iterator[None]:
    """After the block no process of the run stays beyond a bounded wait, and no shared memory."""
    before = shared_memory()
    try:
        yield
        assert wait_until(lambda: not left_over(mark), seconds), left_over(mark)
        assert wait_until(lambda: shared_memory() <= before, 5), shared_memory() - before
    finally:
        for pid in left_over(mark):
            os.kill(pid, signal.SIGKILL)


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that two processes wrote to, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    mark = uuid.uuid4().hex
    with nothing_left(mark, 1) if sys.platform == "linux" else warnings.catch_warnings():
        run = start(folder, f"work(test_processes.Path({str(folder)!r}))", mark)
        try:
            said, _ = run.communicate(timeout=300)
        finally:
            run.kill()
    assert run.returncode == 0, said[-4000:]
    return folder, said


@pytest.fixture(scope="module")
def both(launched: tuple[Path, str]) -> list[dict[str, Any]]:
    """What the two processes found."""
    return [torch.load(launched[0] / str(rank), weights_only=False) for rank in range(2)]


# --- the same steps -----------------------------------------------------------------------------


def assert_close(found: TENSORS, expected: TENSORS, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) <= tolerance, name


@pytest.mark.parametrize("name", CASES)
def test_two_processes_make_the_updates_of_one(name: str, both: list[dict[str, Any]]) -> None:
    case = CASES[name]
    learner, parts = prepare(case)
    start = weights_of(learner)
    expected = take(case, learner, parts)
    moved = [n for n, w in expected["weights"].items() if not torch.equal(w, start[n])]
    assert moved == [n for n, p in learner.scorer.named_parameters() if p.requires_grad]
    for kind in KINDS:
        for rank in both:
            found = rank[f"{kind} {name}"]
            assert len(found["gradients"]) == case.updates
            for one, two in zip(found["gradients"], expected["gradients"], strict=True):
                assert max(float(g.abs().max()) for g in two.values()) > 0.1
                assert_close(one, two, 1e-12)
            assert_close(found["weights"], expected["weights"], 1e-12)
            for one, two in zip(found["metrics"], expected["metrics"], strict=True):
                assert one == pytest.approx(two, rel=1e-9), "metrics are of both processes"
                assert two["grad_norm"] > 0.5, "nothing was clipped"


def test_the_cases_give_the_processes_different_work() -> None:
    for case in CASES.values():
        _, parts = prepare(case)
        work = [[case.rank_of(i, s) for i, s in enumerate(p) if s.advantage] for p in parts]
        assert all(ranks for ranks in work)
    dropped = [
        {CASES["dapo"].rank_of(i, s) for i, s in enumerate(p) if s.dropped}
        for p in prepare(CASES["dapo"])[1]
    ]
    assert dropped == [{0, 1}], "both processes drop some"


def test_sharded_steps_equal_whole_ones_bit_for_bit(both: list[dict[str, Any]]) -> None:
    for rank in both:
        whole, sharded = rank["whole steps"], rank["sharded steps"]
        assert whole["traces"] == sharded["traces"]
        assert all(torch.equal(w, sharded["weights"][n]) for n, w in whole["weights"].items())
        for one, two in zip(whole["metrics"], sharded["metrics"], strict=True):
            assert two == pytest.approx(one, rel=1e-12)
    one, two = (rank["sharded steps"] for rank in both)
    assert all(torch.equal(w, two["weights"][n]) for n, w in one["weights"].items())
    assert one["metrics"] == two["metrics"]
    longest = [[max(map(len, t.rollouts)) for t in rank["traces"][0]] for rank in (one, two)]
    assert max(longest[0]) > max(longest[1]) + 2, "both decoded equally long"


def test_a_group_never_splits_over_processes(both: list[dict[str, Any]]) -> None:
    for step in range(2):
        asked = [[t.question.id for t in rank["sharded steps"]["traces"][step]] for rank in both]
        expected = [q.id for q in FakeTask().batch(step, 4, seed=0)]
        assert sorted(asked[0] + asked[1]) == sorted(expected)
        assert len(asked[0]) == len(asked[1]) == 2
        for rank in both:
            for trace in rank["sharded steps"]["traces"][step]:
                assert len(trace.rollouts) == 2 * (1 + 3), "M(1 + K) trajectories a question"
                assert all(r.reward is not None and r.score for r in trace.rollouts)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_one_policy_and_go_on_with_it(
    kind: str, launched: tuple[Path, str], both: list[dict[str, Any]]
) -> None:
    expected, weights = both[0]["whole train"][0]
    assert len(expected) == 3 and any(row["grad_norm"] > 0 for row in expected)
    for rank in both:
        for history, found in rank[f"{kind} train"]:
            for one, two in zip(*map(without_seconds, (history, expected)), strict=True):
                assert one == pytest.approx(two, rel=1e-6)
            assert all(torch.equal(found[name], w) for name, w in weights.items())
        whole, parted = (without_seconds(history) for history, _ in rank[f"{kind} train"])
        assert whole == parted, "not bit for bit"
    for name in ("whole", "parted"):
        folder = launched[0] / kind / name
        assert len((folder / "metrics.jsonl").read_text(encoding="ascii").splitlines()) == 3
        policy = AutoModelForCausalLM.from_pretrained(folder / "policy")
        assert all(torch.equal(p, weights[n]) for n, p in policy.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_latents_of_two_processes_are_saved_whole(
    kind: str, launched: tuple[Path, str], both: list[dict[str, Any]]
) -> None:
    _, fresh = policy_and_steering(torch.float32)
    saved = load_steering(tiny_policy(), launched[0] / f"{kind}-psa" / "latents")
    assert saved.version == 2
    for name, parameter in saved.fusion.named_parameters():
        assert not torch.equal(parameter, fresh.fusion.get_parameter(name))
        for rank in both:
            assert torch.equal(parameter, rank[f"{kind} latents"][name]), name


def test_another_number_of_processes_does_not_go_on(launched: tuple[Path, str]) -> None:
    config = replace(setting(100), questions=4, steps=4)
    for kind in KINDS:
        with pytest.raises(ValueError, match=r"was made by 2 process\(es\) and this run has 1: "):
            train(
                config, tiny_policy(), FakeTask(), output=launched[0] / kind / "whole",
                resume=True, progress=False,
            )  # fmt: skip


def test_both_begin_with_the_weights_of_the_first(both: list[dict[str, Any]]) -> None:
    for name, parameter in tiny_policy(seed=0).model.named_parameters():
        assert all(torch.equal(rank["first"][name], parameter) for rank in both)


# --- shards -------------------------------------------------------------------------------------


def test_each_process_holds_its_part(both: list[dict[str, Any]]) -> None:
    assert [rank["shards"] for rank in both] == [True, True]


def test_one_process_shards_nothing() -> None:
    learner, _ = prepare(CASES["latent"])
    parameter = next(learner.scorer.parameters())
    assert gathered(parameter) is parameter and scatter_like(parameter, parameter) is parameter
    # As a resumed run's moments, read on the CPU, go to the GPU of their parameter.
    elsewhere = torch.empty_like(parameter, device="meta")
    assert scatter_like(elsewhere, parameter).device.type == "meta"
    with unsharded(learner.scorer):
        assert next(learner.scorer.parameters()) is parameter
    with pytest.raises(ValueError, match="can't be sharded over one process; start several"):
        prepare(CASES["latent"], sharded=True)


def test_questions_are_dealt_evenly_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    config = replace(CONFIG, questions=6, grpo=GRPOConfig(updates=2))
    with pytest.raises(ValueError, match=r"6 questions .* 2 process\(es\) × 2 update\(s\); use a"):
        build_learner(tiny_policy(), config)


def test_latents_follow_the_policy() -> None:
    policy, steering = policy_and_steering()
    policy.model.to("meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "prepare_model", lambda self, model, **_: model)
        build_learner(policy, CONFIG, steering=steering, accelerator=Accelerator(cpu=True))
    assert {p.device.type for p in steering.cvae.parameters()} == {"meta"}
    assert {p.device.type for p in steering.fusion.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("device", "world", "rank", "expected"),
    [
        ("cpu", "2", "1", "cpu"),
        ("cuda", "1", "0", "cuda"),
        ("cuda", None, None, "cuda"),
        ("cuda:1", None, None, "cuda:1"),
        ("cuda", "4", "1", "cuda:1"),
        ("cuda:0", "2", "0", "All processes would share cuda:0; give cuda, and each takes its own"),
        ("cuda", "4", "2", "Process 2 finds no GPU of its own among 2; start with --nproc_per_"),
    ],
)
def test_each_process_takes_the_gpu_of_its_rank(
    device: str, world: str | None, rank: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (("WORLD_SIZE", world), ("LOCAL_RANK", rank)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    if " " not in expected:
        assert own_device(device) == expected
        return
    with pytest.raises(ValueError, match=expected):
        own_device(device)


# --- all fail together --------------------------------------------------------------------------

FAULTS = {
    "nan": ("FloatingPointError", "Step 7: old log-probs: not every number is finite; no parame"),
    "foreign": ("ValueError", "A branch was drawn with fusion psa, γ_0 = 0.0, s_0 = None, latents"),
    "alone": ("OutOfMemory", "Out of memory in a pass over one trajectory of "),
    "reward": ("FloatingPointError", "Step 7: the reward of question 29 is nan; no parameter was"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_on_one_process_fails_on_both(
    kind: str, fault: str, both: list[dict[str, Any]]
) -> None:
    raised, message = FAULTS[fault]
    for rank, prefix in enumerate(("Process 1: ", "")):
        found, told, same = both[rank][f"{kind} faults"][fault]
        assert (found, told[: len(prefix + message)]) == (raised, prefix + message)
        assert same, "something was changed"


@pytest.mark.parametrize("kind", KINDS)
def test_an_infinite_gradient_of_one_process_is_refused_by_both(
    kind: str, both: list[dict[str, Any]]
) -> None:
    for rank in both:
        found, told, same = rank[f"{kind} faults"]["gradient"]
        assert found == "FloatingPointError" and told.startswith("Step 7: gradient of model.")
        assert same


def test_an_update_inside_unsharded_is_refused(both: list[dict[str, Any]]) -> None:
    for rank in both:
        found, told, same = rank["sharded faults"]["inside"]
        assert found == "RuntimeError" and "leave `unsharded` first" in told
        assert same


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_memory_on_one_process_halves_the_passes_of_both(
    kind: str, both: list[dict[str, Any]]
) -> None:
    for rank in both:
        for name, expected in zip(("forward", "backward"), rank[f"{kind} halved"], strict=True):
            metrics, weights, told = rank[f"{kind} faults"][name]
            assert told == [
                "Out of memory at 200 tokens per pass; repeated with 100 (--set "
                "grpo.micro_tokens=100 avoids the repeat)."
            ]
            assert metrics == expected[0], "bit for bit as with the smaller passes at once"
            assert all(torch.equal(w, expected[1][n]) for n, w in weights.items())


UNREADABLE = "'utf-8' codec can't decode byte 0x3f in position 0: bad"


def test_processes_agree_on_what_failed(both: list[dict[str, Any]]) -> None:
    expected = [
        (("NoneType", "None"), ("NoneType", "None")),
        (("MemoryError", "Process 1: full"), ("MemoryError", "full")),
        (("FloatingPointError", "Process 1: NaN"), ("FloatingPointError", "NaN")),
        (("OutOfMemory", "one sentence"), ("OutOfMemory", "Process 0: one sentence")),
        (("ValueError", "zero"), ("FloatingPointError", "one")),
        (("ValueError", f"Process 1: {UNREADABLE}"), ("UnicodeDecodeError", UNREADABLE)),
        (("KeyError", "'gone'"), ("RuntimeError", "Process 0: 'gone'")),
    ]
    assert list(zip(*(rank["agree"] for rank in both), strict=True)) == expected


# --- nothing stays behind -----------------------------------------------------------------------


def train_on(folder: Path, fault: str) -> None:
    """Train until something ends it; each process leaves its number in `folder`."""

    def on_step(learner: Learner, record: StepRecord) -> None:
        assert learner.accelerator.num_processes == 2
        rank = learner.accelerator.process_index
        (folder / f"pid {rank}").write_text(str(os.getpid()), encoding="ascii")
        if fault == "raise" and rank == 1 and record.metrics["step"] == 1:
            raise ValueError("the second process has had enough")

    config = replace(setting(), questions=4, steps=100_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(i2b_lpo.tasks.maths, "verify_batch", by_chance)
        train(config, tiny_policy(), FakeTask(), on_step=on_step, progress=False)


@linux
@pytest.mark.parametrize("fault", ["raise", "kill a process", "kill the launcher"])
def test_no_process_outlives_a_run(fault: str, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    with nothing_left(mark, 40):
        run = start(tmp_path, f"train_on(test_processes.Path({str(tmp_path)!r}), {fault!r})", mark)
        pids = [tmp_path / f"pid {rank}" for rank in range(2)]
        assert wait_until(lambda: all(p.is_file() and p.read_text() for p in pids), 120)
        if fault == "kill a process":
            os.kill(int(pids[1].read_text()), signal.SIGKILL)
        elif fault == "kill the launcher":
            run.kill()
        said, _ = run.communicate(timeout=60)
        assert run.returncode != 0
        if fault == "raise":
            assert "the second process has had enough" in said
