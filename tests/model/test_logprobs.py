"""Chunked log-prob and entropy against dense float64 autograd, alone and inside a policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

import i2b_lpo.model.logprobs
from i2b_lpo.method.entropy import token_entropy
from i2b_lpo.model.logprobs import chunked_logprobs, policy_logprobs

N, D, V, VOCAB = 13, 6, 20, 17


def dense(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, vocab: int
) -> tuple[Tensor, Tensor]:
    """The definition, with every logit at hand."""
    logits = (hidden @ weight.T)[:, :vocab]
    logp = (logits / temperature).log_softmax(-1)[torch.arange(len(ids)), ids]
    log_p = logits.log_softmax(-1)
    return logp, -(log_p.exp() * log_p).sum(-1)


def problem(dtype: torch.dtype = torch.float64, rows: int = N) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(rows, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    ids = torch.randint(VOCAB, (rows,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), ids


def assert_relative(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


# --- the chunked function -------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 4 * VOCAB, 2**24])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize(("on_logp", "on_entropy"), [(1.0, 0.3), (1.0, None), (None, 1.0)])
def test_values_and_both_gradients_equal_dense(
    chunk: int, temperature: float, on_logp: float | None, on_entropy: float | None
) -> None:
    hidden, weight, ids = problem()
    row_weights = torch.linspace(-1.0, 2.0, N, dtype=torch.float64)

    def gradients(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        parts = [
            (factor * row_weights * output).sum()
            for factor, output in zip((on_logp, on_entropy), outputs, strict=True)
            if factor is not None
        ]
        return torch.autograd.grad(torch.stack(parts).sum(), (hidden, weight))

    expected = dense(hidden, weight, ids, temperature, VOCAB)
    actual = chunked_logprobs(
        hidden, weight, ids, temperature=temperature, vocab_size=VOCAB, chunk=chunk
    )
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for got, want in zip(gradients(actual), gradients(expected), strict=True):
        assert_relative(got, want, 1e-10)


def test_gradcheck_of_both_outputs() -> None:
    hidden, weight, ids = problem(rows=4)

    def outputs(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        return chunked_logprobs(h, w, ids, temperature=0.8, vocab_size=VOCAB, chunk=3 * VOCAB)

    assert torch.autograd.gradcheck(outputs, (hidden, weight))


def test_second_derivatives_are_refused() -> None:
    hidden, weight, ids = problem()
    _, entropy = chunked_logprobs(hidden, weight, ids, vocab_size=VOCAB)
    (gradient,) = torch.autograd.grad(entropy.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        gradient.sum().backward()


def test_entropy_is_token_entropy_at_temperature_one() -> None:
    hidden, weight, ids = problem()
    _, entropy = chunked_logprobs(hidden, weight, ids, temperature=0.5, vocab_size=VOCAB)
    torch.testing.assert_close(entropy, token_entropy(hidden @ weight.T, VOCAB))


def test_padded_ids_have_no_part() -> None:
    hidden, weight, ids = problem()
    other = weight.detach().clone()
    other[VOCAB:] = 1e3
    other.requires_grad_()
    first = chunked_logprobs(hidden, weight, ids, vocab_size=VOCAB)
    second = chunked_logprobs(hidden, other, ids, vocab_size=VOCAB)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    (second[0] + second[1]).sum().backward()
    assert other.grad is not None
    assert other.grad[VOCAB:].count_nonzero() == 0
    assert other.grad[:VOCAB].count_nonzero() > 0


def test_all_ids_count_without_vocab_size() -> None:
    hidden, weight, _ = problem()
    ids = torch.full((N,), V - 1)
    for got, want in zip(
        chunked_logprobs(hidden, weight, ids), dense(hidden, weight, ids, 1.0, V), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_side_gets_no_gradient(frozen: str) -> None:
    hidden, weight, ids = problem()
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    logp, entropy = chunked_logprobs(hidden, weight, ids, vocab_size=VOCAB)
    (logp + entropy).sum().backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (weight.grad is None) == (frozen == "weight")


def test_no_rows() -> None:
    hidden, weight, ids = problem(rows=0)
    logp, entropy = chunked_logprobs(hidden, weight, ids, vocab_size=VOCAB)
    assert logp.shape == entropy.shape == (0,)
    (logp.sum() + entropy.sum()).backward()
    assert weight.grad is not None
    assert weight.grad.count_nonzero() == 0


def test_bfloat16_is_computed_in_float32_after_the_product() -> None:
    hidden, weight, ids = problem(torch.bfloat16)
    logp, entropy = chunked_logprobs(hidden, weight, ids, temperature=0.7, vocab_size=VOCAB)
    assert logp.dtype == entropy.dtype == torch.float32
    logits = (hidden @ weight.T)[:, :VOCAB].detach().float()
    expected = (logits / 0.7).log_softmax(-1)[torch.arange(N), ids]
    torch.testing.assert_close(logp, expected)
    torch.testing.assert_close(entropy, token_entropy(logits))


def test_bfloat16_weight_gradient_is_summed_in_float32() -> None:
    hidden, weight, ids = problem(torch.bfloat16, rows=600)
    logp, _ = chunked_logprobs(hidden, weight, ids, vocab_size=VOCAB, chunk=1)
    logp.sum().backward()
    double = weight.detach().double().requires_grad_()
    dense(hidden.detach().double(), double, ids, 1.0, VOCAB)[0].sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert double.grad is not None
    assert_relative(weight.grad.double(), double.grad, 0.006)  # bfloat16 rounds by up to 0.004


def test_autocast_is_ignored() -> None:
    hidden, weight, ids = problem(torch.float32)

    def outputs() -> tuple[Tensor, ...]:
        logp, entropy = chunked_logprobs(hidden, weight, ids, vocab_size=VOCAB)
        return logp, entropy, *torch.autograd.grad((logp + entropy).sum(), (hidden, weight))

    plain = outputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = outputs()
    assert all(torch.equal(a, b) for a, b in zip(plain, mixed, strict=True))


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_never_holds_all_logits() -> None:
    hidden, weight, ids = problem(rows=400)
    saved: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    chunk = 50 * VOCAB
    with (
        LargestTensor() as largest,  # type: ignore[no-untyped-call]
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        logp, entropy = chunked_logprobs(
            hidden, weight, ids, temperature=0.7, vocab_size=VOCAB, chunk=chunk
        )
        (logp + entropy).sum().backward()
    inputs = max(hidden.numel(), weight.numel())
    assert saved
    assert max(saved) <= inputs
    assert largest.elements <= max(chunk, inputs) < ids.numel() * VOCAB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, w, i: dict(ids=i.clone().index_fill_(0, torch.tensor([2]), VOCAB)), "0..16"),
        (lambda h, w, i: dict(ids=i - VOCAB), "every id"),
        (lambda h, w, i: dict(ids=i.float()), "integers"),
        (lambda h, w, i: dict(ids=i[1:]), "shapes"),
        (lambda h, w, i: dict(hidden=h[None]), "shapes"),
        (lambda h, w, i: dict(weight=w[:, 1:]), "shapes"),
        (lambda h, w, i: dict(weight=w.float()), "one floating dtype"),
        (lambda h, w, i: dict(temperature=0.0), "temperature"),
        (lambda h, w, i: dict(temperature=float("nan")), "temperature"),
        (lambda h, w, i: dict(vocab_size=V + 1), "vocab_size"),
        (lambda h, w, i: dict(vocab_size=0), "vocab_size"),
        (lambda h, w, i: dict(chunk=0), "chunk"),
    ],
)
def test_bad_input(change: Callable[..., dict[str, Any]], message: str) -> None:
    hidden, weight, ids = problem()
    arguments: dict[str, Any] = dict(hidden=hidden, weight=weight, ids=ids, vocab_size=VOCAB)
    with pytest.raises(ValueError, match=message):
        chunked_logprobs(**(arguments | change(hidden, weight, ids)))


# --- inside a policy ------------------------------------------------------------------------------

TEXT_VOCAB = 50
LENGTHS = ((4, 5), (2, 7), (6, 1))  # prompt and new tokens of each sequence
ATOL = 1e-10


def tiny_policy(family: str, tied: bool) -> Any:
    settings: dict[str, Any] = dict(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    torch.manual_seed(11)
    if family == "qwen2":
        settings.pop("head_dim")
        model: Any = Qwen2ForCausalLM(Qwen2Config(**settings))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**settings))
    return model.double().eval()


def batch(side: str, extra: int = 0) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    """Sequences padded on one side with real-looking ids; returns ids, masks and the sequences."""
    generator = torch.Generator().manual_seed(5)
    width = max(sum(pair) for pair in LENGTHS) + extra
    shape = (len(LENGTHS), width)
    ids = torch.randint(TEXT_VOCAB, shape, generator=generator)
    attention, new = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    sequences = []
    content = torch.Generator().manual_seed(6)
    for row, (prompt, answer) in enumerate(LENGTHS):
        start = width - prompt - answer if side == "left" else 0
        tokens = torch.randint(TEXT_VOCAB, (prompt + answer,), generator=content)
        ids[row, start : start + prompt + answer] = tokens
        attention[row, start : start + prompt + answer] = 1
        new[row, start + prompt : start + prompt + answer] = 1
        sequences.append(tokens.tolist())
    return ids, attention, new, sequences


def one_by_one(model: Any, sequences: list[list[int]], temperature: float) -> tuple[Tensor, Tensor]:
    """Every sequence alone, unpadded, with all logits: new tokens' log-probs and entropies."""
    logps, entropies = [], []
    for tokens, (prompt, _) in zip(sequences, LENGTHS, strict=True):
        logits = model(torch.tensor([tokens])).logits[0, prompt - 1 : -1, :TEXT_VOCAB].double()
        for row, token in zip(logits, tokens[prompt:], strict=True):
            logps.append((row / temperature).log_softmax(-1)[token])
            entropies.append(-(row.softmax(-1) * row.log_softmax(-1)).sum())
    return torch.stack(logps), torch.stack(entropies)


def parameter_gradients(model: Any, logp: Tensor, entropy: Tensor) -> dict[str, Tensor]:
    weights = torch.linspace(-1.0, 2.0, len(logp), dtype=logp.dtype)
    model.zero_grad()
    (weights * logp + 0.1 * weights.flip(0) * entropy).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_policy_equals_each_sequence_alone(family: str, tied: bool, side: str) -> None:
    model = tiny_policy(family, tied)
    ids, attention, new, sequences = batch(side)
    expected = one_by_one(model, sequences, 0.9)
    logp, entropy = policy_logprobs(
        model, ids, attention, new, temperature=0.9, vocab_size=TEXT_VOCAB, chunk=3 * TEXT_VOCAB
    )
    assert logp.shape == entropy.shape == ids.shape
    assert logp[new == 0].count_nonzero() == entropy[new == 0].count_nonzero() == 0
    counted = new.bool()
    torch.testing.assert_close(logp[counted], expected[0], rtol=0, atol=ATOL)
    torch.testing.assert_close(entropy[counted], expected[1], rtol=0, atol=ATOL)
    got = parameter_gradients(model, logp[counted], entropy[counted])
    want = parameter_gradients(model, *one_by_one(model, sequences, 0.9))
    assert got.keys() == want.keys() == dict(model.named_parameters()).keys()
    for name in want:
        assert_relative(got[name], want[name], ATOL)


def test_more_padding_changes_nothing() -> None:
    model = tiny_policy("qwen3", True)
    results = []
    for side, extra in (("right", 0), ("right", 5), ("left", 5)):
        ids, attention, new, _ = batch(side, extra)
        logp, entropy = policy_logprobs(
            model, ids, attention, new, temperature=1.0, vocab_size=TEXT_VOCAB
        )
        results.append(torch.stack([logp[new.bool()], entropy[new.bool()]]))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=ATOL)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=ATOL)


def test_padding_inside_the_prompt_is_skipped() -> None:
    model = tiny_policy("qwen3", True)
    settings: dict[str, Any] = dict(temperature=0.9, vocab_size=TEXT_VOCAB)
    ids, new = torch.tensor([[7, 3, 9, 4, 5]]), torch.tensor([[0, 0, 0, 1, 1]])
    expected = policy_logprobs(model, ids, torch.ones_like(ids), new, **settings)
    holed = torch.tensor([[7, 3, 11, 9, 4, 5]])
    got = policy_logprobs(
        model, holed, (holed != 11).long(), torch.tensor([[0, 0, 0, 0, 1, 1]]), **settings
    )
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a[:, 4:], b[:, 3:], rtol=0, atol=ATOL)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    ids, attention, new, _ = batch("left")
    gradients, passes = [], []
    for checkpointing in (False, True):
        model = tiny_policy("qwen3", True).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        passes.append(0)

        def count(*_: Any) -> None:
            passes[-1] += 1

        model.model.layers[0].mlp.register_forward_pre_hook(count)
        outputs = policy_logprobs(
            model, ids, attention, new, temperature=0.9, vocab_size=TEXT_VOCAB
        )
        gradients.append(parameter_gradients(model, *(o[new.bool()] for o in outputs)))
    assert passes == [1, 2]
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        assert_relative(gradients[1][name], expected, 1e-12)


def test_head_sees_only_rows_of_new_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def spy(hidden: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(hidden.shape))
        return chunked_logprobs(hidden, *args, **kwargs)

    monkeypatch.setattr(i2b_lpo.model.logprobs, "chunked_logprobs", spy)
    ids, attention, new, _ = batch("left", extra=4)
    ids[attention == 0] = 63  # padding may hold ids beyond the vocabulary
    policy_logprobs(
        tiny_policy("qwen2", True), ids, attention, new, temperature=1.0, vocab_size=TEXT_VOCAB
    )
    assert shapes == [(sum(answer for _, answer in LENGTHS), 32)]


def test_bool_masks_serve_as_well() -> None:
    model = tiny_policy("qwen3", False)
    ids, attention, new, _ = batch("left")
    settings: dict[str, Any] = dict(temperature=0.9, vocab_size=TEXT_VOCAB)
    first = policy_logprobs(model, ids, attention, new, **settings)
    second = policy_logprobs(model, ids, attention.bool(), new.bool(), **settings)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    ("side", "column"),
    [("right", 0), ("right", sum(LENGTHS[0])), ("left", 3), ("left", 2)],
    ids=["first column", "padding on the right", "first token", "padding on the left"],
)
def test_new_token_without_context_or_on_padding(side: str, column: int) -> None:
    ids, attention, new, _ = batch(side, extra=3)
    new[0, column] = 1
    with pytest.raises(ValueError, match="completion_mask marks"):
        policy_logprobs(
            tiny_policy("qwen3", True), ids, attention, new, temperature=1.0, vocab_size=TEXT_VOCAB
        )


def test_id_beyond_the_vocabulary() -> None:
    ids, attention, new, _ = batch("right")
    ids[0, 5] = TEXT_VOCAB
    with pytest.raises(ValueError, match=r"every id must be in 0\.\.49"):
        policy_logprobs(
            tiny_policy("qwen3", True), ids, attention, new, temperature=1.0, vocab_size=TEXT_VOCAB
        )


def test_shapes_must_agree() -> None:
    ids, attention, new, _ = batch("right")
    with pytest.raises(ValueError, match="share one shape"):
        policy_logprobs(
            tiny_policy("qwen3", True), ids, attention[:, 1:], new, temperature=1.0, vocab_size=50
        )


def test_head_that_is_more_than_a_matrix_is_refused() -> None:
    ids, attention, new, _ = batch("right")
    settings: dict[str, Any] = dict(temperature=1.0, vocab_size=TEXT_VOCAB)
    model = tiny_policy("qwen3", False)
    handle = model.lm_head.register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(ValueError, match="hooks"):
        policy_logprobs(model, ids, attention, new, **settings)
    handle.remove()
    model.lm_head.bias = nn.Parameter(torch.ones(64, dtype=torch.float64))
    with pytest.raises(ValueError, match="without bias"):
        policy_logprobs(model, ids, attention, new, **settings)
