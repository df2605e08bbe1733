"""A stop while saving: the old file is there or the new one, never a half."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_safety import trace_of
from test_weights import shard
from tiny import tiny_policy

from i2b_lpo.model.exporting import export
from i2b_lpo.model.policy import (
    Policy,
    load_policy,
    save_policy,
)
from i2b_lpo.model.steering import new_steering, save_steering
from i2b_lpo.trace import read_traces, write_traces

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no fork, alarm or file limit.")


# --- a stop while saving --------------------------------------------------------------------------


def weights_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in policy.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def in_a_child(act: Callable[[], object]) -> int:
    """The exit status of a forked process that does this, negative for a signal."""
    child = os.fork()
    if not child:
        torch.set_num_threads(1)  # a fork has no other threads, and would wait for them for ever
        try:
            act()
            os._exit(0)
        except OSError:
            os._exit(3)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(moment: int, root: Path, act: Callable[[], object]) -> int:
    """Do `act` in a child that is killed as it opens, makes or renames its n-th file in `root`."""

    def child() -> None:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            touched = event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
            if touched and str(arguments[0]).startswith(str(root)):
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        act()

    return in_a_child(child)


@pytest.mark.slow
@posix
def test_a_kill_while_saving_leaves_the_old_policy_or_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    old, new = tiny_policy(seed=0), tiny_policy(seed=1)
    outcomes = []
    for moment in range(1, 200):
        save_policy(old, folder)
        (folder / "README.md").write_text("A card.")
        status = killed_at(moment, tmp_path, lambda: save_policy(new, folder))
        try:
            found = weights_of(load_policy(folder))
        except ValueError as error:
            assert "No folder" in str(error), f"moment {moment}: half a folder"
            outcomes.append("none")
        else:
            which = [name for name, p in (("old", old), ("new", new)) if same(found, weights_of(p))]
            assert len(which) == 1, f"moment {moment}: neither the old policy nor the new one"
            assert (folder / "README.md").read_text() == "A card."
            outcomes += which
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert status == 0, "never came to the end"
    assert {"old", "new"} <= set(outcomes)
    assert outcomes == sorted(outcomes, key=["old", "none", "new"].index)
    assert [p.name for p in tmp_path.iterdir()] == ["policy"], "something was left over"


@posix
@pytest.mark.parametrize("limit", [0, 3000, 60_000])
def test_a_full_disk_leaves_what_was_there(limit: int, tmp_path: Path) -> None:
    policies, steering = [tiny_policy(seed=i) for i in (0, 1)], new_steering(tiny_policy(), d_z=4)
    save_policy(policies[0], tmp_path / "policy")
    save_steering(steering, tmp_path / "latents")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def limited(act: Callable[[], object]) -> int:
        def child() -> None:
            import resource  # not on Windows

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            act()

        return in_a_child(child)

    assert limited(lambda: save_policy(policies[1], tmp_path / "policy")) == 3
    assert limited(lambda: save_policy(policies[1], tmp_path / "new")) == 3
    assert limited(lambda: save_steering(steering, tmp_path / "latents")) == 3 or limit == 60_000
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    if limit < 60_000:
        assert after == before
    assert not (tmp_path / "new").exists()
    load_policy(tmp_path / "policy")


def test_an_error_of_the_disk_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        save_policy(tiny_policy(), tmp_path / "p")
    assert str(caught.value) == (
        f"Can't write {tmp_path / 'p'} ([Errno 28] No space left on device); what was there before "
        "is intact. Free some space, or choose another place, and save again."
    )
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_never_written_over(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("a run's settings")
    steering = new_steering(tiny_policy(), d_z=4)
    saves: list[Callable[[], object]] = [
        lambda: save_policy(tiny_policy(), mine),
        lambda: save_steering(steering, mine),
        lambda: export("tiny-base", mine),
    ]
    for save in saves:
        with pytest.raises(ValueError, match="holds files that weren't saved here before"):
            save()
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "config.json"]
    (mine / "config.json").unlink()
    save_policy(tiny_policy(), mine)  # an empty folder is fine


def test_saving_again_keeps_other_files_but_no_old_weights(foreign: Path) -> None:
    shard(foreign)
    (foreign / "notes").mkdir()
    (foreign / "notes" / "a.txt").write_text("mine")
    (foreign / "README.md").write_text("A card.")
    save_policy(tiny_policy(seed=1), foreign)
    assert (foreign / "notes" / "a.txt").read_text() == "mine"
    assert (foreign / "README.md").read_text() == "A card."
    assert [p.name for p in foreign.glob("*.safetensors*")] == ["model.safetensors"]
    assert same(weights_of(load_policy(foreign)), weights_of(tiny_policy(seed=1)))
    assert not {"README.md", "notes/a.txt"} & set(json.loads((foreign / "sha256.json").read_text()))


def test_a_link_to_a_folder_is_followed(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(saved)
    save_policy(tiny_policy(seed=1), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same(weights_of(load_policy(saved)), weights_of(tiny_policy(seed=1)))


def test_a_chat_templates_name_cant_lead_out_of_the_folder(tmp_path: Path) -> None:
    policy = tiny_policy()
    template = policy.tokenizer.chat_template
    policy.tokenizer.chat_template = {"default": template, "../../evil": "x"}
    with pytest.raises(ValueError, match=r"'../../evil.jinja' leads out of the folder"):
        save_policy(policy, tmp_path / "a" / "p")
    policy.tokenizer.chat_template = {"default": template, "short": "x"}
    save_policy(policy, tmp_path / "a" / "p")
    assert load_policy(tmp_path / "a" / "p").prompt_ids("hi") == tiny_policy().prompt_ids("hi")
    assert {p.name for p in tmp_path.rglob("*.jinja")} == {"chat_template.jinja", "short.jinja"}


@posix
def test_a_kill_while_writing_traces_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    statuses = []
    many = [trace_of("new" * 10_000)] * 3
    for moment in range(1, 20):
        write_traces(path, [trace_of("old")])
        statuses.append(killed_at(moment, tmp_path, lambda: write_traces(path, many)))
        assert list(read_traces(path)) in ([trace_of("old")], many)
        if not statuses[-1]:
            break
    assert len(statuses) > 2 and statuses[-1] == 0
