"""Loading, wrapping and saving policies; what is refused, and with which words."""

from __future__ import annotations

import builtins
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import PADDING, tiny_policy, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import i2b_lpo.model.policy
from i2b_lpo.model.decoding import decode
from i2b_lpo.model.policy import (
    BUNDLED,
    Policy,
    asset_path,
    load_policy,
    make_policy,
    save_policy,
)
from i2b_lpo.model.sampling import Sampling
from i2b_lpo.tasks.loading import load_task
from i2b_lpo.tasks.maths import BOXED_INSTRUCTION
from i2b_lpo.trace import Question

QUESTION = "What is 23*14?"


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=torch.tensor([ids])).logits
    return out


# --- from a folder and back -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
@pytest.mark.parametrize("padded", [True, False])
def test_a_saved_policy_loads_as_it_was(kind: str, padded: bool, tmp_path: Path) -> None:
    policy = tiny_policy(kind, padded)
    save_policy(policy, tmp_path / "p")
    loaded = load_policy(tmp_path / "p")
    prompt = loaded.prompt_ids(QUESTION)
    assert torch.equal(logits(policy.model, prompt), logits(loaded.model, prompt))
    assert loaded.vocab_size == policy.vocab_size == len(policy.tokenizer)
    assert loaded.model.config.vocab_size == len(policy.tokenizer) + PADDING * padded
    assert (loaded.eos_ids, loaded.pad_id) == (policy.eos_ids, policy.pad_id)
    assert loaded.name == str(tmp_path / "p")
    assert loaded.device == torch.device("cpu")
    assert not loaded.model.training
    for text in (QUESTION, "Mia buys 7 pens\n\\boxed{1}", "é😀"):
        assert loaded.tokenizer.encode(text) == policy.tokenizer.encode(text)


def test_plain_transformers_loads_a_saved_policy(saved: Path) -> None:
    policy = tiny_policy()
    model = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    prompt = policy.prompt_ids(QUESTION)
    assert torch.equal(logits(model, prompt), logits(policy.model, prompt))
    messages = [{"role": "user", "content": QUESTION}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.encode(text, add_special_tokens=False) == prompt


def test_weights_are_saved_in_the_models_own_dtype(tmp_path: Path) -> None:
    policy = tiny_policy(dtype=torch.bfloat16)
    save_policy(policy, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    loaded = load_policy(tmp_path)
    assert loaded.model.dtype == torch.float32, "a CPU computes in float32"
    assert load_policy(tmp_path, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight.float())


def test_a_saved_policy_keeps_its_instruction(tmp_path: Path) -> None:
    # Otherwise a policy trained without one is asked differently from its first reload on.
    for instruction in ("", "Answer in French."):
        policy = make_policy(
            tiny_policy().model, tiny_tokenizer(), name="x", instruction=instruction
        )
        save_policy(policy, tmp_path / "p")
        loaded = load_policy(tmp_path / "p")
        assert loaded.prompt_ids(QUESTION) == policy.prompt_ids(QUESTION)


def test_a_foreign_policy_is_asked_for_a_box(saved: Path) -> None:
    for file in saved.iterdir():  # leave what any Hugging Face folder has
        if file.name not in FOREIGN:
            file.unlink()
    policy = load_policy(saved)
    assert policy.instruction == BOXED_INSTRUCTION
    text = policy.tokenizer.decode(policy.prompt_ids("What is 1+1?"))
    assert text == (
        f"<|im_start|>user\nWhat is 1+1?\n\n{BOXED_INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert load_policy(saved, instruction="Guess.").instruction == "Guess."


FOREIGN = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def test_a_folder_may_be_relative_or_start_in_the_home(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    monkeypatch.setenv("HOME", str(saved.parent))
    for name in ("policy", "./policy", "~/policy"):
        assert load_policy(name).vocab_size == len(tiny_tokenizer())


# --- prompts and text -----------------------------------------------------------------------------


def test_a_prompt_without_instruction_is_the_question_alone() -> None:
    policy = tiny_policy()
    assert policy.instruction == ""
    ids = policy.prompt_ids(QUESTION)
    assert ids == policy.tokenizer.encode(
        f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert all(isinstance(i, int) for i in ids)
    questions = [Question(str(i), text, "1") for i, text in enumerate((QUESTION, "hi"))]
    assert policy.prompts(questions) == [ids, policy.prompt_ids("hi")]


def test_the_prompt_gets_no_second_start_token() -> None:
    # The template writes every special token; what a tokenizer adds by itself comes on top.
    policy = tiny_policy()
    plain = policy.prompt_ids(QUESTION)
    policy.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert policy.tokenizer.encode(QUESTION)[0] == 0
    assert policy.prompt_ids(QUESTION) == plain


def test_thinking_is_switched_off_where_the_template_knows_it() -> None:
    policy = tiny_policy()
    policy.tokenizer.chat_template = (
        "{{ messages[0]['content'] }}"
        "{% if enable_thinking is defined and enable_thinking is false %}[no thinking]{% endif %}"
    )
    assert policy.text(policy.prompt_ids("hi")) == "hi[no thinking]"


def test_text_leaves_out_special_tokens_and_pieces_show_them() -> None:
    policy = tiny_policy()
    ids = policy.tokenizer.encode("Split 14\n23*10=230<|im_end|>")
    assert policy.text(ids) == "Split 14\n23*10=230"
    pieces = policy.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == "Split 14\n23*10=230<|im_end|>"
    assert pieces[-1] == "<|im_end|>"
    assert policy.pieces([]) == ()
    assert policy.text([]) == ""


# --- wrapping -------------------------------------------------------------------------------------


def base_policy() -> Policy:
    """As Qwen2.5's base models come: nothing but the template names the end of a turn."""
    model, tokenizer = tiny_policy().model, tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return make_policy(model, tokenizer, name="base")


def test_what_the_template_writes_after_an_assistants_turn_ends_a_generation() -> None:
    policy = base_policy()
    ends = policy.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert policy.eos_ids == tuple(sorted(ends))
    prompt, end = policy.prompt_ids(QUESTION), ends[1]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # so that the policy says little else
        policy.model.get_input_embeddings().weight[end] *= 6
    decoded = decode(policy, [prompt], Sampling(40), rollouts=64, generator=generator)
    rows = zip(decoded.ids.tolist(), decoded.lengths.tolist(), strict=True)
    after = [row[row.index(end) + 1 : n] for row, n in rows if end in row[:n]]
    assert len(after) > 3 and not any(after), "it wrote on after its turn"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}{{ m.content }} {{ eos_token }}{% endfor %}", {0}),
        ("{% for m in messages %}{{ m.content }}\n<|im_end|>\n{% endfor %}", {0, 2}),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\nuser: {% endfor %}", {0}),
        ("<|im_start|>{{ messages[0].content }}", {0}),
        ("{% if messages[1:] %}{{ raise_exception('one turn') }}{% endif %}", {0}),
    ],
)
def test_only_a_special_token_right_after_the_turn_ends_it(
    template: str, expected: set[int]
) -> None:
    model, tokenizer = tiny_policy().model, tiny_tokenizer()
    tokenizer.eos_token, tokenizer.chat_template = "<|endoftext|>", template
    model.generation_config.eos_token_id = None
    assert set(make_policy(model, tokenizer, name="x").eos_ids) == expected


@pytest.mark.parametrize(
    ("listed", "expected"), [(7, {2, 7}), ([0, 7], {0, 2, 7}), (2, {2}), (None, {2})]
)
def test_end_tokens_come_from_tokenizer_and_generation_config(
    listed: int | list[int] | None, expected: set[int], tmp_path: Path
) -> None:
    model, tokenizer = tiny_policy().model, tiny_tokenizer()
    assert tokenizer.eos_token_id == 2
    model.generation_config.eos_token_id = listed
    policy = make_policy(model, tokenizer, name="x")
    assert policy.eos_ids == tuple(sorted(expected))
    save_policy(policy, tmp_path)
    assert load_policy(tmp_path).eos_ids == policy.eos_ids


def test_a_tokenizer_without_padding_pads_with_its_end_token() -> None:
    tokenizer = tiny_tokenizer()
    assert make_policy(tiny_policy().model, tokenizer, name="x").pad_id == tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert make_policy(tiny_policy().model, tokenizer, name="x").pad_id == tokenizer.eos_token_id


def without_template(tokenizer: Any) -> None:
    tokenizer.chat_template = None


def without_end(tokenizer: Any) -> None:
    tokenizer.eos_token = None


def with_more_ids(tokenizer: Any) -> None:
    tokenizer.add_tokens([f"<{i}>" for i in range(PADDING + 1)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_template, "mine has no chat template"),
        (without_end, "mine has no end token"),
        (with_more_ids, "mine: the tokenizer has 321 ids but the model only 320"),
    ],
)
def test_a_tokenizer_that_lacks_something_is_refused(
    change: Callable[[Any], None], message: str
) -> None:
    tokenizer = tiny_tokenizer()
    change(tokenizer)
    with pytest.raises(ValueError, match=message):
        make_policy(tiny_policy().model, tokenizer, name="mine")


def test_a_tokenizer_may_fill_the_embedding_to_the_last_row() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(PADDING)])
    assert make_policy(tiny_policy().model, tokenizer, name="x").vocab_size == 320


def test_a_saved_tokenizer_without_template_is_refused(foreign: Path) -> None:
    (foreign / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        load_policy(foreign)


# --- what can't be loaded -------------------------------------------------------------------------


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    small: dict[str, Any] = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, **small)).save_pretrained(
        tmp_path / "gpt2"
    )
    llama = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, **small
    )
    LlamaForCausalLM(llama).save_pretrained(tmp_path / "llama")
    for kind in ("gpt2", "llama"):
        with pytest.raises(ValueError, match=f"is a {kind} model.*Qwen2 and Qwen3"):
            load_policy(tmp_path / kind)


@pytest.mark.parametrize(
    "name",
    [
        "./no-such-folder",
        "../no-such-folder",
        "~/no-such-folder",
        "runs/no/such/folder",
        "no-such-owner/no-such-model",
        "tiny_base",
        "",
    ],
)
def test_an_unknown_name_gives_one_sentence_that_says_what_to_do(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="give a") as caught:
        load_policy(name)
    message = str(caught.value)
    assert "tiny-base, tiny-grpo" in message
    assert "\n" not in message
    assert name in message


def cut_the_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])


def drop_one_weight(folder: Path) -> None:
    # transformers fills it with random numbers and goes on.
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def reshape_one_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def drop_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_the_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def break_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        cut_the_weights,
        drop_one_weight,
        reshape_one_weight,
        drop_the_weights,
        break_the_config,
        break_the_tokenizer,
    ],
)
@pytest.mark.parametrize("summed", [True, False])
def test_a_damaged_folder_is_refused_in_one_sentence(
    damage: Callable[[Path], None], summed: bool, saved: Path
) -> None:
    load_policy(saved)
    damage(saved)
    if not summed:
        (saved / "sha256.json").unlink()
    with pytest.raises(
        ValueError, match="not the file that was|missing" if summed else "load|weights"
    ) as caught:
        load_policy(saved)
    assert str(saved) in str(caught.value)
    assert re.search("copy|give", str(caught.value)), "it must say what to do"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["qwen3", "not_a_known_kind"])
def test_remote_code_is_neither_run_nor_offered(
    kind: str, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = foreign
    added = {
        "config.json": {
            "model_type": kind,
            "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        },
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.Words", "evil.Words"]}},
        "generation_config.json": {"custom_generate": "evil.py", "trust_remote_code": True},
    }
    for file, entries in added.items():
        entries = json.loads((saved / file).read_text(encoding="utf-8")) | entries
        (saved / file).write_text(json.dumps(entries), encoding="utf-8")
    ran = saved.parent / "ran"
    (saved / "evil.py").write_text(
        "from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM\n"
        f"open({str(ran)!r}, 'w')\n"
        "class Config(Qwen3Config): pass\n"
        "class Words(PreTrainedTokenizerFast): pass\n"
        "class Model(Qwen3ForCausalLM): pass\n",
        encoding="utf-8",
    )
    asked: list[str] = []

    def answer_yes(prompt: str = "") -> str:
        asked.append(prompt)
        return "y"

    monkeypatch.setattr(builtins, "input", answer_yes)
    if kind == "qwen3":
        assert type(load_policy(saved).model).__module__.startswith("transformers.")
    else:
        with pytest.raises(ValueError, match="Can't load"):
            load_policy(saved)
    assert not asked, "the user was offered to run remote code"
    assert not ran.exists(), "remote code ran"


# --- bundled policies -----------------------------------------------------------------------------


def write_sums(folder: Path) -> None:
    sums = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.name != "sha256.json"
    }
    (folder / "sha256.json").write_text(json.dumps(sums), encoding="utf-8")


@pytest.fixture
def pretended(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for every bundled one."""
    write_sums(saved)
    monkeypatch.setattr(i2b_lpo.model.policy, "asset_path", lambda _name: saved)
    return saved


def test_a_bundled_policy_has_its_short_name_and_no_instruction(pretended: Path) -> None:
    policy = load_policy("tiny-base")
    assert (policy.name, policy.instruction) == ("tiny-base", "")
    assert load_policy("tiny-grpo", instruction="Hm.").instruction == "Hm."


def flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip_one_bit, Path.unlink])
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_damaged_bundled_file_is_named_before_anything_is_loaded(
    file: str, damage: Callable[[Path], None], pretended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any, **_settings: Any) -> None:
        raise AssertionError("loaded before the sums were compared")

    for auto in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        monkeypatch.setattr(getattr(i2b_lpo.model.policy, auto), "from_pretrained", refuse)
    damage(pretended / file)
    with pytest.raises(ValueError, match=f"{file} is damaged.*reinstall the package"):
        load_policy("tiny-base")


def test_missing_sums_mean_a_damaged_package(pretended: Path) -> None:
    (pretended / "sha256.json").unlink()
    with pytest.raises(ValueError, match=r"sha256\.json.*reinstall the package"):
        load_policy("tiny-base")


def test_a_bundled_name_wins_over_a_folder_of_that_name(
    pretended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pretended, "tiny-base")
    (pretended / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="damaged"):
        load_policy("tiny-base")


@pytest.mark.parametrize("name", BUNDLED)
def test_every_bundled_file_that_is_read_has_a_sum(name: str) -> None:
    folder = asset_path(name)
    summed = set(json.loads((folder / "sha256.json").read_text(encoding="utf-8")))
    described = {"README.md", "evaluation.json", "sha256.json", "training.json"}
    assert {file.name for file in folder.iterdir()} - described == summed


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_policy_writes_solutions_of_its_task(name: str) -> None:
    policy: Policy = load_policy(name)
    assert {w.dtype for w in load_file(asset_path(name) / "model.safetensors").values()} == {
        torch.bfloat16
    }
    assert policy.model.dtype == torch.float32
    assert policy.instruction == ""
    assert policy.tokenizer.decode(policy.eos_ids) == "<|im_end|>"
    task = load_task("shop")
    questions = task.questions("validation", 16, seed=0)
    decoded = decode(policy, policy.prompts(questions), Sampling(120, temperature=0))
    well_formed = 0
    for question, row, length in zip(questions, decoded.ids, decoded.lengths, strict=True):
        labels = task.label(question, policy.text(row[:length].tolist()))
        well_formed += labels is not None and labels.well_formed
    assert decoded.finished.sum() >= 12
    assert well_formed >= 12
