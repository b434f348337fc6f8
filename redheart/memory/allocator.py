"""A replay of torch's caching allocator in pure Python: what a card has reserved after any sequence of requests.

Rules of `c10/cuda/CUDACachingAllocator.cpp` (default settings): sizes are rounded up to 512 bytes; up to 1 MiB are
served from segments of 2 MiB, below 10 MiB from segments of 20 MiB, larger ones from a segment of their own, rounded
up to 2 MiB; the smallest free block that is large enough is taken (lowest address first) and split where at least
512 bytes (small) or more than 1 MiB (large) remain; free neighbours are joined; when the limit is reached, free
segments are given back before it is an out-of-memory error.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

MIN_BLOCK_BYTES = 512
SMALL_BYTES = 1 << 20
SMALL_SEGMENT_BYTES = 2 << 20
MIN_LARGE_BYTES = 10 << 20
LARGE_SEGMENT_BYTES = 20 << 20
ROUND_LARGE_BYTES = 2 << 20


@dataclass(slots=True)
class _Block:
    address: int
    size: int
    small: bool
    used: bool = False
    before: "_Block | None" = None
    after: "_Block | None" = None


def rounded_bytes(size_bytes: int) -> int:
    """The bytes that a request takes of a block."""
    return max(MIN_BLOCK_BYTES, -(-size_bytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES)


def segment_bytes(rounded: int) -> int:
    """The bytes that are asked of the driver for a rounded request that no cached block can serve."""
    if rounded <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if rounded < MIN_LARGE_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-rounded // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES


class CachingAllocator:
    """One stream of one card. `allocated_bytes` counts rounded requests, `reserved_bytes` segments."""

    def __init__(self) -> None:
        self.allocated_bytes = self.reserved_bytes = 0
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._blocks: dict[int, _Block] = {}
        self._next_address = 0

    def malloc(self, size_bytes: int) -> int:
        """Serve a request; the address is the handle for `free`."""
        size = rounded_bytes(size_bytes)
        small = size <= SMALL_BYTES
        pool = self._free[small]
        position = bisect_left(pool, (size, -1))
        is_cached = position < len(pool)
        block = self._blocks[pool.pop(position)[1]] if is_cached else self._new_segment(size, small=small)
        rest = block.size - size
        if rest >= MIN_BLOCK_BYTES if small else rest > SMALL_BYTES:
            tail = _Block(block.address + size, rest, small, before=block, after=block.after)
            if block.after:
                block.after.before = tail
            block.after, block.size = tail, size
            self._blocks[tail.address] = tail
            insort(pool, (tail.size, tail.address))
        block.used = True
        self.allocated_bytes += block.size
        return block.address

    def free(self, address: int) -> None:
        """Give a block back to its pool and join it with free neighbours."""
        block = self._blocks[address]
        assert block.used, "freed twice"
        block.used = False
        self.allocated_bytes -= block.size
        pool = self._free[block.small]
        before, after = block.before, block.after
        if after and not after.used:
            self._take_from(pool, after)
            block.size, block.after = block.size + after.size, after.after
            if after.after:
                after.after.before = block
            del self._blocks[after.address]
        if before and not before.used:
            self._take_from(pool, before)
            before.size, before.after = before.size + block.size, block.after
            if block.after:
                block.after.before = before
            del self._blocks[block.address]
            block = before
        insort(pool, (block.size, block.address))

    def empty_cache(self) -> None:
        """Give free segments back to the driver."""
        for pool in self._free.values():
            for size, address in list(pool):
                block = self._blocks[address]
                if block.before is None and block.after is None:
                    pool.remove((size, address))
                    del self._blocks[address]
                    self.reserved_bytes -= size

    def _new_segment(self, size: int, *, small: bool) -> _Block:
        wanted = segment_bytes(size)
        block = _Block(self._next_address, wanted, small)
        # A gap, so that two segments never look like neighbours.
        self._next_address += wanted + MIN_BLOCK_BYTES
        self._blocks[block.address] = block
        self.reserved_bytes += wanted
        return block

    @staticmethod
    def _take_from(pool: list[tuple[int, int]], block: _Block) -> None:
        position = bisect_left(pool, (block.size, block.address))
        assert pool[position] == (block.size, block.address)
        pool.pop(position)
