"""Load a policy: a Qwen2 / Qwen3 causal language model with its tokenizer and prompt form.

The bundled policies have short names; anything else is a folder or a Hugging Face hub name, loaded
by the ordinary `AutoModelForCausalLM` / `AutoTokenizer`. Remote code is never run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from i2b_lpo.trace import Question

__all__ = [
    "BOXED_INSTRUCTION",
    "BUNDLED",
    "Policy",
    "asset_path",
    "check_sums",
    "load_policy",
    "make_policy",
    "save_policy",
    "write_sums",
]

BUNDLED = {
    "tiny-base": "the bundled policy before reinforcement learning",
    "tiny-grpo": "the same policy after GRPO to its plateau (collapsed)",
}
BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""What Qwen's own model cards ask for in mathematics; the bundled policies need no instruction."""

ARCHITECTURES = ("qwen2", "qwen3")
INSTRUCTION_FILE = "instruction.txt"  # beside the weights, so that a saved policy is asked alike


@dataclass(frozen=True)
class Policy:
    """A model with all that is needed to prompt it and to read what it writes.

    Attributes:
        vocab_size: `len(tokenizer)`. Qwen pads the embedding matrix beyond it; ids from here on
            count as −∞ in decoding, log-prob and entropy alike.
        eos_ids: tokens that end a trajectory.
        instruction: appended to each question, after a blank line; "" for none.
    """

    name: str
    model: Any  # PreTrainedModel; typed loosely because transformers ships no complete stubs
    tokenizer: Any
    vocab_size: int
    eos_ids: tuple[int, ...]
    pad_id: int
    instruction: str = ""

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return torch.device(self.model.device)

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids of the chat prompt for `question`, ready for the first new token."""
        content = f"{question}\n\n{self.instruction}" if self.instruction else question
        # Text first, then ids: `apply_chat_template(tokenize=True)` returns different types by
        # version. `enable_thinking` is read by Qwen3's template and ignored by the others.
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=False,
        )
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def prompts(self, questions: Iterable[Question]) -> list[list[int]]:
        """`prompt_ids` of each question."""
        return [self.prompt_ids(question.text) for question in questions]

    def text(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The text of each token by itself, special tokens included."""
        return tuple(self.tokenizer.decode([i]) for i in ids)


def asset_path(name: str) -> Path:
    """The folder of a bundled asset."""
    return Path(str(resources.files("i2b_lpo"))) / "assets" / name


def check_sums(folder: Path) -> None:
    """Compare every file named in `sha256.json` with its sum, before anything is loaded."""
    sums = folder / "sha256.json"
    if not sums.is_file():
        raise ValueError(f"The bundled file {sums} is missing; install the package again.")
    for file, expected in json.loads(sums.read_text(encoding="utf-8")).items():
        path = folder / file
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        if found != expected:
            raise ValueError(
                f"The bundled file {path} is damaged ({found[:12]} is not {expected[:12]}); "
                "install the package again."
            )


def write_sums(folder: Path, files: Iterable[str]) -> None:
    """Write the `sha256.json` that `check_sums` compares with."""
    sums = {f: hashlib.sha256((folder / f).read_bytes()).hexdigest() for f in files}
    (folder / "sha256.json").write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def load_policy(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    instruction: str | None = None,
) -> Policy:
    """Load a policy by bundled name, folder or Hugging Face hub name.

    Args:
        name: `tiny-base`, `tiny-grpo`, a folder in Hugging Face format, or e.g.
            `Qwen/Qwen2.5-0.5B-Instruct`.
        device: where to put it.
        dtype: default float32 on a CPU (also for the bundled weights, stored in bfloat16), else
            bfloat16.
        instruction: default none for the bundled policies, `BOXED_INSTRUCTION` for all others.

    Raises:
        ValueError: unknown name, another architecture than Qwen2 / Qwen3, a damaged bundled file,
            or a tokenizer without chat template or end token.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, or torch was built without it
        raise ValueError(f"This machine has no device {str(device)!r}; give cpu.") from error
    name = str(name)
    bundled = name in BUNDLED
    source = asset_path(name) if bundled else Path(name).expanduser()
    if bundled:
        check_sums(source)
    elif not source.is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise ValueError(
            f"No folder {name}; give an existing folder, a hub name, or a bundled policy "
            f"({', '.join(BUNDLED)})."
        )
    where = str(source) if source.is_dir() else name
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Can't load a policy from {name!r}; give a bundled policy ({', '.join(BUNDLED)}), a "
            "folder in Hugging Face format, or a hub name that this machine can reach."
        ) from error
    if config.model_type not in ARCHITECTURES:
        raise ValueError(
            f"{name} is a {config.model_type} model; this package works inside Qwen2 and Qwen3 "
            "models only, choose one of those."
        )
    device = torch.device(device)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, report = loaded
        if report["missing_keys"]:  # transformers fills them with random numbers
            raise ValueError(f"no weights for {min(report['missing_keys'])}")
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        first, *_ = str(error).splitlines()
        raise ValueError(f"Can't load {name} ({first}); copy or download it again.") from error
    saved = source / INSTRUCTION_FILE
    if instruction is None and saved.is_file():
        instruction = saved.read_text(encoding="utf-8")
    if instruction is None:
        instruction = "" if bundled else BOXED_INSTRUCTION
    return make_policy(model.to(device).eval(), tokenizer, name=name, instruction=instruction)


def save_policy(policy: Policy, folder: str | Path) -> None:
    """Write model and tokenizer as an ordinary Hugging Face folder, in the model's own dtype."""
    policy.model.save_pretrained(folder)
    (Path(folder) / INSTRUCTION_FILE).write_text(policy.instruction, encoding="utf-8")
    policy.tokenizer.save_pretrained(folder)


def make_policy(model: Any, tokenizer: Any, *, name: str, instruction: str = "") -> Policy:
    """Wrap a loaded model and tokenizer; raises ValueError where one lacks what is needed."""
    if tokenizer.chat_template is None:
        raise ValueError(
            f"The tokenizer of {name} has no chat template; use an instruct model, or "
            "set tokenizer.chat_template before training."
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(f"The tokenizer of {name} has no end token; set tokenizer.eos_token.")
    if len(tokenizer) > model.get_output_embeddings().weight.shape[0]:
        raise ValueError(
            f"{name}: the tokenizer has {len(tokenizer)} ids but the model only "
            f"{model.get_output_embeddings().weight.shape[0]}; the two don't belong together."
        )
    generation = model.generation_config.eos_token_id
    listed = generation if isinstance(generation, list) else [generation]
    eos_ids = {tokenizer.eos_token_id, *(i for i in listed if i is not None)}
    pad_id = tokenizer.pad_token_id
    return Policy(
        name=name,
        model=model,
        tokenizer=tokenizer,
        vocab_size=len(tokenizer),
        eos_ids=tuple(sorted(eos_ids)),
        pad_id=tokenizer.eos_token_id if pad_id is None else pad_id,
        instruction=instruction,
    )
