"""Padding, marked spans and bounded batches, against loops."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from i2b_lpo.model.padding import left_pad, mark, micro_batches, right_pad

ROWS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5)


@given(ROWS)
def test_padding_fills_one_side_and_the_mask_says_which(rows: list[list[int]]) -> None:
    width = max(map(len, rows))
    for pad, left in ((left_pad, True), (right_pad, False)):
        ids, mask = pad(rows, 0)
        for row, padded, marked in zip(rows, ids.tolist(), mask.tolist(), strict=True):
            blank = [0] * (width - len(row))
            ones = [1] * len(row)
            assert padded == (blank + row if left else row + blank)
            assert marked == (blank + ones if left else ones + blank)


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=4))
def test_a_span_is_marked_up_to_its_end(spans: list[tuple[int, int]]) -> None:
    found = mark(spans, 7).tolist()
    assert found == [[int(a <= t < b) for t in range(7)] for a, b in spans]


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 30))
def test_batches_hold_everything_once_within_the_bound(sizes: list[int], tokens: int) -> None:
    batches = micro_batches(range(len(sizes)), tokens, lambda i: sizes[i])
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    order = [sizes[i] for batch in batches for i in batch]
    assert order == sorted(sizes), "like lengths share a batch"
    for at, batch in enumerate(batches):
        longest = max(sizes[i] for i in batch)
        assert len(batch) * longest <= tokens or len(batch) == 1
        if at + 1 < len(batches):  # the next item really didn't fit
            assert (len(batch) + 1) * sizes[batches[at + 1][0]] > tokens


def test_items_of_one_length_stay_in_order() -> None:
    assert micro_batches([(1, "b"), (1, "a")], 9, lambda item: item[0]) == [[(1, "b"), (1, "a")]]
    with pytest.raises(ValueError):
        right_pad([], 0)
