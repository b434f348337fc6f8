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
_CHUNK_TEXTS = 1024
# A bucket counts to 511 at most, so that a distance over 64 buckets fits into 16 bits. Saturating keeps the bound
# valid: |min(a, c) - min(b, c)| <= |a - b|.
_LARGEST_COUNT = np.iinfo(np.int16).max // _BUCKETS


def near_duplicate_pairs(texts: Sequence[str], *, similarity: float) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, sorted, whose similarity is at least `similarity` (0 < similarity <= 1)."""
    allowed = 1 - Fraction(str(similarity))
    lengths_N = np.array([len(text) for text in texts], dtype=np.int64)
    order_N = np.argsort(lengths_N, kind="stable")
    sorted_lengths_N = lengths_N[order_N]
    sorted_texts = [texts[index] for index in order_N]
    # Buckets first: sums over them then run along memory.
    counts_KN = _histograms(sorted_texts)
    pair_counts: dict[int, np.ndarray] = {}

    def pair_histogram(row: int) -> np.ndarray:
        if row not in pair_counts:
            pair_counts[row] = _pair_histogram(sorted_texts[row])
        return pair_counts[row]

    # b - a <= allowed (a + b) bounds the longer length of a pair by the shorter one.
    longest_N = np.floor(sorted_lengths_N * float((1 + allowed) / (1 - allowed)) + 1e-9) if allowed < 1 else None
    pairs = []
    for row in range(len(texts)):
        pair_counts.pop(row - 1, None)
        end = len(texts)
        if longest_N is not None:
            end = int(np.searchsorted(sorted_lengths_N, longest_N[row], side="right"))
        bound_M = np.abs(counts_KN[:, row + 1 : end] - counts_KN[:, row, None]).sum(0, dtype=np.int16)
        limit_M = float(allowed) * (sorted_lengths_N[row + 1 : end] + sorted_lengths_N[row]) + 1e-6
        for offset in np.flatnonzero(bound_M <= limit_M):
            column = row + 1 + int(offset)
            if np.abs(pair_histogram(column) - pair_histogram(row)).sum() > 3 * limit_M[offset]:
                continue
            first, second = int(order_N[row]), int(order_N[column])
            limit = int(allowed * int(lengths_N[first] + lengths_N[second]))
            if Indel.distance(texts[first], texts[second], score_cutoff=limit) <= limit:
                pairs.append((min(first, second), max(first, second)))
    return sorted(pairs)


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _pair_histogram(text: str) -> np.ndarray:
    codes = _codes(text).astype(np.uint64)
    hashed = (codes[:-1] * np.uint64(31) + codes[1:] * np.uint64(17)) % _PAIR_BUCKETS
    return np.bincount(hashed.astype(np.int64), minlength=_PAIR_BUCKETS)


def _histograms(texts: Sequence[str]) -> np.ndarray:
    """Hashed character counts of all texts, (64, N) int16."""
    counts_KN = np.zeros((_BUCKETS, len(texts)), dtype=np.int16)
    for start in range(0, len(texts), _CHUNK_TEXTS):
        chunk = texts[start : start + _CHUNK_TEXTS]
        places = np.repeat(np.arange(len(chunk)), [len(text) for text in chunk])
        cells = places * _BUCKETS + (_codes("".join(chunk)) % _BUCKETS)
        counts = np.bincount(cells, minlength=len(chunk) * _BUCKETS).reshape(len(chunk), _BUCKETS)
        counts_KN[:, start : start + len(chunk)] = np.minimum(counts, _LARGEST_COUNT).T
    return counts_KN


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
