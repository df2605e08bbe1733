"""The bundled task: questions, splits, the writer and the labeller against slow references."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import islice, product

import pytest
from hypothesis import given, strategies as st

from i2b_lpo.tasks.labels import Labels, label
from i2b_lpo.tasks.shop import (
    HIGH_PRICES,
    STRATEGIES,
    Problem,
    parse_problem,
    product_questions,
    shop_questions,
    write_solution,
)
from i2b_lpo.trace import Question

SPLITS = ("train", "validation", "test")
SHOP = "Mia buys 23 pens at $14 and 37 cups at $6. What is the cost?"
SOLUTION = r"""Split 14
23*10=230
23*4=92
230+92=322
Round 37
40*6=240
3*6=18
240-18=222
322+222=544
\boxed{544}"""


def answer_by_hand(text: str) -> int:
    """The answer read off the words, by another road than the package's."""
    numbers = re.findall(r"\d+", text)
    if text.startswith("What is"):
        return int(eval("*".join(numbers)))
    sign = {"cost?": "+", "left?": "-"}[text.split()[-1]]
    a, b, c, d = numbers
    return int(eval(f"{a}*{b}{sign}{c}*{d}"))


def some(task: str, split: str, count: int, seed: int = 0) -> list[Question]:
    stream = {"shop": shop_questions, "product": product_questions}[task]
    return list(islice(stream(split, random.Random(seed)), count))


def marks(labels: Labels) -> list[bool]:
    return [step.right for step in labels.steps]


# --- questions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["shop", "product"])
@pytest.mark.parametrize("split", SPLITS)
def test_answers_equal_a_recomputation_from_the_words(task: str, split: str) -> None:
    for question in some(task, split, 400):
        assert question.answer == str(answer_by_hand(question.text))
        assert question.task == task
        problem = parse_problem(question.text)
        assert problem.answer == int(question.answer)
        assert problem.split == split


def test_every_sentence_is_one_of_two_forms() -> None:
    cost = r"(Mia|Tom|Ana|Leo) buys \d+ (\w+) at \$\d+ and \d+ (\w+) at \$\d+\. What is the cost\?"
    left = (
        r"(Mia|Tom|Ana|Leo) sells \d+ (\w+) at \$\d+ and buys \d+ (\w+) at \$\d+\. What is left\?"
    )
    forms: Counter[str] = Counter()
    for question in some("shop", "train", 1000):
        for form in (cost, left):
            if match := re.fullmatch(form, question.text):
                forms[form] += 1
                assert match[2] != match[3], "two kinds of goods"
    assert forms.total() == 1000
    assert 400 < forms[cost] < 600


def test_what_is_left_is_never_negative() -> None:
    sold = [q for q in some("shop", "train", 3000) if " sells " in q.text]
    assert len(sold) > 1000
    assert min(int(q.answer) for q in sold) >= 0


def test_the_same_seed_gives_the_same_questions() -> None:
    for task, split in product(("shop", "product"), SPLITS):
        assert some(task, split, 30, seed=5) == some(task, split, 30, seed=5)
        assert some(task, split, 30, seed=5) != some(task, split, 30, seed=6)


def test_one_id_is_one_text() -> None:
    questions = [q for split in SPLITS for q in some("shop", split, 1500)]
    pairs = {(q.id, q.text) for q in questions}
    assert len(pairs) == len({q.id for q in questions}) == len({q.text for q in questions})


def test_levels_count_high_prices_and_come_equally_often() -> None:
    for task, most in (("shop", 3), ("product", 2)):
        questions = some(task, "train", 3000)
        for question in questions:
            prices = (
                re.findall(r"\$(\d+)", question.text)
                if task == "shop"
                else re.findall(r"\*(\d+)", question.text)
            )
            assert question.level == 1 + sum(int(price) in HIGH_PRICES for price in prices)
        counts = Counter(q.level for q in questions)
        assert set(counts) == set(range(1, most + 1))
        assert all(abs(n / 3000 - 1 / most) < 0.04 for n in counts.values())


def test_levels_can_be_chosen() -> None:
    hard = islice(shop_questions("train", random.Random(0), levels=(3,)), 50)
    assert {q.level for q in hard} == {3}
    easy = islice(product_questions("test", random.Random(0), levels=(1,)), 50)
    assert {q.level for q in easy} == {1}


def test_an_unknown_split_is_refused() -> None:
    for stream in (shop_questions, product_questions):
        with pytest.raises(ValueError, match="Unknown split 'dev'; choose one of train, valid"):
            next(stream("dev", random.Random(0)))


# --- splits ---------------------------------------------------------------------------------------


def identity(text: str) -> tuple[str, ...]:
    """What makes two questions the same sum: its numbers, in any order that changes nothing."""
    numbers = re.findall(r"\d+", text)
    pairs = ["*".join(sorted(numbers[i : i + 2])) for i in range(0, len(numbers), 2)]
    if " sells " in text:
        return ("-", *pairs)
    return ("+", *sorted(pairs))


@pytest.mark.parametrize("task", ["shop", "product"])
def test_no_sum_stands_in_two_splits(task: str) -> None:
    found = {split: {identity(q.text) for q in some(task, split, 3000)} for split in SPLITS}
    assert min(map(len, found.values())) > 400
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not found[one] & found[other]


factors = st.tuples(st.integers(2, 99), st.integers(2, 99))


@given(factors, factors)
def test_names_goods_and_order_dont_change_the_split(
    one: tuple[int, int], two: tuple[int, int]
) -> None:
    splits = set()
    for name, this, that in (("Mia", "pens", "cups"), ("Leo", "cups", "maps")):
        for (a, b), (c, d) in product((one, one[::-1]), (two, two[::-1])):
            for p, q, r, s in ((a, b, c, d), (c, d, a, b)):
                text = f"{name} buys {p} {this} at ${q} and {r} {that} at ${s}. What is the cost?"
                splits.add(parse_problem(text).split)
    assert len(splits) == 1
    # What is left depends on which of the two is sold: only the factors may change places.
    assert len({Problem((x, two), "-").split for x in (one, one[::-1])}) == 1
    assert len({Problem((one, x), "-").split for x in (two, two[::-1])}) == 1
    assert Problem((one,), "+").split == Problem((one[::-1],), "+").split


def test_splits_hold_eight_one_and_one_tenths() -> None:
    rng = random.Random(0)
    for operator, count in product("+-", (1, 2)):
        drawn = Counter(
            Problem(
                tuple((rng.randrange(12, 100), rng.randrange(3, 100)) for _ in range(count)),
                operator,
            ).split
            for _ in range(5000)
        )
        for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
            assert abs(drawn[split] / 5000 - share) < 0.03, (operator, count, drawn)


# --- reading a question back ----------------------------------------------------------------------


def test_a_question_is_read_back() -> None:
    assert parse_problem(SHOP) == Problem(((23, 14), (37, 6)), "+")
    assert parse_problem(f"  {SHOP}\n") == parse_problem(SHOP)
    left = parse_problem("Leo sells 90 hats at $3 and buys 12 maps at $22. What is left?")
    assert left == Problem(((90, 3), (12, 22)), "-")
    assert (left.answer, left.level) == (6, 2)
    assert parse_problem("What is 23*14?") == Problem(((23, 14),), "+")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "What is 23*14",
        "What is 23 * 14?",
        "What is 23+14?",
        "What is -3*14?",
        "What is 2.5*14?",
        f"{SHOP} Thanks",
        "Mia buys 23 pens at $14. What is the cost?",
        "Mia buys many pens at $14 and 37 cups at $6. What is the cost?",
        "Mia finds 23 pens at $14 and 37 cups at $6. What is the cost?",
        # Halves of the two sentences put together: who can tell what is asked?
        "Mia buys 23 pens at $14 and 37 cups at $6. What is left?",
        "Mia buys 23 pens at $14 and buys 37 cups at $6. What is the cost?",
        "Mia sells 23 pens at $14 and buys 37 cups at $6. What is the cost?",
        "Mia sells 23 pens at $14 and 37 cups at $6. What is left?",
        # Less than nothing is left: solutions and labels know no negative numbers.
        "Mia sells 12 pens at $3 and buys 99 cups at $99. What is left?",
    ],
)
def test_other_questions_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"Not a question of the bundled task.*write it like"):
        parse_problem(text)


# --- the writer -----------------------------------------------------------------------------------


def test_solutions_are_right_and_the_labeller_agrees() -> None:
    rng = random.Random(1)
    seen: Counter[str] = Counter()
    questions = [
        q for task, split in product(("shop", "product"), SPLITS) for q in some(task, split, 500)
    ]
    for question in questions:
        problem = parse_problem(question.text)
        solution = write_solution(problem, rng)
        for line in solution.split("\n"):
            if "=" in line:
                left, right = line.split("=")
                assert eval(left) == int(right), line
        assert solution.endswith("\n\\boxed{" + question.answer + "}")
        labels = label(problem, solution)
        assert labels.well_formed
        assert all(marks(labels))
        assert [step.text for step in labels.steps] == solution.split("\n")
        assert all(use.right for use in labels.uses)
        words = tuple(re.findall(r"^[A-Z][a-z]+", solution, re.M))
        assert labels.strategies == words
        assert labels.signature == ">".join(words)
        assert len(words) == len(problem.products)
        seen.update(words)
    assert set(seen) == set(STRATEGIES)


WAYS = {
    (23, 14): """
        Guess 322
        Split 14 | 23*10=230 | 23*4=92 | 230+92=322
        Split 23 | 14*20=280 | 14*3=42 | 280+42=322
        Factor 14 | 23*2=46 | 46*7=322
        Grid 14 | 20*10=200 | 20*4=80 | 3*10=30 | 3*4=12 | 200+80=280 | 280+30=310 | 310+12=322
        Grid 23 | 10*20=200 | 10*3=30 | 4*20=80 | 4*3=12 | 200+30=230 | 230+80=310 | 310+12=322
    """,
    (17, 5): """
        Guess 85
        Split 17 | 5*10=50 | 5*7=35 | 50+35=85
        Round 17 | 20*5=100 | 3*5=15 | 100-15=85
    """,
    (12, 9): """
        Guess 108
        Split 12 | 9*10=90 | 9*2=18 | 90+18=108
        Factor 12 | 9*2=18 | 18*6=108
        Factor 9 | 12*3=36 | 36*3=108
    """,
    (30, 20): """
        Guess 600
        Factor 30 | 20*5=100 | 100*6=600
        Factor 20 | 30*4=120 | 120*5=600
    """,
}


@pytest.mark.parametrize("pair", WAYS)
def test_all_ways_to_a_product_are_these(pair: tuple[int, int]) -> None:
    problem = Problem((pair,), "+")
    ways = {way.strip().replace(" | ", "\n") for way in WAYS[pair].strip().split("\n")}
    rng = random.Random(2)
    found = {write_solution(problem, rng).rpartition("\n")[0] for _ in range(600)}
    assert found == ways
    for way in ways:
        labels = label(problem, f"{way}\n\\boxed{{{problem.answer}}}")
        assert labels.well_formed
        assert all(marks(labels))


@pytest.mark.parametrize("by_habit", [True, False])
@pytest.mark.parametrize(
    ("pair", "apply"),
    [
        ((27, 48), {"Guess", "Split", "Round", "Factor", "Grid"}),
        ((23, 14), {"Guess", "Split", "Factor", "Grid"}),
        ((19, 7), {"Guess", "Split", "Round"}),
        ((30, 7), {"Guess", "Factor"}),
        ((20, 13), {"Guess", "Split", "Factor"}),
        ((70, 50), {"Guess"}),
    ],
)
def test_each_strategy_has_its_share_of_those_that_apply(
    pair: tuple[int, int], apply: set[str], by_habit: bool
) -> None:
    problem = Problem((pair,), "+")
    rng = random.Random(3)
    count = 4000
    written = (write_solution(problem, rng, by_habit=by_habit) for _ in range(count))
    found = Counter(solution.split()[0] for solution in written)
    assert set(found) == apply
    shares = {
        name: STRATEGIES[name].habit if by_habit else STRATEGIES[name].practice for name in apply
    }
    expected = {name: count * share / sum(shares.values()) for name, share in shares.items()}
    distance = sum((found[name] - n) ** 2 / n for name, n in expected.items())
    assert distance < 25  # 4 degrees of freedom at most: once in 20 000 runs


def test_either_factor_is_taken_apart_equally_often() -> None:
    rng = random.Random(4)
    heads = Counter(
        write_solution(Problem(((27, 48),), "+"), rng).split("\n")[0] for _ in range(4000)
    )
    for name in ("Split", "Round", "Factor", "Grid"):
        one, other = heads[f"{name} 27"], heads[f"{name} 48"]
        assert one + other > 100
        assert abs(one - other) < 4 * (one + other) ** 0.5


# --- the labeller ---------------------------------------------------------------------------------


def shop_labels(text: str) -> Labels:
    return label(parse_problem(SHOP), text)


def uses(labels: Labels) -> list[tuple[str, bool]]:
    return [(use.strategy, use.right) for use in labels.uses]


def test_the_worked_example_is_right() -> None:
    labels = shop_labels(SOLUTION)
    assert marks(labels) == [True] * 10
    assert uses(labels) == [("Split", True), ("Round", True)]
    assert labels.signature == "Split>Round"
    assert labels.well_formed


def wrong(text: str, **lines: str) -> str:
    """`text` with some lines replaced: line5="…" counts from 1; an empty one goes."""
    rows = text.split("\n")
    for name, line in lines.items():
        rows[int(name.removeprefix("line")) - 1] = line
    return "\n".join(row for row in rows if row)


def test_a_slip_that_is_carried_on_marks_one_step() -> None:
    labels = shop_labels(
        wrong(
            SOLUTION,
            line3="23*4=93",
            line4="230+93=323",
            line9="323+222=545",
            line10=r"\boxed{545}",
        )
    )
    assert marks(labels) == [True, True, False, True, True, True, True, True, True, True]
    assert uses(labels) == [("Split", False), ("Round", True)]
    assert labels.well_formed


def test_a_slip_below_zero_is_carried_on_too() -> None:
    labels = label(
        parse_problem("What is 40*37?"), "Round 37\n40*40=16\n3*40=120\n16-120=-104\n\\boxed{-104}"
    )
    assert marks(labels) == [True, False, True, True, True]
    assert uses(labels) == [("Round", False)]
    assert labels.well_formed


def test_a_slip_that_is_not_carried_on_ends_the_form() -> None:
    # 93 is stated, 92 is used: the sum is true but not of what the trace has found.
    labels = shop_labels(wrong(SOLUTION, line3="23*4=93"))
    assert marks(labels) == [True, True, False] + [False] * 7
    assert uses(labels) == [("Split", False), ("Round", False)]
    assert not labels.well_formed


def test_two_slips_that_cancel_give_a_right_use_with_two_wrong_steps() -> None:
    labels = shop_labels(wrong(SOLUTION, line3="23*4=93", line4="230+93=322"))
    assert marks(labels) == [True, True, False, False] + [True] * 6
    assert uses(labels) == [("Split", True), ("Round", True)]
    assert labels.well_formed


def test_a_slip_in_the_last_sum_leaves_the_uses_right() -> None:
    labels = shop_labels(wrong(SOLUTION, line9="322+222=554", line10=r"\boxed{554}"))
    assert marks(labels) == [True] * 8 + [False, True]
    assert uses(labels) == [("Split", True), ("Round", True)]
    assert labels.well_formed


def test_a_wrong_box_is_one_wrong_step() -> None:
    labels = shop_labels(wrong(SOLUTION, line10=r"\boxed{545}"))
    assert marks(labels) == [True] * 9 + [False]
    assert uses(labels) == [("Split", True), ("Round", True)]
    assert labels.well_formed


def test_a_wrong_guess_is_a_wrong_use_and_is_carried_on() -> None:
    text = "Guess 332\nGuess 222\n332+222=554\n\\boxed{554}"
    labels = shop_labels(text)
    assert marks(labels) == [False, True, True, True]
    assert uses(labels) == [("Guess", False), ("Guess", True)]
    assert labels.well_formed


@pytest.mark.parametrize(
    ("change", "right", "used"),
    [
        # a wrong operand
        ({"line3": "23*5=115"}, [1, 1] + [0] * 8, [("Split", False), ("Round", False)]),
        ({"line2": "10*23=230"}, [1] + [0] * 9, [("Split", False), ("Round", False)]),
        ({"line4": "230-92=138"}, [1, 1, 1] + [0] * 7, [("Split", False), ("Round", False)]),
        ({"line6": "40*7=280"}, [1] * 5 + [0] * 5, [("Split", True), ("Round", False)]),
        ({"line9": "222+322=544"}, [1] * 8 + [0, 0], [("Split", True), ("Round", True)]),
        # the last sum or the box is missing
        ({"line9": ""}, [1] * 8 + [0], [("Split", True), ("Round", True)]),
        ({"line10": ""}, [1] * 9, [("Split", True), ("Round", True)]),
        ({"line10": "544"}, [1] * 9 + [0], [("Split", True), ("Round", True)]),
        # a line is missing inside
        ({"line4": ""}, [1, 1, 1] + [0] * 6, [("Split", False), ("Round", False)]),
        ({"line5": ""}, [1] * 4 + [0] * 5, [("Split", True)]),
        # a strategy on a factor that it doesn't apply to, or that isn't there
        ({"line1": "Round 14"}, [0] * 10, [("Round", False), ("Round", False)]),
        ({"line1": "Factor 23"}, [0] * 10, [("Factor", False), ("Round", False)]),
        ({"line1": "Split 15"}, [0] * 10, [("Split", False), ("Round", False)]),
        ({"line5": "Split 6"}, [1] * 4 + [0] * 6, [("Split", True), ("Split", False)]),
        # a word that is no strategy
        ({"line1": "Think 14"}, [0] * 10, [("Round", False)]),
        ({"line1": "split 14"}, [0] * 10, [("Round", False)]),
        ({"line1": "Split"}, [0] * 10, [("Round", False)]),
        ({"line5": "Hm"}, [1] * 4 + [0] * 6, [("Split", True)]),
        # extra lines, even true ones, and a strategy word said twice
        ({"line2": "23*10=230\n1+1=2"}, [1, 1] + [0] * 9, [("Split", False), ("Round", False)]),
        ({"line4": "230+92=322\nDone"}, [1] * 4 + [0] * 7, [("Split", True), ("Round", False)]),
        (
            {"line1": "Split 14\nSplit 14"},
            [1] + [0] * 10,
            [("Split", False), ("Split", False), ("Round", False)],
        ),
        # a loop
        (
            {"line3": "\n".join(["23*10=230"] * 5)},
            [1, 1] + [0] * 12,
            [("Split", False), ("Round", False)],
        ),
    ],
)
def test_a_trace_that_leaves_its_form_is_right_up_to_there(
    change: dict[str, str], right: list[int], used: list[tuple[str, bool]]
) -> None:
    labels = shop_labels(wrong(SOLUTION, **change))
    assert marks(labels) == [bool(mark) for mark in right]
    assert uses(labels) == used
    assert not labels.well_formed


def test_the_order_of_the_products_is_that_of_the_question() -> None:
    rows = SOLUTION.split("\n")
    labels = shop_labels("\n".join(rows[4:8] + rows[:4] + ["222+322=544", rows[9]]))
    assert marks(labels) == [False] * 10
    assert not labels.well_formed


@pytest.mark.parametrize("kept", range(10))
def test_a_cut_trace_is_right_as_far_as_it_goes(kept: int) -> None:
    labels = shop_labels("\n".join(SOLUTION.split("\n")[:kept]))
    assert marks(labels) == [True] * kept
    assert not labels.well_formed
    assert uses(labels) == [("Split", kept >= 4), ("Round", kept >= 8)][: (kept > 0) + (kept > 4)]


def test_a_trace_cut_inside_a_line_has_that_line_wrong() -> None:
    for end in ("23*", "23*4=", "23*4=9"):
        labels = shop_labels(f"Split 14\n23*10=230\n{end}")
        assert marks(labels) == [True, True, False]
        assert uses(labels) == [("Split", False)]


@pytest.mark.parametrize("text", ["", "\n\n", " ", "\x00", "I can't do that.", "\\boxed{544}"])
def test_a_trace_without_a_strategy_has_none(text: str) -> None:
    labels = shop_labels(text)
    assert labels.uses == ()
    assert labels.signature == ""
    assert not any(marks(labels))
    assert not labels.well_formed


def test_empty_lines_dont_count() -> None:
    assert shop_labels(SOLUTION.replace("\n", "\n\n") + "\n") == shop_labels(SOLUTION)


def test_what_follows_the_box_is_wrong() -> None:
    labels = shop_labels(f"{SOLUTION}\nSplit 14\n23*10=230")
    assert marks(labels) == [True] * 10 + [False, False]
    assert uses(labels)[:2] == [("Split", True), ("Round", True)]
    assert not labels.well_formed


def test_a_single_product_has_no_last_sum() -> None:
    problem = parse_problem("What is 23*14?")
    assert label(problem, "Guess 322\n\\boxed{322}").well_formed
    labels = label(problem, "Guess 322\n322+0=322\n\\boxed{322}")
    assert marks(labels) == [True, False, False]
    assert not labels.well_formed


def test_endless_digits_are_just_wrong() -> None:
    digits = "1" * 5000
    for text in (f"Guess {digits}", f"Split 14\n23*10={digits}", f"Guess 322\n\\boxed{{{digits}}}"):
        labels = label(parse_problem("What is 23*14?"), text)
        assert marks(labels)[-1] is False


def test_only_plain_digits_are_numbers() -> None:
    assert not any(marks(label(parse_problem("What is 23*14?"), "Guess ٣٢٢\n\\boxed{٣٢٢}")))


@given(st.integers(0, 10_000), st.data())
def test_labels_of_damaged_solutions_hold_together(seed: int, data: st.DataObject) -> None:
    problem = parse_problem(some("shop", "train", 1, seed)[0].text)
    lines = write_solution(problem, random.Random(seed)).split("\n")
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["delete", "repeat", "swap", "digit", "cut"])):
            case "delete" if len(lines) > 1:
                del lines[at]
            case "repeat":
                lines.insert(at, lines[at])
            case "swap":
                lines[at], lines[-1] = lines[-1], lines[at]
            case "digit":
                places = [i for i, sign in enumerate(lines[at]) if sign.isdigit()]
                if places:
                    i = data.draw(st.sampled_from(places))
                    lines[at] = f"{lines[at][:i]}{data.draw(st.integers(0, 9))}{lines[at][i + 1 :]}"
            case "cut":
                lines = lines[: at + 1]
    labels = label(problem, "\n".join(lines))
    assert [step.text for step in labels.steps] == [line for line in lines if line]
    for step in labels.steps:
        left, sign, right = step.text.partition("=")
        if step.right and sign:
            assert eval(re.sub(r"\b0+(?=\d)", "", left)) == int(right)
    if labels.well_formed:
        assert len(labels.uses) == 2
        assert lines[-1].startswith("\\boxed")
        if all(marks(labels)):
            assert lines[-1] == f"\\boxed{{{problem.answer}}}"
            assert all(use.right for use in labels.uses)
    assert set(labels.strategies) <= set(STRATEGIES)
