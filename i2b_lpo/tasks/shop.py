r"""The bundled task: shopping questions answered by a chain of named strategies.

``Mia buys 23 pens at $14 and 37 cups at $6. What is the cost?`` contains two products. A solution
computes each with a strategy that one word opens, then combines them::

    Split 14            ← fork: which strategy? which factor?
    23*10=230
    23*4=92
    230+92=322
    Round 37            ← fork again
    40*6=240
    3*6=18
    240-18=222
    322+222=544
    \boxed{544}

A strategy is one generator. It yields each line's left side and is sent the line's value: the
*writer* sends the true value, the *labeller* sends what the trace states. So the solutions a policy
learns from and the labels its traces get cannot disagree.

The single product (``What is 23*14?``) is the warm-up. Both tasks are ours [D]; the paper trains on
MATH and DAPO-Math-17k.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from i2b_lpo.tasks.splits import check_split, split_of
from i2b_lpo.trace import Question

__all__ = [
    "STRATEGIES",
    "Problem",
    "Strategy",
    "parse_problem",
    "product_questions",
    "shop_examples",
    "shop_questions",
    "write_solution",
]

Expression = tuple[int, str, int]
Derivation = Generator[Expression, int, int]

NAMES = ("Mia", "Tom", "Ana", "Leo")
ITEMS = ("pens", "cups", "hats", "bags", "toys", "maps")
QUANTITIES = range(12, 100)
LOW_PRICES = range(4, 20)
HIGH_PRICES = range(20, 100)


# --- strategies ---------------------------------------------------------------------------------


def _split(keep: int, part: int) -> Derivation:
    tens = part // 10 * 10
    high = yield keep, "*", tens
    low = yield keep, "*", part - tens
    return (yield high, "+", low)


def _round(keep: int, part: int) -> Derivation:
    up = part + 10 - part % 10
    over = yield up, "*", keep
    excess = yield up - part, "*", keep
    return (yield over, "-", excess)


def _factor(keep: int, part: int) -> Derivation:
    first = next(d for d in range(2, 10) if part % d == 0 and part // d < 10)
    partial = yield keep, "*", first
    return (yield partial, "*", part // first)


def _grid(keep: int, part: int) -> Derivation:
    # Both factors into tens and ones: the most lines, and the easiest ones.
    cells = []
    for left in (keep // 10 * 10, keep % 10):
        for right in (part // 10 * 10, part % 10):
            cells.append((yield left, "*", right))
    total = cells[0]
    for cell in cells[1:]:
        total = yield total, "+", cell
    return total


@dataclass(frozen=True)
class Strategy:
    """One way to a product.

    Attributes:
        habit: how often a solution by habit uses it, relative to the others that apply.
        practice: the same for practice; a strategy practised and seldom used is rare but reliable.
        applies: whether it can take this factor (the second) apart.
        derive: its lines; None if it states the value at once.
    """

    habit: float
    practice: float
    applies: Callable[[int, int], bool]
    derive: Callable[[int, int], Derivation] | None


def _in_times_table(part: int) -> bool:
    return any(part % d == 0 and 2 <= part // d < 10 for d in range(2, 10))


STRATEGIES: dict[str, Strategy] = {
    "Guess": Strategy(0.26, 0.15, lambda keep, part: True, None),
    "Split": Strategy(0.30, 0.15, lambda keep, part: part > 10 and part % 10 != 0, _split),
    "Round": Strategy(0.22, 0.15, lambda keep, part: part > 10 and part % 10 >= 6, _round),
    "Factor": Strategy(0.18, 0.15, lambda keep, part: _in_times_table(part), _factor),
    "Grid": Strategy(
        0.06, 0.60, lambda keep, part: min(keep, part) > 10 and keep % 10 * (part % 10) != 0, _grid
    ),
}
"""Strategies by the word that opens them: Guess is short and unreliable, Grid long and reliable."""


# --- problems -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """The numbers of a question: one or two products (quantity, price) and how they combine."""

    products: tuple[tuple[int, int], ...]
    operator: str  # "+" what it costs, "-" what is left; unused for one product

    @property
    def answer(self) -> int:
        """The verified answer a."""
        values = [a * b for a, b in self.products]
        if len(values) == 1:
            return values[0]
        return values[0] + values[1] if self.operator == "+" else values[0] - values[1]

    @property
    def level(self) -> int:
        """1 + the number of high prices: 1 … 3 (shop), 1 … 2 (product)."""
        return 1 + sum(price >= HIGH_PRICES.start for _, price in self.products)

    @property
    def split(self) -> str:
        """Train, validation or test by identity: names, items and order of factors don't count."""
        pairs = [tuple(sorted(pair)) for pair in self.products]
        if self.operator == "+":
            pairs.sort()
        return split_of(f"{self.operator}{pairs}")


NUMBER = r"([0-9]{1,9})"  # so that endless digits are no number
_SHOP = re.compile(
    rf"\w+ (?:buys|(sells)) {NUMBER} \w+ at \${NUMBER} and (?(1)buys ){NUMBER} \w+ at "
    rf"\${NUMBER}\. What is (?(1)left|the cost)\?"
)
_PRODUCT = re.compile(rf"What is {NUMBER}\*{NUMBER}\?")


def parse_problem(text: str) -> Problem:
    """Read the numbers back from a question's text.

    Raises:
        ValueError: the text is neither a shopping sentence nor a single product, or less than
            nothing would be left.

    >>> parse_problem("Mia buys 23 pens at $14 and 37 cups at $6. What is the cost?").answer
    544
    """
    if match := _SHOP.fullmatch(text.strip()):
        sells, a, b, c, d = match.groups()
        problem = Problem(((int(a), int(b)), (int(c), int(d))), "-" if sells else "+")
        if problem.answer >= 0:  # the labeller knows no negative question
            return problem
    elif match := _PRODUCT.fullmatch(text.strip()):
        return Problem(((int(match[1]), int(match[2])),), "+")
    raise ValueError(
        f"Not a question of the bundled task: {text!r}; write it like 'Mia buys 23 pens at $14 "
        "and 37 cups at $6. What is the cost?', 'Mia sells 23 pens at $14 and buys 37 cups at $6. "
        "What is left?' (not less than 0) or 'What is 23*14?'."
    )


def _question(task: str, text: str, problem: Problem) -> Question:
    return Question(
        id=f"{task}-{zlib.crc32(text.encode()):08x}",
        text=text,
        answer=str(problem.answer),
        task=task,
        level=problem.level,
    )


def _draw_shop(rng: random.Random, level: int) -> tuple[str, Problem]:
    prices = [LOW_PRICES] * (3 - level) + [HIGH_PRICES] * (level - 1)
    rng.shuffle(prices)
    products = [(rng.choice(QUANTITIES), rng.choice(price)) for price in prices]
    name, (one, two) = rng.choice(NAMES), rng.sample(ITEMS, 2)
    if rng.random() < 0.5:
        problem = Problem((products[0], products[1]), "+")
        verbs, end = ("buys", ""), "the cost"
    else:  # what is left must not be negative
        products.sort(key=lambda pair: -pair[0] * pair[1])
        problem = Problem((products[0], products[1]), "-")
        verbs, end = ("sells", "buys "), "left"
    (a, b), (c, d) = products
    text = f"{name} {verbs[0]} {a} {one} at ${b} and {verbs[1]}{c} {two} at ${d}. What is {end}?"
    return text, problem


def _draw_product(rng: random.Random, level: int) -> tuple[str, Problem]:
    price = LOW_PRICES if level == 1 else HIGH_PRICES
    a, b = rng.choice(QUANTITIES), rng.choice(price)
    return f"What is {a}*{b}?", Problem(((a, b),), "+")


def _stream(
    task: str,
    draw: Callable[[random.Random, int], tuple[str, Problem]],
    levels: tuple[int, ...],
    split: str,
    rng: random.Random,
) -> Iterator[Question]:
    check_split(split)
    while True:
        text, problem = draw(rng, rng.choice(levels))
        if problem.split == split:
            yield _question(task, text, problem)


def shop_questions(
    split: str, rng: random.Random, levels: tuple[int, ...] = (1, 2, 3)
) -> Iterator[Question]:
    """Endless shopping questions of one split, drawn with `rng`, levels equally often."""
    return _stream("shop", _draw_shop, levels, split, rng)


def product_questions(
    split: str, rng: random.Random, levels: tuple[int, ...] = (1, 2)
) -> Iterator[Question]:
    """Endless single products of one split: the warm-up."""
    return _stream("product", _draw_product, levels, split, rng)


# --- the writer ---------------------------------------------------------------------------------


def calculate(left: int, operator: str, right: int) -> int:
    """The value of one line's left side."""
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def _choose(a: int, b: int, rng: random.Random, by_habit: bool) -> tuple[str, int, int]:
    """A strategy among those that apply, then one of the factors it applies to."""
    factors = {
        name: [(k, p) for k, p in ((a, b), (b, a)) if strategy.applies(k, p)]
        for name, strategy in STRATEGIES.items()
    }
    names = [name for name, found in factors.items() if found]
    weights = [STRATEGIES[n].habit if by_habit else STRATEGIES[n].practice for n in names]
    name = rng.choices(names, weights)[0]
    return name, *rng.choice(factors[name])


def write_solution(problem: Problem, rng: random.Random, *, by_habit: bool = True) -> str:
    """A right solution of `problem` with randomly chosen strategies.

    Args:
        problem: the numbers.
        rng: source of randomness.
        by_habit: choose strategies by `Strategy.habit`; otherwise by `Strategy.practice`.
    """
    lines: list[str] = []
    for a, b in problem.products:
        name, keep, part = _choose(a, b, rng, by_habit)
        derive = STRATEGIES[name].derive
        if derive is None:
            lines.append(f"{name} {a * b}")
            continue
        lines.append(f"{name} {part}")
        steps = derive(keep, part)
        try:
            expression = next(steps)
            while True:
                value = calculate(*expression)
                lines.append("{}{}{}={}".format(*expression, value))
                expression = steps.send(value)
        except StopIteration:
            pass
    if len(problem.products) == 2:
        one, two = (a * b for a, b in problem.products)
        lines.append(f"{one}{problem.operator}{two}={problem.answer}")
    return "\n".join(lines) + f"\n\\boxed{{{problem.answer}}}"


def shop_examples(rng: random.Random, *, share: float) -> Iterator[tuple[str, str, str]]:
    """Endless solved questions of the train split: text, solution for practice, one by habit.

    Args:
        rng: source of randomness.
        share: of shopping sentences; the rest are single products.
    """
    shop, product = shop_questions("train", rng), product_questions("train", rng)
    while True:
        question = next(shop if rng.random() < share else product)
        problem = parse_problem(question.text)
        yield (
            question.text,
            write_solution(problem, rng, by_habit=False),
            write_solution(problem, rng),
        )
