"""All pairs of texts at or above a normalised Indel similarity, exactly, without comparing all pairs.

Similarity is `1 - d / (a + b)` with d the insertions and deletions between texts of a and b characters (what
`rapidfuzz.fuzz.ratio / 100` computes). A pair can only reach s if d <= (1 - s)(a + b), and two lower bounds of d
cost far less than d: the difference of the lengths, and the L1 distance of the histograms of characters, also
after they were hashed into buckets. Long texts of one language have similar characters, so pairs of characters
are counted as well: one insertion or deletion changes at most three of them, which bounds that distance by 3 d.
What passes all is compared by rapidfuzz.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from rapidfuzz.distance import Indel

_BUCKETS = 64
_PAIR_BUCKETS = 512
_BLOCK = 256


def near_duplicate_pairs(texts: Sequence[str], *, similarity: float) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, sorted, whose similarity is at least `similarity` (0 < similarity <= 1)."""
    allowed = 1 - Fraction(str(similarity))
    lengths_N = np.array([len(text) for text in texts], dtype=np.int64)
    order_N = np.argsort(lengths_N, kind="stable")
    sorted_lengths_N = lengths_N[order_N]
    sorted_texts = [texts[index] for index in order_N]
    singles_NK = np.stack([_histogram(_codes(text), _BUCKETS) for text in sorted_texts] or [np.zeros(_BUCKETS)])
    pairs_NK = np.stack([_pair_histogram(text) for text in sorted_texts] or [np.zeros(_PAIR_BUCKETS)])
    # b - a <= allowed (a + b) bounds the longer length of a pair by the shorter one.
    longest_N = np.floor(sorted_lengths_N * float((1 + allowed) / (1 - allowed)) + 1e-9) if allowed < 1 else None
    pairs = []
    for start in range(0, len(texts), _BLOCK):
        stop = min(start + _BLOCK, len(texts))
        end = len(texts)
        if longest_N is not None:
            end = int(np.searchsorted(sorted_lengths_N, longest_N[stop - 1], side="right"))
        for row in range(start, stop):
            bound_M = np.abs(singles_NK[row + 1 : end] - singles_NK[row]).sum(1, dtype=np.int64)
            limit_M = float(allowed) * (sorted_lengths_N[row + 1 : end] + sorted_lengths_N[row]) + 1e-6
            others_M = np.flatnonzero(bound_M <= limit_M)
            bound_M = np.abs(pairs_NK[row + 1 + others_M] - pairs_NK[row]).sum(1, dtype=np.int64)
            for column in row + 1 + others_M[bound_M <= 3 * limit_M[others_M]]:
                first, second = int(order_N[row]), int(order_N[column])
                limit = int(allowed * int(lengths_N[first] + lengths_N[second]))
                if Indel.distance(texts[first], texts[second], score_cutoff=limit) <= limit:
                    pairs.append((min(first, second), max(first, second)))
    return sorted(pairs)


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _pair_histogram(text: str) -> np.ndarray:
    codes = _codes(text).astype(np.uint64)
    return _histogram(codes[:-1] * np.uint64(31) + codes[1:] * np.uint64(17), _PAIR_BUCKETS)


def _histogram(codes: np.ndarray, buckets: int) -> np.ndarray:
    counts = np.bincount((codes % buckets).astype(np.int64), minlength=buckets)
    # Saturating keeps the bound valid: |min(a, c) - min(b, c)| <= |a - b|. A quarter of the range cannot overflow.
    return np.minimum(counts, np.iinfo(np.int16).max // 2).astype(np.int16)


def clusters(num_texts: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """The connected component of every text, named by its smallest member, (N,) int64."""
    parent = list(range(num_texts))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for first, second in pairs:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    return np.array([root(item) for item in range(num_texts)], dtype=np.int64)


def keep_first(num_texts: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """True for every text that is no near-duplicate of an earlier kept one, (N,) bool."""
    kept_N = np.ones(num_texts, dtype=bool)
    for first, second in sorted(pairs, key=lambda pair: (pair[1], pair[0])):
        if kept_N[first] and kept_N[second]:
            kept_N[second] = False
    return kept_N
