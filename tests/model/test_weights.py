"""Folders of weights harm nothing: pickle, code, cut, swapped or infinite weights are refused."""

from __future__ import annotations

import ast
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_policy

from i2b_lpo.infra.weights import check_sums, write_sums
from i2b_lpo.model.policy import (
    load_policy,
    save_policy,
)
from i2b_lpo.model.steering import WEIGHTS, load_steering, new_steering, save_steering

ROOT = Path(__file__).parents[2]
INDEX = "model.safetensors.index.json"


# --- code in folders of weights -------------------------------------------------------------------


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.ran),)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_and_never_read(file: str, foreign: Path) -> None:
    (foreign / "model.safetensors").unlink()
    ran = foreign.parent / "ran"
    (foreign / file).write_bytes(pickle.dumps(Trap(ran)))
    with pytest.raises(ValueError, match="convert them to safetensors if you trust") as caught:
        load_policy(foreign)
    assert f"{foreign} holds its weights as pickle ({file})" in str(caught.value)
    assert not ran.exists()
    pickle.loads((foreign / file).read_bytes())
    assert ran.exists(), "the trap must work, or this test could not fail"


def test_pickle_beside_safetensors_is_not_read(foreign: Path) -> None:
    ran = foreign.parent / "ran"
    for file in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin"):
        (foreign / file).write_bytes(pickle.dumps(Trap(ran)))
    load_policy(foreign)
    assert not ran.exists()


def add_to_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | entries
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_cant_choose_an_attention_from_the_hub(key: str, foreign: Path) -> None:
    # transformers would fetch the kernel and run it.
    add_to_config(foreign, **{key: "someone/kernel"})
    assert load_policy(foreign).model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "entries",
    [
        {"transformers_weights": "../x.safetensors"},
        {"transformers_weights": "adapter_model.bin"},
        {"dtype": "__import__('os')"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"num_attention_heads": "four"},
        {"hidden_size": -1},
    ],
    ids=str,
)
def test_a_strange_config_is_refused_in_one_sentence(
    entries: dict[str, Any], foreign: Path
) -> None:
    add_to_config(foreign, **entries)
    with pytest.raises(ValueError, match="Can't load") as caught:
        load_policy(foreign)
    assert str(foreign) in str(caught.value)
    assert "\n" not in str(caught.value)


SOURCES = [p for d in ("i2b_lpo", "scripts", "benchmarks") for p in (ROOT / d).rglob("*.py")]
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"}


def dangers(tree: ast.AST) -> list[str]:
    """Calls in a module that could run what comes from outside."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            found += [f"import {n}" for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in FORBIDDEN_CALLS:
            found.append(called)
        if called.endswith("torch.load") and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        for name, value in given.items():
            if name in ("shell", "trust_remote_code", "allow_pickle") and value != "False":
                found.append(f"{name}={value}")
            if name == "weights_only" and value != "True":
                found.append(f"{name}={value}")
        if called.endswith(".from_pretrained") and "trust_remote_code" not in given:
            found.append(f"{called} without trust_remote_code=False")
    return found


def test_no_source_runs_what_comes_from_outside() -> None:
    assert len(SOURCES) > 60
    found = [
        f"{path.relative_to(ROOT)}: {danger}"
        for path in SOURCES
        for danger in dangers(ast.parse(path.read_text(encoding="utf-8")))
        # A benchmark may read a tokenizer's folder given by hand; the default runs no code.
        if "without trust_remote" not in danger or path.is_relative_to(ROOT / "i2b_lpo")
    ]
    # One file runs code that a model wrote, on purpose and only in a confined child process.
    judge = "i2b_lpo/verify/calling.py"
    assert found == [f"{judge}: compile", f"{judge}: exec"]


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(command, shell=True)",
        "AutoConfig.from_pretrained(name, trust_remote_code=True)",
        "AutoConfig.from_pretrained(name, trust_remote_code=trust)",
        "AutoConfig.from_pretrained(name)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_each_danger_would_be_seen(line: str) -> None:
    assert len(dangers(ast.parse(line))) >= 1


# --- weights that are not what they were ----------------------------------------------------------


def size_of_header(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


CUTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "in the first number": lambda data: data[:5],
    "after it": lambda data: data[:8],
    "in the header": lambda data: data[: size_of_header(data) // 2],
    "after the header": lambda data: data[: size_of_header(data)],
    "in the middle": lambda data: data[: len(data) // 2],
    "before the last byte": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\x00",
    "zeros": lambda data: bytes(len(data)),
    "a huge header": lambda data: (2**62).to_bytes(8, "little") + data[8:],
    "other things": lambda data: random.Random(0).randbytes(len(data)),
}


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_weight_file_is_refused(cut: str, summed: bool, saved: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(CUTS[cut](file.read_bytes()))
    if summed:
        expected = (
            f"{file} is not the file that was saved: it was cut off, swapped or edited; copy the "
            "folder again, or delete sha256.json if the change is on purpose."
        )
    else:
        (saved / "sha256.json").unlink()
        expected = f"Can't load {saved} (Error while deserializing header"
    with pytest.raises(ValueError) as caught:
        load_policy(saved)
    assert str(caught.value).startswith(expected)
    assert "copy " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_policy_of_the_same_shapes_are_seen(saved: Path, tmp_path: Path) -> None:
    other = tiny_policy(seed=1)
    save_policy(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", saved)
    with pytest.raises(ValueError, match="is not the file that was saved: it was cut off, swapped"):
        load_policy(saved)
    (saved / "sha256.json").unlink()  # what the message says to do if it was on purpose
    for name, weight in other.model.state_dict().items():
        assert torch.equal(load_policy(saved).model.state_dict()[name], weight)


def test_weights_of_other_shapes_are_seen_without_sums_too(foreign: Path, tmp_path: Path) -> None:
    save_policy(tiny_policy(hidden_size=48), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", foreign)
    with pytest.raises(ValueError, match=f"Can't load {foreign} ") as caught:
        load_policy(foreign)
    assert "\n" not in str(caught.value)


def shard(folder: Path) -> None:
    """Split the weights of `folder` into two files and an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    placed = {key: names[i % 2] for i, key in enumerate(weights)}
    for name in names:
        part = {key: weights[key] for key in weights if placed[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def drop_a_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def name_one_outside(folder: Path) -> None:
    outside = folder.parent / "x.safetensors"
    (folder / "model-00002-of-00002.safetensors").rename(outside)
    index = (folder / INDEX).read_text()
    (folder / INDEX).write_text(
        index.replace("model-00002-of-00002.safetensors", "../x.safetensors")
    )


def name_one_by_its_whole_path(folder: Path) -> None:
    name_one_outside(folder)
    index = (folder / INDEX).read_text()
    outside = folder.parent / "x.safetensors"
    (folder / INDEX).write_text(index.replace("../x.safetensors", str(outside)))


def break_the_index(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": 5}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_a_shard, "names 'model-00002-of-00002.safetensors', which is not in this folder"),
        (name_one_outside, r"names '../x.safetensors', which is not in this folder; copy the"),
        (name_one_by_its_whole_path, "x.safetensors', which is not in this folder; copy the"),
        (break_the_index, "can't be read; copy the folder again"),
    ],
)
def test_shards_lie_in_their_folder(
    damage: Callable[[Path], None], message: str, foreign: Path
) -> None:
    shard(foreign)
    load_policy(foreign)
    damage(foreign)
    with pytest.raises(ValueError, match=message) as caught:
        load_policy(foreign)
    assert str(foreign / INDEX) in str(caught.value)


def test_shards_may_be_links_as_in_the_hubs_cache(foreign: Path) -> None:
    shard(foreign)
    for file in foreign.glob("*.safetensors"):
        target = foreign.parent / f"blob-{file.name}"
        file.rename(target)
        file.symlink_to(target)
    load_policy(foreign)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(value: float, foreign: Path) -> None:
    weights = load_file(foreign / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] = value
    save_file(weights, foreign / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError) as caught:
        load_policy(foreign)
    assert str(caught.value) == (
        f"Can't load {foreign} (model.layers.1.mlp.up_proj.weight holds NaN or infinite weights); "
        "copy or download it again."
    )


@pytest.mark.parametrize("content", ["{", "[1]", "5", ""])
def test_sums_that_cant_be_read_are_refused(content: str, saved: Path) -> None:
    (saved / "sha256.json").write_text(content)
    with pytest.raises(ValueError, match=r"sha256\.json can't be read; copy the folder again, or "):
        load_policy(saved)


def test_sums_open_no_file_outside_their_folder(tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    secret.write_text("mine")
    folder.mkdir()
    write_sums(folder, ["../secret"])  # and it is the very same file
    with pytest.raises(ValueError, match="secret is missing; copy the folder again"):
        check_sums(folder)


def test_every_written_file_has_a_sum_and_a_card_may_be_added(saved: Path) -> None:
    sums = json.loads((saved / "sha256.json").read_text())
    assert {p.name for p in saved.iterdir()} == {*sums, "sha256.json"}
    (saved / "README.md").write_text("A card.")
    check_sums(saved)
    load_policy(saved)


# --- the same for latents -------------------------------------------------------------------------


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    save_steering(new_steering(tiny_policy(), d_z=4), tmp_path / "latents")
    return tmp_path / "latents"


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_file_of_latents_is_refused(cut: str, latents: Path) -> None:
    file = latents / WEIGHTS
    file.write_bytes(CUTS[cut](file.read_bytes()))
    with pytest.raises(ValueError, match=r"is not the file that was saved.*make them again with"):
        load_steering(tiny_policy(), latents)


def test_swapped_and_infinite_latents_are_seen(latents: Path, tmp_path: Path) -> None:
    policy = tiny_policy()
    torch.manual_seed(1)  # the policy's own seed is 0
    save_steering(new_steering(policy, d_z=4), tmp_path / "other")
    shutil.copy(tmp_path / "other" / WEIGHTS, latents)
    with pytest.raises(ValueError, match=r"was cut off, swapped or edited.*delete sha256\.json if"):
        load_steering(tiny_policy(), latents)
    (latents / "sha256.json").unlink()
    load_steering(tiny_policy(), latents)
    tensors = load_file(latents / WEIGHTS)
    tensors["fusion.U_k"][0, 0] = float("nan")
    save_file(tensors, latents / WEIGHTS)
    with pytest.raises(ValueError, match=r"fusion\.U_k holds NaN or infinite weights"):
        load_steering(tiny_policy(), latents)
