"""The bounds lose no pair and the short cuts change nothing: the result is the plain loops'."""

import random
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Indel

from redheart.data import edit_bounds
from redheart.data import near_duplicates as module
from redheart.data.near_duplicates import near_duplicates
from redheart.data.split import PARTS, split_rows


def plain_loops(texts: list[str], similarity: float) -> tuple[list[bool], list[int]]:
    """What is kept and the components, by the words of their definitions."""
    # With fractions of Python's integers, which have no largest one.
    allowed = 1 - Fraction(str(similarity)).limit_denominator(10**6)

    def near(i: int, j: int) -> bool:
        return Indel.distance(texts[i], texts[j]) <= allowed * (len(texts[i]) + len(texts[j]))

    kept: list[int] = []
    for row in range(len(texts)):
        if not any(near(row, earlier) for earlier in kept):
            kept.append(row)
    smallest = list(range(len(texts)))
    for i, j in combinations(range(len(texts)), 2):
        if near(i, j):
            low, high = sorted((smallest[i], smallest[j]))
            smallest = [low if item == high else item for item in smallest]
    return [row in kept for row in range(len(texts))], smallest


def found(texts: list[str], similarity: float) -> tuple[list[bool], list[int]]:
    result = near_duplicates(texts, similarity=similarity)
    return result.kept_N.tolist(), result.clusters_N.tolist()


@pytest.fixture(params=["as they are", "small"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small chunks, batches and groups a dozen texts reach every branch."""
    if request.param == "small":
        for name, size in {"_FIRST_BATCH": 2, "_LARGEST_BATCH": 4, "_BLOCK": 3, "_LARGE_GROUP": 2}.items():
            monkeypatch.setattr(module, name, size)
        for name, size in {"_CHUNK_ROWS": 2, "_CHUNK_COLUMNS": 3, "_CHUNK_PAIRS": 2, "_LONG_CHARS": 5}.items():
            monkeypatch.setattr(edit_bounds, name, size)


@pytest.mark.usefixtures("sizes")
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_is_found_is_what_the_plain_loops_find(data: st.DataObject) -> None:
    alphabet = data.draw(st.sampled_from(["ab", "abcdefghij ", "가나다 abc\U0001f600"]))
    texts = data.draw(st.lists(st.text(alphabet, max_size=40), max_size=12))
    # Copies, some of them of copies: chains hang together by texts that are dropped.
    for _ in range(data.draw(st.integers(0, 16))):
        if texts:
            text = data.draw(st.sampled_from(texts))
            position = data.draw(st.integers(0, len(text)))
            texts.append(text[:position] + data.draw(st.text(alphabet, max_size=3)) + text[position + 1 :])
    similarity = data.draw(st.sampled_from([0.92, 0.92, 0.8, 0.5, 0.05, 1.0, 0.1 + 0.2, 2 / 3]))
    assert found(texts, similarity) == plain_loops(texts, similarity)


def edited(text: str, source: random.Random, edits: int, letters: str) -> str:
    changed = list(text)
    for _ in range(edits):
        changed[source.randrange(len(changed))] = source.choice(letters)
    return "".join(changed)


def unlike(source: random.Random, count: int) -> list[str]:
    return ["".join(source.choices(LETTERS, k=source.randint(20, 90))) for _ in range(count)]


def families(source: random.Random, count: int) -> list[str]:
    bases = unlike(source, max(1, count // 40))
    return [edited(source.choice(bases), source, source.randint(1, 4), LETTERS) for _ in range(count)]


def long(source: random.Random, count: int) -> list[str]:
    base = " ".join(unlike(source, 30))
    return [edited(base, source, 20, LETTERS) for _ in range(count)]


def templates(source: random.Random, count: int) -> list[str]:
    """Texts a few letters from one or the other of two that are far apart; no bound of characters tells these apart."""
    parts = unlike(source, 6)
    bases = [" ".join(parts), " ".join(parts[::-1])]
    return [edited(source.choice(bases), source, source.randint(0, 4), LETTERS) for _ in range(count)]


LETTERS = "etaoinshrdlu   "
MIXTURES: dict[str, Callable[[random.Random, int], list[str]]] = {
    "equal": lambda source, count: ["[removed by the moderators]"] * count,
    "numbered": lambda source, count: [f"[removed by moderator {index}]" for index in range(count)],
    "numbers apart": lambda source, count: [f"case {source.randrange(10**8):08d} was closed" for _ in range(count)],
    "a chain": lambda source, count: ["a" * (20 + 3 * source.randrange(count)) for _ in range(count)],
    "families": families,
    "long": long,
    "templates": templates,
    "unlike": unlike,
}


@pytest.mark.parametrize("name", [name for name in MIXTURES if name != "long"])
def test_mixtures_equal_the_plain_loops(name: str) -> None:
    texts = MIXTURES[name](random.Random(0), 200)
    assert found(texts, 0.92) == plain_loops(texts, 0.92)


@pytest.mark.parametrize(
    ("name", "count"), [("equal", 9000), ("numbered", 8000), ("families", 4000), ("templates", 2000), ("long", 500)]
)
def test_work_and_memory_do_not_grow_with_the_number_of_pairs(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = 0

    def counting(queries: list[str], *rest: Any, **options: Any) -> Any:
        nonlocal compared
        compared += len(queries)
        return cpdist(queries, *rest, **options)

    cpdist = module.process.cpdist
    monkeypatch.setattr(module.process, "cpdist", counting)
    texts = MIXTURES[name](random.Random(0), count)
    tracemalloc.start()
    near_duplicates(texts, similarity=0.92)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Of 32 million pairs of the numbered texts 25 thousand are compared, and only a batch of pairs is held at a time.
    assert compared <= 10 * count and peak_bytes < 100 << 20, (compared, peak_bytes)


def test_the_border_is_included() -> None:
    # 2 edits in 25 characters of both texts together: exactly 0.92.
    assert Indel.distance("a" * 12 + "b", "a" * 12) == 1
    assert found(["a" * 12 + "b", "a" * 11 + "b"], 0.92) == ([True, False], [0, 0])
    assert found(["x" * 23 + "ab", "x" * 23 + "cd"], 0.92) == ([True, False], [0, 0])
    assert found(["x" * 22 + "ab", "x" * 22 + "cd"], 0.92) == ([True, True], [0, 1])


@pytest.mark.parametrize("similarity", [0.1 + 0.2, 1 / 3, 0.381999999999999, 0.123456789012345678, 1e-6, 0.99999999])
def test_a_similarity_of_many_decimals_is_as_good_as_one_of_few(similarity: float) -> None:
    # Each two of them share as many characters as the one that has fewer x.
    shared = sorted({955, *(min(2500, max(1, round(2500 * similarity) + more)) for more in (-1, 0, 1))})
    texts = ["x" * count + chr(0xAC00 + index) * (2500 - count) for index, count in enumerate(shared)]
    assert found(texts, similarity) == plain_loops(texts, similarity)


def test_at_zero_none_are_looked_for() -> None:
    assert found(["a", "a", "b"], 0.0) == ([True, True, True], [0, 1, 2])


def test_a_dropped_text_joins_two_kept_ones() -> None:
    # The first and the last are near the one in the middle, which is dropped, and not near each other.
    texts = ["a" * 50, "a" * 58, "a" * 66]
    assert found(texts, 0.92) == ([True, False, True], [0, 0, 0]) == plain_loops(texts, 0.92)


def test_half_of_a_surrogate_pair_is_a_character_too() -> None:
    texts = ["\ud800 alone", "\ud800 alone", "\udfff alone"]
    assert found(texts, 0.92) == ([True, False, True], [0, 0, 2])
    assert found([], 0.92) == ([], []) and found([""], 0.92) == ([True], [0])


def test_a_bound_is_never_above_the_distance() -> None:
    source = random.Random(1)
    texts = [edited("the quick brown fox jumps over the lazy dog " * 12, source, 30, "abcdef") for _ in range(40)]
    texts += [text[: source.randrange(300, 500)] for text in texts]
    bounds = edit_bounds.EditBounds(texts, allowed=0.08)
    rows = np.arange(len(texts))
    passed = {
        (int(i), int(j)) for firsts, seconds in bounds.pairs(rows, rows) for i, j in zip(firsts, seconds, strict=True)
    }
    near = {
        (i, j)
        for i in rows
        for j in rows
        if Indel.distance(texts[i], texts[j]) <= 0.08 * (len(texts[i]) + len(texts[j]))
    }
    assert near <= passed and len(passed) < len(texts) ** 2


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
