"""Teach a small policy a task from scratch, by next-token prediction.

It learns from written solutions, before reinforcement learning. This makes the bundled base policy
(`scripts/`), and you can train the single-product warm-up in minutes. Packing, mixed precision,
compilation and several devices are deliberately left out: 0.8M parameters on a CPU need none.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from i2b_lpo.config import PretrainConfig
from i2b_lpo.tasks.loading import load_examples
from i2b_lpo.tasks.shop import shop_examples
from i2b_lpo.tasks.task import Example

__all__ = ["build_model", "build_tokenizer", "pretrain"]

# Qwen's pre-tokenizer: one token per digit, words with their leading space.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _examples(config: PretrainConfig, rng: random.Random) -> Iterator[Example]:
    """Endless (question, any solution, solution by habit) of the train split."""
    shop = partial(shop_examples, share=config.shop_share)
    return (shop if config.task == "shop" else load_examples(config.task))(rng)


def build_tokenizer(config: PretrainConfig, vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """Byte-level BPE like Qwen's: each word of the task is one token, and any text can be spelt."""
    examples = _examples(config, random.Random(config.seed))
    texts = [text for _ in range(3000) for text in ("user\n", "assistant\n", *next(examples))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,  # 512 is more than it finds: every word becomes one token
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights, small enough for a laptop (0.84M parameters)."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def _documents(
    tokenizer: PreTrainedTokenizerFast, config: PretrainConfig, rng: random.Random
) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Token ids of (prompt, any solution, solution by habit)."""
    for question, anyhow, habitual in _examples(config, rng):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        head, *tails = (
            tokenizer.encode(text, add_special_tokens=False)
            for text in (prompt, anyhow + tokenizer.eos_token, habitual + tokenizer.eos_token)
        )
        yield head, tails[0], tails[1]


def _batches(
    tokenizer: PreTrainedTokenizerFast, config: PretrainConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """Right-padded (ids, labels), both (B, T); documents of similar length share a batch."""
    rng = random.Random(config.seed)
    documents = _documents(tokenizer, config, rng)
    step = 0
    while True:
        by_habit = step >= config.habit_from * config.steps
        pool = [(d[0], d[2] if by_habit else d[1]) for d in itertools.islice(documents, 512)]
        pool.sort(key=lambda d: len(d[0]) + len(d[1]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for document in pool:
            # Sorted, so this document is the longest of its group.
            if (len(groups[-1]) + 1) * (len(document[0]) + len(document[1])) > config.tokens:
                groups.append([])
            groups[-1].append(document)
        groups.pop()  # it isn't full: the few longest documents of the pool are left out
        rng.shuffle(groups)
        for group in groups:
            width = max(len(head) + len(tail) for head, tail in group)
            ids = torch.full((len(group), width), tokenizer.pad_token_id)
            labels = torch.full((len(group), width), -100)
            for row, (head, tail) in enumerate(group):
                end = len(head) + len(tail)
                ids[row, :end] = torch.tensor(head + tail)
                labels[row, len(head) : end] = torch.tensor(tail)
            yield ids, labels
            step += 1


def pretrain(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: PretrainConfig,
    *,
    every: int = 250,
    report: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train `model` in place; return the loss of each step (nats per solution token).

    The loss stays near 1.5 for a few hundred steps and then drops: count steps, not minutes.
    `report(step, mean loss of the last `every` steps)` is called along the way.
    """
    # Right padding needs no attention mask: no real token can see a later one.
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=config.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]

    def rate(step: int) -> float:
        rising = (step + 1) / max(1.0, config.warmup * config.steps)
        falling = (config.steps - step) / max(1.0, config.decay * config.steps)
        return min(1.0, rising, falling)

    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, rate) for o in optimizers]
    losses: list[float] = []
    model.train()
    batches = _batches(tokenizer, config)
    for step in tqdm(range(config.steps), desc="pretrain", unit="step", mininterval=2.0):
        ids, labels = next(batches)
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
        wanted = labels[:, 1:]
        logits = model.lm_head(hidden[wanted != -100])
        loss = F.cross_entropy(logits, wanted[wanted != -100])
        if not loss.isfinite():
            raise FloatingPointError(f"Loss is {loss.item()} at step {step}; lower the rates.")
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if report is not None and (step + 1) % every == 0:
            report(step + 1, sum(losses[-every:]) / every)
    model.train(False)
    return losses
