"""The replayed allocator on sequences whose outcome follows from the documented rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redheart.core.units import MIB
from redheart.memory.allocator import CachingAllocator, rounded_bytes, segment_bytes


@pytest.mark.parametrize(("size", "rounded"), [(0, 512), (1, 512), (512, 512), (513, 1024), (MIB + 1, MIB + 512)])
def test_requests_are_rounded_to_512(size: int, rounded: int) -> None:
    assert rounded_bytes(size) == rounded


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 512, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 512, 12 * MIB),
        (33 * MIB, 34 * MIB),
    ],
)
def test_segments_follow_the_three_sizes(size: int, segment: int) -> None:
    assert segment_bytes(size) == segment


def test_small_requests_share_a_segment_and_two_segments_are_not_joined() -> None:
    card = CachingAllocator()
    handles = [card.malloc(MIB) for _ in range(3)]
    assert (card.reserved_bytes, card.allocated_bytes) == (4 * MIB, 3 * MIB)
    for handle in handles:
        card.free(handle)
    assert (card.reserved_bytes, card.allocated_bytes) == (4 * MIB, 0)
    card.empty_cache()
    assert card.reserved_bytes == 0


def test_large_block_is_split_only_where_more_than_a_mebibyte_remains() -> None:
    card = CachingAllocator()
    card.malloc(9 * MIB)
    card.malloc(10 * MIB)  # the rest of the first segment is 11 MiB; 1 MiB would remain: not split
    assert (card.reserved_bytes, card.allocated_bytes) == (20 * MIB, 20 * MIB)


def test_best_fit_takes_the_smallest_block_that_is_large_enough() -> None:
    card = CachingAllocator()
    large, small = card.malloc(40 * MIB), card.malloc(12 * MIB)
    card.free(large)
    card.free(small)
    assert card.malloc(11 * MIB + 512) == small and card.malloc(30 * MIB) == large
    assert card.reserved_bytes == 52 * MIB


def test_free_neighbours_are_joined() -> None:
    card = CachingAllocator()
    parts = [card.malloc(5 * MIB) for _ in range(4)]
    card.free(parts[1])
    card.free(parts[2])
    assert card.malloc(10 * MIB) == parts[1]
    assert card.reserved_bytes == 20 * MIB


def test_fragments_do_not_serve_a_larger_request() -> None:
    card = CachingAllocator()
    parts = [card.malloc(5 * MIB) for _ in range(4)]
    card.free(parts[0])
    card.free(parts[2])
    card.malloc(8 * MIB)
    assert card.reserved_bytes == 40 * MIB


@given(st.lists(st.tuples(st.integers(1, 30 * MIB), st.integers(0, 9)), max_size=60))
def test_books_balance_whatever_the_sequence(requests: list[tuple[int, int]]) -> None:
    card, live = CachingAllocator(), {}
    for size, victim in requests:
        live[card.malloc(size)] = size
        if victim < len(live) and victim % 2:
            handle = list(live)[victim]
            del live[handle]
            card.free(handle)
        assert sum(rounded_bytes(size) for size in live.values()) <= card.allocated_bytes <= card.reserved_bytes
    for handle in live:
        card.free(handle)
    card.empty_cache()
    assert card.allocated_bytes == card.reserved_bytes == 0
