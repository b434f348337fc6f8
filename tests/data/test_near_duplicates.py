"""The bounds lose no pair: the result is the double loop's."""

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Indel

from redheart.data.near_duplicates import clusters, keep_first, near_duplicate_pairs
from redheart.data.split import PARTS, split_rows


def double_loop(texts: list[str]) -> list[tuple[int, int]]:
    # In whole numbers: 1 - d / n >= 0.92 is 25 d <= 2 n.
    return [
        (i, j)
        for (i, a), (j, b) in combinations(enumerate(texts), 2)
        if 25 * Indel.distance(a, b) <= 2 * (len(a) + len(b))
    ]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_pairs_equal_the_double_loop(data: st.DataObject) -> None:
    alphabet = data.draw(st.sampled_from(["ab", "abcdefghij ", "가나다 abc\U0001f600"]))
    texts = data.draw(st.lists(st.text(alphabet, max_size=40), max_size=12))
    for _ in range(data.draw(st.integers(0, 8))):
        if texts:
            text = data.draw(st.sampled_from(texts))
            position = data.draw(st.integers(0, len(text)))
            texts.append(text[:position] + data.draw(st.text(alphabet, max_size=3)) + text[position + 1 :])
    assert near_duplicate_pairs(texts, similarity=0.92) == double_loop(texts)


def test_the_border_is_included() -> None:
    # 2 edits in 25 characters of both texts together: exactly 0.92.
    assert Indel.distance("a" * 12 + "b", "a" * 12) == 1
    assert near_duplicate_pairs(["a" * 12 + "b", "a" * 11 + "b"], similarity=0.92) == [(0, 1)]
    texts = ["x" * 23 + "ab", "x" * 23 + "cd"]
    assert near_duplicate_pairs(texts, similarity=0.92) == [(0, 1)] == double_loop(texts)


def test_clusters_are_connected_components_and_the_first_is_kept() -> None:
    pairs = [(0, 3), (3, 4), (1, 2)]
    assert clusters(6, pairs).tolist() == [0, 1, 1, 0, 0, 5]
    assert keep_first(6, pairs).tolist() == [True, True, False, False, True, True]


def test_split_is_stratified_and_keeps_clusters_together() -> None:
    random = np.random.default_rng(0)
    classes_N = random.choice(7, size=2000, p=[0.02, 0.02, 0.04, 0.08, 0.13, 0.24, 0.47])
    clusters_N = np.arange(2000)
    clusters_N[1::50] = clusters_N[::50]
    classes_N[1::50] = classes_N[::50]
    split = split_rows(classes_N, clusters_N, seed=0)
    assert list(split) == list(PARTS)
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(2000))
    part_of = {int(row): part for part, rows in split.items() for row in rows}
    assert all(part_of[row] == part_of[row + 1] for row in range(0, 2000, 50))
    for part, share in (("train", 0.8), ("val_select", 0.05), ("val_confirm", 0.05), ("test", 0.1)):
        for emotion in range(7):
            count, whole = (classes_N[split[part]] == emotion).sum(), (classes_N == emotion).sum()
            assert abs(count - share * whole) <= 2 + 0.03 * whole
