"""Load a policy: a Qwen2 / Qwen3 causal language model with its tokenizer and prompt form.

The bundled policies have short names; anything else is a folder or a Hugging Face hub name, loaded
with the ordinary `AutoModelForCausalLM` / `AutoTokenizer`. Remote code is never run.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from i2b_lpo.infra.files import inside
from i2b_lpo.infra.secrets import redact
from i2b_lpo.infra.weights import check_sums, check_weights, replaced
from i2b_lpo.tasks.domains import domain_named
from i2b_lpo.tasks.maths import BOXED_INSTRUCTION
from i2b_lpo.trace import Question

__all__ = [
    "BUNDLED",
    "Policy",
    "asset_path",
    "check_finite",
    "load_policy",
    "make_policy",
    "save_policy",
]

BUNDLED = {
    "tiny-base": "the bundled policy before reinforcement learning",
    "tiny-grpo": "the same policy after GRPO to its plateau (collapsed)",
}
"""The policies that come with the package, and what each is."""

ARCHITECTURES = ("qwen2", "qwen3")
INSTRUCTION_FILE = "instruction.txt"  # stored with the weights: a saved policy is asked alike
_PLACE = "\ue000"  # a private character that no template writes


@dataclass(frozen=True)
class Policy:
    """A model with everything needed to prompt it and to read what it writes.

    Attributes:
        vocab_size: `len(tokenizer)`. Qwen pads the embedding matrix beyond it; ids from here on
            count as −∞ in decoding, log-prob and entropy alike.
        eos_ids: tokens that end a trajectory: the tokenizer's, the generation config's, and what
            the chat template writes after an assistant's turn. Base models need the last: Qwen2.5's
            end a turn with ``<|im_end|>``, which neither of the others names.
        instruction: appended to each question, after a blank line; "" for none. The default,
            `BOXED_INSTRUCTION`, is for mathematics: questions of another domain get their own.
        warned: past warnings, so that each is given once.
    """

    name: str
    model: Any  # PreTrainedModel; typed loosely because transformers ships no complete stubs
    tokenizer: Any
    vocab_size: int
    eos_ids: tuple[int, ...]
    pad_id: int
    instruction: str = ""
    warned: list[str] = field(default_factory=list, repr=False, compare=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    def prompt_ids(self, question: str | Question) -> list[int]:
        """Token ids of the chat prompt for `question`, ready for the first new token.

        A bare text is a question of mathematics.

        A question is plain text: if it contains something that reads as a special token, such as
        ``<|im_end|>``, its characters are encoded, so that it can't end its turn or open another.
        Added tokens that aren't special, such as Qwen3's ``<think>``, do neither and stay tokens.

        Raises:
            ValueError: the tokenizer can't encode those characters, or the chat template doesn't
                write the question as it is.
        """
        instruction = self.instruction
        if isinstance(question, Question):
            if instruction == BOXED_INSTRUCTION:
                instruction = domain_named(question.domain).instruction
            question = question.text
        content = f"{question}\n\n{instruction}" if instruction else question
        prompt = self._rendered(content)
        if not self._special_in(content):
            return self._encoded(prompt)
        head, _, tail = self._rendered(_PLACE).partition(_PLACE)
        written = prompt[len(head) : len(prompt) - len(tail)]
        ids = self._encoded(written, split_special_tokens=True)
        told, kept = (
            "".join(self.tokenizer.decode(i).split()) for i in (self._encoded(written), ids)
        )
        if head + written + tail != prompt or self._special_ids().intersection(ids) or told != kept:
            raise ValueError(
                f"{self.name} can't be given {question[:60]!r} as plain text: it holds special "
                "tokens of its tokenizer; drop the question."
            )
        return [*self._encoded(head), *ids, *self._encoded(tail)]

    def prompts(self, questions: Iterable[Question], *, max_new_tokens: int = 0) -> list[list[int]]:
        """`prompt_ids` of each question; warns once about questions with special tokens.

        Raises:
            ValueError: a prompt with `max_new_tokens` after it exceeds the model's positions, or
                as `prompt_ids`.
        """
        asked = list(questions)
        marked = [question.id for question in asked if self._special_in(question.text)]
        if marked and not self.warned:
            self.warned.append("special tokens")
            warnings.warn(
                f"{len(marked)} of {len(asked)} questions, first {marked[0]}, contain special "
                f"tokens of {self.name}'s tokenizer; it gets these, here and in later questions, "
                "as plain text.",
                stacklevel=2,
            )
        prompts = [self.prompt_ids(question) for question in asked]
        room = self.model.config.max_position_embeddings
        for question, prompt in zip(asked, prompts, strict=True):
            if len(prompt) + max_new_tokens > room:
                raise ValueError(
                    f"The prompt of question {question.id} has {len(prompt)} tokens; with "
                    f"{max_new_tokens} new ones it exceeds the {room} positions of {self.name}; "
                    "shorten one of them, or leave such questions out with "
                    "--set rollout.max_prompt_tokens=N."
                )
        return prompts

    def _rendered(self, content: str) -> str:
        # Text first, then ids: `apply_chat_template(tokenize=True)` returns different types by
        # version. `enable_thinking` is read by Qwen3's template and ignored by the others.
        return str(
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=False,
                enable_thinking=False,
            )
        )

    def _encoded(self, text: str, **settings: Any) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False, **settings))

    def _special_ids(self) -> set[int]:
        added = self.tokenizer.added_tokens_decoder.items()
        return {i for i, token in added if token.special} - {self.tokenizer.unk_token_id}

    def _special_in(self, text: str) -> bool:
        return not self._special_ids().isdisjoint(self._encoded(text))

    def text(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The text of each single token, special tokens included."""
        return tuple(self.tokenizer.decode([i]) for i in ids)


def asset_path(name: str) -> Path:
    """The folder of a bundled asset."""
    return Path(str(resources.files("i2b_lpo"))) / "assets" / name


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
        instruction: default none for the bundled policies, for all others `BOXED_INSTRUCTION`,
            which stands for what the domain of a question asks for.

    Raises:
        ValueError: unknown name, an architecture other than Qwen2 / Qwen3, weights that are
            damaged, pickled, not finite or not those that were saved, or a tokenizer without chat
            template or end token.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, or torch was built without it
        raise ValueError(f"This machine has no device {str(device)!r}; give cpu.") from error
    name = str(name)
    bundled = name in BUNDLED
    source = asset_path(name) if bundled else Path(name).expanduser()
    local = source.is_dir()
    if not local and (shown := redact(name)) != name:
        raise ValueError(
            f"{shown} holds a password or token; give the plain name, and the token by `hf auth "
            "login` or HF_TOKEN."
        )
    if not local and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise ValueError(
            f"No folder {name}; give an existing folder, a hub name, or a bundled policy "
            f"({', '.join(BUNDLED)})."
        )
    if local:
        check_sums(source, bundled=bundled)
    where = str(source) if local else name
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    except Exception as error:  # a strange config makes transformers raise anything
        raise ValueError(
            f"Can't load a policy from {name!r}; give a bundled policy ({', '.join(BUNDLED)}), a "
            "folder in Hugging Face format, or a hub name that this machine can reach."
        ) from error
    if config.model_type not in ARCHITECTURES:
        raise ValueError(
            f"{name} is a {config.model_type} model; this package works inside Qwen2 and Qwen3 "
            "models only, choose one of those."
        )
    if local:
        check_weights(source)
    # A config can name a kernel on the hub as its attention, which would be fetched and run.
    config._attn_implementation = "sdpa"
    device = torch.device(device)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, report = loaded
        if report["missing_keys"]:  # transformers fills them with random numbers
            raise ValueError(f"no weights for {min(report['missing_keys'])}")
        check_finite(model.state_dict())
    except Exception as error:  # as above
        first, *_ = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"Can't load {name} ({first}); copy or download it again.") from error
    saved = source / INSTRUCTION_FILE
    if instruction is None and saved.is_file():
        instruction = saved.read_text(encoding="utf-8")
    if instruction is None:
        instruction = "" if bundled else BOXED_INSTRUCTION
    return make_policy(model.to(device).eval(), tokenizer, name=name, instruction=instruction)


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError that names the first tensor with a NaN or an infinity."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinite weights")


def save_policy(
    policy: Policy, folder: str | Path, *, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write model and tokenizer as an ordinary Hugging Face folder, in the model's own dtype.

    The folder is written atomically: an earlier policy in it is replaced, other files are kept.
    `weights` replaces the model's own if these are sharded.

    Raises:
        ValueError: `folder` holds files but no saved policy.
        OSError: it can't be written, e.g. the disk is full; what was there is intact.
    """
    with replaced(folder, mark=INSTRUCTION_FILE) as part:
        templates = policy.tokenizer.chat_template
        for name in templates if isinstance(templates, dict) else ():  # each becomes a file
            inside(folder, f"{name}.jinja")
        policy.model.save_pretrained(part, state_dict=weights and dict(weights))
        (part / INSTRUCTION_FILE).write_text(policy.instruction, encoding="utf-8")
        policy.tokenizer.save_pretrained(part)


def _turn_end(tokenizer: Any) -> set[int]:
    """The special token that the chat template writes straight after an assistant's turn, if any.

    A template without assistant turns has none.
    """
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PLACE}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, enable_thinking=False))
    except Exception:  # a template is code that may raise anything; it needs no assistant's turn
        return set()
    _, found, tail = text.rpartition(_PLACE)
    if not found:
        return set()
    first = tokenizer.encode(tail.lstrip(), add_special_tokens=False)[:1]
    added = tokenizer.added_tokens_decoder
    return {i for i in first if i in added and added[i].special}


def make_policy(model: Any, tokenizer: Any, *, name: str, instruction: str = "") -> Policy:
    """Wrap a loaded model and tokenizer; raises ValueError if either lacks something needed."""
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
    eos_ids |= _turn_end(tokenizer)
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
