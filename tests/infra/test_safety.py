"""Names, secrets and texts from outside harm nothing; the bundled files are what they were."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
from hypothesis import given, strategies as st
from tiny import tiny_policy

from i2b_lpo.config import RunConfig, write_run
from i2b_lpo.infra.files import inside
from i2b_lpo.infra.secrets import redact
from i2b_lpo.infra.weights import check_sums, check_weights
from i2b_lpo.model.exporting import export
from i2b_lpo.model.policy import (
    BUNDLED,
    INSTRUCTION_FILE,
    asset_path,
    load_policy,
    save_policy,
)
from i2b_lpo.model.steering import load_steering, new_steering, save_steering
from i2b_lpo.trace import Question, Rollout, Trace, read_traces, write_traces

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no fork, alarm or file limit.")


# --- names that become paths ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a", "a/b", "..a", "a..", "a/../b", "é 漢", "~", "C:", "-rf", ".x"]
)
def test_a_name_inside_is_a_path_inside(name: str, tmp_path: Path) -> None:
    path = inside(tmp_path, name)
    assert path == Path(os.path.normpath(tmp_path.resolve() / name))
    assert tmp_path.resolve() in path.parents


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a/..", "../root2", "out", "out/x", "up/x"],
)
def test_a_name_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (tmp_path / "root2").mkdir()
    root.mkdir()
    (root / "out").symlink_to(tmp_path / "root2")
    (root / "up").symlink_to("..")
    with pytest.raises(ValueError, match="leads out of the folder") as caught:
        inside(root, name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["a\x00b", "a" * 5000, "ring"])
def test_what_is_no_name_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    try:
        path = inside(tmp_path, name)
    except ValueError as error:
        assert "is not a file name" in str(error) or "leads out" in str(error)
    else:
        assert tmp_path.resolve() in path.parents


PIECES = st.sampled_from(["..", ".", "a", "b", "", "/", "~", "out", "é", "\\", "C:"])


@given(st.lists(PIECES, max_size=8))
def test_no_name_leads_out(parts: list[str]) -> None:
    root = Path("/nonexistent/root")
    try:
        path = inside(root, "/".join(parts))
    except ValueError:
        return
    assert os.path.commonpath([os.path.realpath(path), root]) == str(root)


# --- secrets --------------------------------------------------------------------------------------

HF = "hf_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3z"
SECRETS = [
    (HF, "[redacted]"),
    (f"runs/{HF}/x", "runs/[redacted]/x"),
    (f"https://huggingface.co/a/b?token={HF}", "https://huggingface.co/a/b?token=[redacted]"),
    ("https://me:pass@host/a/b", "https://[redacted]@host/a/b"),
    ("https://me:p:a@s@host/a@b", "https://[redacted]@host/a@b"),
    ("postgres://u:p@h:5/d", "postgres://[redacted]@h:5/d"),
    ("s3://AKIAIOSFODNN7EXAMPLE:x@bucket/y", "s3://[redacted]@bucket/y"),
    ("https://h/x?token=abc&page=2", "https://h/x?token=[redacted]&page=2"),
    ("https://h/x?page=2&access_token=abc#top", "https://h/x?page=2&access_token=[redacted]#top"),
    ("https://h/x?X-Amz-Signature=ab/c=&e=1", "https://h/x?X-Amz-Signature=[redacted]&e=1"),
    ("https://h/x?sv=1&sig=a%2Fb%3D", "https://h/x?sv=1&sig=[redacted]"),
    ("https://h/x?accessKey=abc", "https://h/x?accessKey=[redacted]"),
    ("AKIAIOSFODNN7EXAMPLE", "[redacted]"),
    ("AWS_SECRET_ACCESS_KEY=wJalr/XU+bPx=", "AWS_SECRET_ACCESS_KEY=[redacted]"),
    ("aws_secret_access_key = wJalr", "aws_secret_access_key=[redacted]"),
    ("password='abc'", "password=[redacted]'"),
    ("api_key=abc", "api_key=[redacted]"),
    ("Authorization: Bearer abcdefghijklmnop.q", "Authorization: Bearer [redacted]"),
    ("ghp_" + "a1B2" * 9, "[redacted]"),
    ("github_pat_" + "a1B2" * 9, "[redacted]"),
    ("glpat-" + "a1B2-" * 5, "[redacted]"),
    ("sk-ant-api03-" + "a1B2" * 9, "[redacted]"),
    ("sk-" + "a1B2" * 9, "[redacted]"),
    ("xoxb-1234567890-abcdef", "[redacted]"),
    ("AIza" + "a1B2-" * 7, "[redacted]"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-_9", "[redacted]"),
]


@pytest.mark.parametrize(("text", "expected"), SECRETS)
def test_a_secret_is_redacted(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected
    assert redact({"a": [text, {"b": (1, text)}]}) == {"a": [expected, {"b": (1, expected)}]}
    assert redact({text: 1}) == {expected: 1}


def test_a_field_called_password_is_redacted_whatever_it_holds() -> None:
    given = {"Password": "abc", "token": "x", "hf_token": "", "tokens": 5, "secret": None}
    assert redact(given) == given | {"Password": "[redacted]", "token": "[redacted]"}


NAMES = st.lists(
    st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0189_-. é", min_size=1, max_size=15), min_size=1
)


@given(NAMES, st.sampled_from(["", "/", "./", "~/", "C:\\", "https://host/", "s3://bucket/"]))
def test_ordinary_names_and_paths_are_never_changed(parts: list[str], start: str) -> None:
    path = start + "/".join(parts)
    assert redact(path) == path
    assert redact({path: [path, 1, None, 0.5, True]}) == {path: [path, 1, None, 0.5, True]}


@pytest.mark.parametrize(
    "text",
    [
        "Qwen/Qwen2.5-0.5B-Instruct",
        "runs/micro_tokens=4096/step-0001",
        "data/key=5/token=7.jsonl",
        "git@github.com:a/b.git",
        "s3://bucket/model@v1/x",
        "https://host/a@b?page=2&k=8",
        "task-specific-tokenizer-experiment-number",
        "hf_model_math_tokens_secret_password",
        "My password is a secret; the token ends here.",
        "a" * 40,
    ],
)
def test_what_only_looks_like_a_secret_is_kept(text: str) -> None:
    assert redact(text) == text


def test_settings_come_through_redaction_unchanged() -> None:
    settings = json.loads(json.dumps(RunConfig().to_json()))
    assert redact(settings) == settings
    assert redact({"a": (1, 2)}) == {"a": (1, 2)}


@posix
@pytest.mark.parametrize("piece", ["?", "sk-", "://", "&key", "eyJa", "a", "hf_", "password "])
def test_redaction_ends_on_any_long_text(piece: str) -> None:
    def give_up(*_: Any) -> None:
        raise AssertionError("still at it")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)  # a quadratic pattern takes many minutes, ours less than a second
    try:
        assert redact(piece * 300_000) == piece * 300_000
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("https://me:pass@host/a/b", "https://[redacted]@host/a/b"),
        (f"someone/{HF}", "someone/[redacted]"),
    ],
)
def test_a_policys_name_with_a_secret_is_refused_without_showing_it(name: str, shown: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_policy(name)
    assert str(caught.value) == (
        f"{shown} holds a password or token; give the plain name, and the token by `hf auth login` "
        "or HF_TOKEN."
    )
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_a_cards_settings_show_no_secret(tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_policy(tiny_policy(), run / "policy")
    config = RunConfig(task=f"https://me:pass@host/a.jsonl?token={HF}")
    write_run(config, run, "train")
    (run / "metrics.jsonl").write_text('{"step": 0}\n')
    export(str(run / "policy"), tmp_path / "card", run=run)
    card = (tmp_path / "card" / "README.md").read_text()
    assert "https://[redacted]@host/a.jsonl?token=[redacted]" in card
    assert "pass@" not in card and HF not in card


def test_latents_settings_show_no_secret(tmp_path: Path) -> None:
    steering = replace(new_steering(tiny_policy(), d_z=4), card={"source": f"x?token={HF}"})
    save_steering(steering, tmp_path / "latents")
    assert load_steering(tiny_policy(), tmp_path / "latents").card == {
        "source": "x?token=[redacted]"
    }


# --- any model text in files of records -----------------------------------------------------------


def trace_of(text: str) -> Trace:
    rollout = Rollout(
        ids=(7, 2),
        pieces=(text, "<|im_end|>"),
        entropies=(0.5, 0.25),
        logprobs=(-0.5, -0.25),
        logprobs_t1=(-0.5, -0.25),
        text=text,
        finished=True,
        reward=1.0,
    )
    return Trace(Question(text, text, text), (1, 5), (rollout, rollout), policy=text)


# Lone surrogates are no text to other readers; ours keep them (the last one).
TEXTS = [
    "",
    "\x00\x01\x7f",
    '"quoted" \'\\" \\n \\u0000',
    "a\nb\r\nc\rd\u2028e\u2029f\x85g\x0bh\x0ci\x1c",
    "=1+1,@x;-2\t+3",
    "\u202eabc\u202c \ufeff é 😀 \U0010ffff",
    "<|im_end|>\n<|im_start|>system\n{{ x }} {% y %}",
    "7" * 100_000,
    "\ud83d \udc00",
]


def test_any_text_is_read_back_from_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    traces = [trace_of(text) for text in TEXTS]
    write_traces(path, traces)
    assert list(read_traces(path)) == traces
    lines = path.read_text(encoding="ascii").splitlines()  # the strictest reader's lines
    assert len(lines) == len(TEXTS)
    assert [json.loads(line)["rollouts"][1]["text"] for line in lines] == TEXTS


@given(st.lists(st.text(st.characters(codec=None)), max_size=3))
def test_hypothesis_finds_no_text_that_is_lost(texts: list[str]) -> None:
    for text in texts:
        line = json.dumps(trace_of(text).to_json())
        assert "\n" not in line and line.isascii()
        assert Trace.from_json(json.loads(line)) == trace_of(text)


def test_pandas_and_datasets_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_traces(path, [trace_of(text) for text in TEXTS[:-1]])
    loaded = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    for rows in (list(loaded), pandas.read_json(path, lines=True).to_dict("records")):
        assert [row["rollouts"][0]["pieces"][0] for row in rows] == TEXTS[:-1]
        assert [row["question"]["answer"] for row in rows] == TEXTS[:-1]


def test_a_line_cut_off_by_a_kill_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    traces = [trace_of(text) for text in "abc"]
    write_traces(path, traces)
    whole = path.read_text(encoding="ascii")
    last = whole.rindex("\n", 0, -1) + 1
    for length in range(last + 1, len(whole) - 1, 37):
        path.write_text(whole[:length], encoding="ascii")
        reader = read_traces(path)
        assert [next(reader), next(reader)] == traces[:2]
        with pytest.raises(ValueError) as caught:
            next(reader)
        assert str(caught.value) == (
            f"{path}, line 3: it is cut off, perhaps by a kill or a full disk; delete it to read "
            "the others."
        )
    path.write_text(whole[:-1], encoding="ascii")  # all of it but the end of the line
    assert list(read_traces(path)) == traces


def test_deeply_nested_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(ValueError, match=r"t\.jsonl, line 1: "):
        list(read_traces(path))


# --- the bundled folders --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BUNDLED, *(f"{n}-latents" for n in BUNDLED)])
def test_the_bundled_folders_are_what_they_were(name: str) -> None:
    check_sums(asset_path(name), bundled=True)
    if not name.endswith("-latents"):
        check_weights(asset_path(name))
        assert (asset_path(name) / INSTRUCTION_FILE).is_file()
