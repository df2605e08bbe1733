"""Checks of exercise set 04, PSA."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from checks.exercise import exercise

Case = tuple[Any, ...]
Rotate = Callable[[Tensor, Tensor], Tensor]

# --- 1: log γ(s) ---------------------------------------------------------------------------------


def _strengths() -> list[Case]:
    since = torch.tensor([-2, -1, 0, 1, 2, 8, 3000])
    return [(since, 0.5, 2.0), (since, 1.0, 8.0), (since[:4], 0.0, 4.0)]


@exercise(_strengths)
def log_strength(since: Tensor, gamma_0: float, s_0: float) -> Tensor:
    found = [
        -math.inf if s < 0 or gamma_0 == 0 else math.log(gamma_0) - s / s_0 for s in since.tolist()
    ]
    return torch.tensor(found)


def _where_open(since: Tensor, values: Tensor) -> Tensor:
    return torch.where(since < 0, torch.tensor(-math.inf), values)


def _log(gamma_0: float) -> float:
    return math.log(gamma_0) if gamma_0 else -math.inf


@log_strength.mistake("this is γ itself; return log γ, which goes into the slot's score.")
def not_the_log(since: Tensor, gamma_0: float, s_0: float) -> Tensor:
    return torch.where(since < 0, torch.tensor(0.0), gamma_0 * torch.exp(-since / s_0))


@log_strength.mistake(
    "γ doesn't decay: after the fork it depends on s. A constant γ keeps pushing in every line."
)
def constant(since: Tensor, gamma_0: float, s_0: float) -> Tensor:
    return _where_open(since, torch.full(since.shape, _log(gamma_0)))


@log_strength.mistake(
    "rows before the fork are open, and with s < 0 even wider than the fork's: their log γ is −∞."
)
def open_before(since: Tensor, gamma_0: float, s_0: float) -> Tensor:
    return _log(gamma_0) - since / s_0


@log_strength.mistake(
    "s = 0 is closed too. It is the row that draws the first token after the fork, the one that z "
    "is for."
)
def fork_closed(since: Tensor, gamma_0: float, s_0: float) -> Tensor:
    return (_log(gamma_0) - since / s_0).masked_fill(since <= 0, -math.inf)


@log_strength.mistake("s is counted from 1: at the fork, s = 0, all of γ_0 acts.")
def from_one(since: Tensor, gamma_0: float, s_0: float) -> Tensor:
    return _where_open(since, _log(gamma_0) - (since + 1) / s_0)


@log_strength.mistake("s_0 isn't a half-life: γ falls by the factor e in s_0 tokens, not by 2.")
def half_life(since: Tensor, gamma_0: float, s_0: float) -> Tensor:
    return _where_open(since, _log(gamma_0) - math.log(2) * since / s_0)


@log_strength.mistake("γ_0 = 0 ends in an error: math.log(0) has no value. The answer is −∞.")
def zero_refused(since: Tensor, gamma_0: float, s_0: float) -> Tensor:
    return _where_open(since, math.log(gamma_0) - since / s_0)


@log_strength.mistake(
    "far from the fork γ is so small that it became 0 before you took its logarithm: compute "
    "log γ_0 − s/s_0 instead."
)
def log_of_product(since: Tensor, gamma_0: float, s_0: float) -> Tensor:
    return _where_open(since, (gamma_0 * torch.exp(-since / s_0)).log())


# --- 2: attention with the slot ------------------------------------------------------------------


def _heads() -> list[Case]:
    chance = torch.Generator().manual_seed(4)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance, dtype=torch.float64)

    def head(tokens: int, size: int, gamma: float) -> Case:
        q, k_z, v_z = numbers(size), numbers(size), numbers(size)
        log_gamma = torch.tensor(gamma, dtype=torch.float64).log()
        return q, numbers(tokens, size), numbers(tokens, size), k_z, v_z, log_gamma

    return [head(3, 4, 0.5), head(5, 9, 0.1), head(2, 16, 1.0), head(4, 4, 0.0)]


def _attend(query: Tensor, keys: Tensor, values: Tensor, slot: Tensor, value_z: Tensor) -> Tensor:
    """Attention whose slot has the score `slot`."""
    scores = torch.stack([slot, *(query @ k / len(query) ** 0.5 for k in keys)])
    weights = scores.softmax(0)
    return weights[0] * value_z + weights[1:] @ values


def _score(query: Tensor, key_z: Tensor) -> Tensor:
    return query @ key_z / len(query) ** 0.5


@exercise(_heads)
def attend(
    query: Tensor, keys: Tensor, values: Tensor, key_z: Tensor, value_z: Tensor, log_gamma: Tensor
) -> Tensor:
    return _attend(query, keys, values, _score(query, key_z) + log_gamma, value_z)


@attend.mistake("log γ is missing: the slot is fully open, however small γ is.")
def forgotten(
    query: Tensor, keys: Tensor, values: Tensor, key_z: Tensor, value_z: Tensor, log_gamma: Tensor
) -> Tensor:
    return _attend(query, keys, values, _score(query, key_z), value_z)


@attend.mistake(
    "γ scales the slot's score (or k_z). It has to scale its weight: with γ → 0 the score becomes "
    "0, and exp(0) = 1 is still a weight."
)
def score_scaled(
    query: Tensor, keys: Tensor, values: Tensor, key_z: Tensor, value_z: Tensor, log_gamma: Tensor
) -> Tensor:
    return _attend(query, keys, values, _score(query, key_z) * log_gamma.exp(), value_z)


@attend.mistake(
    "γ scales z, so k_z and v_z: the slot says less, but it never closes, and what it takes from "
    "the tokens is lost."
)
def z_scaled(
    query: Tensor, keys: Tensor, values: Tensor, key_z: Tensor, value_z: Tensor, log_gamma: Tensor
) -> Tensor:
    gamma = log_gamma.exp()
    return _attend(query, keys, values, _score(query, gamma * key_z), gamma * value_z)


@attend.mistake(
    "γ scales v_z, or the slot's weight after the softmax, which is the same: the tokens don't get "
    "back what the slot no longer takes. Put log γ into the score."
)
def value_scaled(
    query: Tensor, keys: Tensor, values: Tensor, key_z: Tensor, value_z: Tensor, log_gamma: Tensor
) -> Tensor:
    return _attend(query, keys, values, _score(query, key_z), log_gamma.exp() * value_z)


@attend.mistake("γ itself is added to the score; add log γ, which becomes the factor γ in exp.")
def gamma_added(
    query: Tensor, keys: Tensor, values: Tensor, key_z: Tensor, value_z: Tensor, log_gamma: Tensor
) -> Tensor:
    return _attend(query, keys, values, _score(query, key_z) + log_gamma.exp(), value_z)


@attend.mistake("log γ is divided by √d too: then γ acts as γ^(1/√d). Add it after the division.")
def log_gamma_scaled(
    query: Tensor, keys: Tensor, values: Tensor, key_z: Tensor, value_z: Tensor, log_gamma: Tensor
) -> Tensor:
    slot = (query @ key_z + log_gamma) / len(query) ** 0.5
    return _attend(query, keys, values, slot, value_z)


@attend.mistake("the slot's score isn't divided by √d, as those of the tokens are.")
def slot_not_divided(
    query: Tensor, keys: Tensor, values: Tensor, key_z: Tensor, value_z: Tensor, log_gamma: Tensor
) -> Tensor:
    return _attend(query, keys, values, query @ key_z + log_gamma, value_z)


@attend.mistake(
    "the slot's weight is outside the softmax of the tokens, and all weights sum to more than 1: "
    "one softmax runs over [slot; tokens]."
)
def two_softmaxes(
    query: Tensor, keys: Tensor, values: Tensor, key_z: Tensor, value_z: Tensor, log_gamma: Tensor
) -> Tensor:
    scores = keys @ query / len(query) ** 0.5
    gate = (_score(query, key_z) + log_gamma - scores.logsumexp(0)).sigmoid()
    return scores.softmax(0) @ values + gate * value_z


# --- 3: the slot's place -------------------------------------------------------------------------


class _Rope:
    """Turns each pair of numbers by an angle that grows with the position."""

    def __call__(self, keys: Tensor, positions: Tensor) -> Tensor:
        half = keys.shape[1] // 2
        speed = 10.0 ** -torch.arange(half, dtype=keys.dtype)
        angle = positions[:, None].to(keys.dtype) * speed  # (T, half)
        x, y = keys[:, :half], keys[:, half:]
        turned = x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()
        return torch.cat(turned, -1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rope)

    def __repr__(self) -> str:
        return "rope"


def _columns() -> list[Case]:
    chance = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(size, generator=chance, dtype=torch.float64),
            torch.randn(tokens, size, generator=chance, dtype=torch.float64),
            _Rope(),
        )
        for tokens, size in ((5, 4), (3, 6), (2, 2))
    ]


@exercise(_columns)
def key_columns(key_z: Tensor, keys: Tensor, rope: Rotate) -> Tensor:
    return torch.stack([key_z, *rope(keys, torch.arange(len(keys)))])


@key_columns.mistake(
    "the slot is counted as a token: column 1 holds token 0, and token 0 stays at position 0. "
    "Nothing raises an error, but every key is one position too far."
)
def counted(key_z: Tensor, keys: Tensor, rope: Rotate) -> Tensor:
    return rope(torch.cat([key_z[None], keys]), torch.arange(len(keys) + 1))


@key_columns.mistake(
    "the slot gets a rotary position, that of the row after the last token. z has no place in the "
    "text: k_z stays as it is."
)
def slot_turned(key_z: Tensor, keys: Tensor, rope: Rotate) -> Tensor:
    last = torch.tensor([len(keys)])
    return torch.cat([rope(key_z[None], last), rope(keys, torch.arange(len(keys)))])


@key_columns.mistake(
    "the slot gets the rotary position of the last token. z has no place in the text: k_z stays as "
    "it is."
)
def slot_turned_as_last(key_z: Tensor, keys: Tensor, rope: Rotate) -> Tensor:
    last = torch.tensor([len(keys) - 1])
    return torch.cat([rope(key_z[None], last), rope(keys, torch.arange(len(keys)))])


@key_columns.mistake("the tokens got no rotary position: only the slot goes without.")
def tokens_not_turned(key_z: Tensor, keys: Tensor, rope: Rotate) -> Tensor:
    return torch.cat([key_z[None], keys])


@key_columns.mistake("the slot is last. Make it column 0, so that new tokens can be appended.")
def slot_last(key_z: Tensor, keys: Tensor, rope: Rotate) -> Tensor:
    return torch.cat([rope(keys, torch.arange(len(keys))), key_z[None]])


@key_columns.mistake("the slot is missing: it is an extra column, in front of the tokens'.")
def no_slot(key_z: Tensor, keys: Tensor, rope: Rotate) -> Tensor:
    return rope(keys, torch.arange(len(keys)))


# --- 4: which rows are read with z ---------------------------------------------------------------


def _branches() -> list[Case]:
    return [(66, 4), (5, 1), (12, 7)]


Plan = tuple[int, list[int], list[int]]


@exercise(_branches)
def rows_with_z(p: int, n: int) -> Plan:
    rows = [p - 1 + s for s in range(n)]
    return p - 1, rows, list(range(n))


@rows_with_z.mistake(
    "the fork's row is missed: token p is predicted by row p − 1. Crop there and read token p − 1 "
    "again, or the decision is drawn without z."
)
def fork_row_missed(p: int, n: int) -> Plan:
    return p, list(range(p, p + n)), list(range(n))


@rows_with_z.mistake(
    "the fork's row is missed, and s starts at 1: crop at p − 1, read token p − 1 again, and there "
    "s = 0."
)
def fork_row_missed_from_one(p: int, n: int) -> Plan:
    return p, list(range(p, p + n)), list(range(1, n + 1))


@rows_with_z.mistake(
    "token p − 1 is in the cache twice: it was also read without z. Crop to p − 1 tokens first."
)
def read_twice(p: int, n: int) -> Plan:
    return p, list(range(p - 1, p - 1 + n)), list(range(n))


@rows_with_z.mistake(
    "the slot is counted as a token: the row of token p − 1 stays at position p − 1, although it "
    "is in column p."
)
def slot_counted(p: int, n: int) -> Plan:
    return p - 1, list(range(p, p + n)), list(range(n))


@rows_with_z.mistake("s starts at 1: the row that draws the first token has s = 0.")
def s_from_one(p: int, n: int) -> Plan:
    return p - 1, list(range(p - 1, p - 1 + n)), list(range(1, n + 1))


@rows_with_z.mistake("s is 0 in every row, so γ never decays: s keeps counting from the fork.")
def s_stays(p: int, n: int) -> Plan:
    return p - 1, list(range(p - 1, p - 1 + n)), [0] * n


@rows_with_z.mistake(
    "one row too many: the last token drawn needs no row of its own, since nothing follows it."
)
def row_too_many(p: int, n: int) -> Plan:
    return p - 1, list(range(p - 1, p + n)), list(range(n + 1))


@rows_with_z.mistake("one row too few: n tokens are drawn, each from its own row.")
def row_too_few(p: int, n: int) -> Plan:
    return p - 1, list(range(p - 1, p + n - 2)), list(range(n - 1))


# --- 5: variety and obedience --------------------------------------------------------------------

Scores = tuple[list[int], list[float]]


def _sets() -> list[Case]:
    names = {"Round", "Split", "Factor", "Guess"}
    six = [
        ["Round", "Round", "Factor", "Split"],
        ["Split", "Split", "Split", "Split"],
        ["Guess", "is", "Factor", "Round"],
    ]
    return [
        (six, ["Round", "Factor", "Factor", "Guess"], names),
        ([["Split", "the"], ["Guess", "Split"]], ["Split", "Guess"], names),
        ([["a", "b", "b"]], ["Round", "Round", "Guess"], names),
    ]


@exercise(_sets)
def set_scores(words: list[list[str]], asked: list[str], strategies: set[str]) -> Scores:
    distinct = [len({w for w in row if w in strategies}) for row in words]
    agree = [sum(w == a for w, a in zip(row, asked, strict=True)) / len(row) for row in words]
    return distinct, agree


@set_scores.mistake(
    "words that name no strategy are counted too: noise would look like variety. Count only "
    "strategies."
)
def any_word(words: list[list[str]], asked: list[str], strategies: set[str]) -> Scores:
    return [len(set(row)) for row in words], set_scores.right(words, asked, strategies)[1]


@set_scores.mistake("a strategy that is said twice is counted twice: count different ones.")
def repeats(words: list[list[str]], asked: list[str], strategies: set[str]) -> Scores:
    counted = [sum(w in strategies for w in row) for row in words]
    return counted, set_scores.right(words, asked, strategies)[1]


@set_scores.mistake(
    "the sets are pooled before counting: many sets of one word each would pass for variety. Count "
    "in each set of K."
)
def pooled(words: list[list[str]], asked: list[str], strategies: set[str]) -> Scores:
    said = {w for row in words for w in row} & strategies
    return [len(said)] * len(words), set_scores.right(words, asked, strategies)[1]


@set_scores.mistake(
    "a branch counts as obedient if any branch of its set says the word. Each z asks its own "
    "branch: compare them one by one."
)
def any_branch(words: list[list[str]], asked: list[str], strategies: set[str]) -> Scores:
    found = [sum(a in row for a in asked) / len(row) for row in words]
    return set_scores.right(words, asked, strategies)[0], found


@set_scores.mistake("the second list holds counts: divide by K, the size of a set.")
def counts(words: list[list[str]], asked: list[str], strategies: set[str]) -> Scores:
    distinct, agree = set_scores.right(words, asked, strategies)
    return distinct, [len(asked) * share for share in agree]


@set_scores.mistake("the two lists are in the wrong order: variety comes first.")
def swapped(words: list[list[str]], asked: list[str], strategies: set[str]) -> Any:
    return set_scores.right(words, asked, strategies)[::-1]
