"""Checks of exercise set 05, the information bottleneck."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from checks.exercise import exercise

Case = tuple[Any, ...]

# --- 1: the reasoning without its box ------------------------------------------------------------


def _solutions() -> list[Case]:
    return [
        ("Split 37\n322+222=544\n\\boxed{544}",),
        ("40*6=240\n\\boxed{240}\nno, 322+222=544\n\\boxed{544}",),
        ("322+222=544\n\\boxed{544}\nSo it is 544.",),
        ("322+222=544",),
        ("\\boxed{544}",),
    ]


@exercise(_solutions)
def before_box(text: str) -> str:
    return text.rpartition("\\boxed")[0] if "\\boxed" in text else text


@before_box.mistake(
    "the box is left in: then the policy copies the answer, and a bare guess in a box looks like a "
    "derivation."
)
def box_left_in(text: str) -> str:
    return text


@before_box.mistake(
    "it is cut at the first box. The last one holds the verified answer, and the text between the "
    "two is reasoning."
)
def first_box(text: str) -> str:
    return text.partition("\\boxed")[0]


@before_box.mistake(
    "the text after the box is kept, and may repeat the answer: cut at the box and drop the rest."
)
def rest_kept(text: str) -> str:
    at = text.rfind("\\boxed")
    return text if at < 0 else text[:at] + text[text.index("}", at) + 1 :]


@before_box.mistake("all boxes are removed, but the text after the last one is kept.")
def all_taken_out(text: str) -> str:
    return re.sub(r"\\boxed\{.*?\}", "", text)


@before_box.mistake(
    "the frame \\boxed{ is left at the end. It is scored together with the answer: cut before it."
)
def frame_left(text: str) -> str:
    at = text.rfind("\\boxed{")
    return text if at < 0 else text[: at + len("\\boxed{")]


@before_box.mistake(
    "a text without a box lost its last character: rfind gives −1, and text[:-1] raises no error."
)
def last_character(text: str) -> str:
    return text[: text.rfind("\\boxed")]


@before_box.mistake("nothing is left of a text without a box. But it has reasoned: keep all of it.")
def nothing_left(text: str) -> str:
    return text.rpartition("\\boxed")[0]


@before_box.mistake(
    "the line break before the box is gone too: keep every character before the box."
)
def stripped(text: str) -> str:
    return str(before_box.right(text)).rstrip()


# --- 2: what it tells about the answer -----------------------------------------------------------


def _answers() -> list[Case]:
    return [
        ([-0.1, -0.2, -0.05, -0.4], [-9.0, -7.0, -8.0, -6.0]),
        ([-3.0, -1.0], [-0.5, -2.5]),
        ([0.0, 0.0, 0.0], [-1.0, -2.0, -0.3]),
        ([-2.0, -0.1, -4.0], [-1.0, -0.2, -0.4]),
    ]


def _root(logps: list[float]) -> float:
    """π(a)^(1/|a|)."""
    return math.exp(sum(logps) / len(logps))


@exercise(_answers)
def told(after: list[float], before: list[float]) -> float:
    return _root(after) - _root(before)


@told.mistake(
    "no length normalisation: this is π(a), a product that shrinks with every digit, so a question "
    "with a long answer would score lower. Take its |a|-th root."
)
def not_normalised(after: list[float], before: list[float]) -> float:
    return math.exp(sum(after)) - math.exp(sum(before))


@told.mistake(
    "this is the mean of the tokens' probabilities. Return the |a|-th root of their product: the "
    "mean belongs inside the exponential, over log π."
)
def mean_of_pi(after: list[float], before: list[float]) -> float:
    means = [sum(map(math.exp, logps)) / len(logps) for logps in (after, before)]
    return means[0] - means[1]


@told.mistake(
    "this is in nats: a difference of log-probs. Then the difference between two hopeless "
    "solutions outweighs everything else; take exp of both first."
)
def in_nats(after: list[float], before: list[float]) -> float:
    return sum(after) / len(after) - sum(before) / len(before)


@told.mistake("this is in nats, and not even per answer token.")
def in_nats_sum(after: list[float], before: list[float]) -> float:
    return sum(after) - sum(before)


@told.mistake(
    "what the question alone tells isn't subtracted: an answer anybody would guess gets full marks."
)
def no_prior(after: list[float], before: list[float]) -> float:
    return _root(after)


@told.mistake("this is a ratio, which has no bound. Return the difference of the probabilities.")
def ratio(after: list[float], before: list[float]) -> float:
    return _root(after) / _root(before)


@told.mistake("the sign is wrong: what the solution tells is after minus before.")
def reversed_sign(after: list[float], before: list[float]) -> float:
    return _root(before) - _root(after)


# --- 3: what it costs ----------------------------------------------------------------------------


def _lengths() -> list[Case]:
    return [
        ([0.1, 0.0, 9.9, 0.2], 0.25, 8.0, 4.0),  # shorter than usual
        ([0.5] * 12, 0.1, 10.0, 4.0),  # longer
        ([5.0] * 30, 0.7, 12.0, 3.0),  # beyond E
        ([0.2, 0.3], 0.0, 2.0, 0.25),
    ]


MOST = 4.0


def _surprise(nats: list[float], kappa: float) -> float:
    return sum(min(x, kappa) for x in nats)


def _more(nats: list[float], t_ref: float) -> float:
    return max(0.0, len(nats) / t_ref - 1)


@exercise(_lengths)
def cost(nats: list[float], rep4: float, t_ref: float, kappa: float) -> float:
    return min(MOST, _surprise(nats, kappa) / t_ref + rep4 + _more(nats, t_ref))


@cost.mistake(
    "the surprise isn't cut off at κ: one odd token, such as a slip of 10 nats, outweighs all "
    "others."
)
def not_clipped(nats: list[float], rep4: float, t_ref: float, kappa: float) -> float:
    return min(MOST, sum(nats) / t_ref + rep4 + _more(nats, t_ref))


@cost.mistake(
    "κ clips the sum. It is the most that one token adds: take the minimum token by token."
)
def sum_clipped(nats: list[float], rep4: float, t_ref: float, kappa: float) -> float:
    return min(MOST, min(sum(nats), kappa) / t_ref + rep4 + _more(nats, t_ref))


@cost.mistake("the excess isn't cut off at E = 4: one endless loop decides every mean.")
def no_most(nats: list[float], rep4: float, t_ref: float, kappa: float) -> float:
    return _surprise(nats, kappa) / t_ref + rep4 + _more(nats, t_ref)


@cost.mistake(
    "nothing is cut off: neither a token at κ nor the excess at E = 4, so the cost has no bound."
)
def no_clip_at_all(nats: list[float], rep4: float, t_ref: float, kappa: float) -> float:
    return sum(nats) / t_ref + rep4 + _more(nats, t_ref)


@cost.mistake(
    "the surprise is divided by the trace's own T, so padding makes it look cheaper: the usual "
    "length T_ref is the same for all of a group."
)
def own_length(nats: list[float], rep4: float, t_ref: float, kappa: float) -> float:
    return min(MOST, _surprise(nats, kappa) / len(nats) + rep4 + _more(nats, t_ref))


@cost.mistake("the surprise isn't divided by T_ref, so every trace would reach E.")
def not_divided(nats: list[float], rep4: float, t_ref: float, kappa: float) -> float:
    return min(MOST, _surprise(nats, kappa) + rep4 + _more(nats, t_ref))


@cost.mistake(
    "a trace shorter than usual is rewarded for it: (…)₊ is 0 below 0, or silence would win."
)
def short_rewarded(nats: list[float], rep4: float, t_ref: float, kappa: float) -> float:
    return min(MOST, _surprise(nats, kappa) / t_ref + rep4 + len(nats) / t_ref - 1)


@cost.mistake("repetition doesn't count: a policy's own loops are cheap in nats and slip through.")
def no_repetition(nats: list[float], rep4: float, t_ref: float, kappa: float) -> float:
    return float(cost.right(nats, 0.0, t_ref, kappa))


@cost.mistake("length beyond the usual doesn't count: long and predictable padding would be free.")
def no_length(nats: list[float], rep4: float, t_ref: float, kappa: float) -> float:
    return min(MOST, _surprise(nats, kappa) / t_ref + rep4)


@cost.mistake("length is charged from the first token on: only what is beyond T_ref counts.")
def whole_length(nats: list[float], rep4: float, t_ref: float, kappa: float) -> float:
    return min(MOST, _surprise(nats, kappa) / t_ref + rep4 + len(nats) / t_ref)


# --- 4: the filter -------------------------------------------------------------------------------


def _trees() -> list[Case]:
    return [
        ([0.88, -0.14, -0.07, 0.94], [[1, 2, 3]], 2),
        ([-9.0, 0.5, 0.3, 0.2, 0.1, 0.9, 0.8, 0.7], [[2, 3, 4], [5, 6, 7]], 2),
        ([0.6, 0.9, 0.1, 0.2, 0.8, 0.5], [[2, 4], [3, 5]], 1),
        ([0.1, 0.9, 0.2], [[1, 2]], 3),
    ]


Sets = list[list[int]]


def _keep(scores: list[float], groups: Sets, n: int) -> list[bool]:
    """All kept but those below the n best of their group."""
    lost = {i for g in groups for i in sorted(g, key=lambda j: -scores[j])[n:]}
    return [i not in lost for i in range(len(scores))]


@exercise(_trees)
def keep_best(scores: list[float], sets: Sets, n: int) -> list[bool]:
    return _keep(scores, sets, n)


def _roots(scores: list[float], sets: Sets) -> list[int]:
    return [i for i in range(len(scores)) if all(i not in members for members in sets)]


@keep_best.mistake(
    "the roots are filtered too, each as a member of its set. They are exempt: only they train the "
    "prefix, and every branch hangs on one."
)
def roots_in_sets(scores: list[float], sets: Sets, n: int) -> list[bool]:
    roots = _roots(scores, sets)
    return _keep(scores, [[r, *members] for r, members in zip(roots, sets, strict=False)], n)


@keep_best.mistake(
    "the whole tree is one list, roots included. Rank each branch set separately, and leave the "
    "roots out of it."
)
def whole_tree(scores: list[float], sets: Sets, n: int) -> list[bool]:
    return _keep(scores, [list(range(len(scores)))], n * len(sets))


@keep_best.mistake(
    "all branches are one list: the easier prefix takes all places. Branches compete only with "
    "those that share their prefix."
)
def one_list(scores: list[float], sets: Sets, n: int) -> list[bool]:
    return _keep(scores, [[i for members in sets for i in members]], n * len(sets))


@keep_best.mistake("the roots are dropped. They are in no set and always kept.")
def roots_dropped(scores: list[float], sets: Sets, n: int) -> list[bool]:
    roots = _roots(scores, sets)
    return [kept and i not in roots for i, kept in enumerate(_keep(scores, sets, n))]


@keep_best.mistake("the lowest scores are kept: sorted() is ascending.")
def lowest(scores: list[float], sets: Sets, n: int) -> list[bool]:
    return _keep([-s for s in scores], sets, n)


@keep_best.mistake("N branches are dropped of each set; N is how many are kept.")
def n_dropped(scores: list[float], sets: Sets, n: int) -> list[bool]:
    lost = {i for members in sets for i in sorted(members, key=lambda j: scores[j])[:n]}
    return [i not in lost for i in range(len(scores))]


# --- 5: advantages and the filter ----------------------------------------------------------------


def _groups() -> list[Case]:
    def case(rewards: list[float], kept: list[int]) -> Case:
        flags = torch.tensor([i in kept for i in range(len(rewards))])
        return torch.tensor(rewards, dtype=torch.float64), flags

    return [
        case([1, 0, 0, 1], [0, 2, 3]),
        case([1, 0, 0, 1], [0, 3]),
        case([1, 1, 0, 0, 0, 1, 0, 0], [0, 1, 2, 3, 5, 6]),
        case([1, 1, 1, 1], [0, 1, 2]),
    ]


def _advantages(rewards: Tensor, *, ddof: int = 1, eps: float = 1e-4) -> Tensor:
    centred = rewards - rewards.mean()
    return centred / ((centred.square().sum() / (len(rewards) - ddof)).sqrt() + eps)


@exercise(_groups)
def push(rewards: Tensor, kept: Tensor) -> Tensor:
    return _advantages(rewards) * kept


@push.mistake(
    "the advantages are computed after the filter, from only the kept ones. The pruned ones set "
    "the level too: all G first, then the filter."
)
def after_filter(rewards: Tensor, kept: Tensor) -> Tensor:
    found = torch.zeros_like(rewards)
    found[kept] = _advantages(rewards[kept])
    return found


@push.mistake(
    "the pruned ones' rewards were set to 0 before the advantages: that calls them wrong. They "
    "keep their rewards, and are left out of the update."
)
def reward_taken(rewards: Tensor, kept: Tensor) -> Tensor:
    return _advantages(rewards * kept) * kept


@push.mistake("the pruned ones still push: their entries must be 0.")
def pruned_push(rewards: Tensor, kept: Tensor) -> Tensor:
    return _advantages(rewards)


@push.mistake("std divides by G; METHOD §6 uses ddof 1, so divide by G − 1.")
def ddof_0(rewards: Tensor, kept: Tensor) -> Tensor:
    return _advantages(rewards, ddof=0) * kept


@push.mistake("ε is missing: a group of equal rewards has std 0, and 0/0 is NaN.")
def no_epsilon(rewards: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept, _advantages(rewards, eps=0.0), 0.0)


@push.mistake("the result holds only the kept ones: return one entry for each of the G.")
def kept_only(rewards: Tensor, kept: Tensor) -> Tensor:
    return _advantages(rewards)[kept]
