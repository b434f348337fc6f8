"""Which pairs of texts can be near-duplicates at all: two lower bounds of the Indel distance, for all pairs at once.

The distance d counts insertions and deletions. One of them changes one count in a histogram of characters, also after
the characters were hashed into buckets, so d is at least the L1 distance of the histograms. Written as bits, one for
"this bucket counts to this level or further", that L1 distance is the number of bits that differ: two sums and a
product of matrices, which numpy hands to BLAS. Bits that nearly all texts or nearly none have tell nothing and are left
out, which keeps the bound valid. Two texts of 180 characters take 4 ns, about a hundredth of their distance.

Long texts of one language have similar characters. For those, runs of three characters are counted as well; an
insertion or deletion changes at most five of them. Of 39 million pairs of real posts of 1,500 characters one in 13
passes the first bound, and one in 500 of these the second.

Shape suffixes: N texts, R rows, C columns, K buckets, L levels, D bits, P pairs.
"""

import sys
from collections.abc import Iterator, Sequence

import numpy as np

_BUCKETS = 64
_LARGEST_COUNT = 511
"""Counts saturate here, which keeps the bound valid: |min(a, c) - min(b, c)| <= |a - b|."""
_RUN_BUCKETS = 2048
_RUN_CHANGES = 5
_LONG_CHARS = 400
"""From here on counting runs costs less than the distances that it saves."""
_CHUNK_TEXTS = 1024
_CHUNK_ROWS, _CHUNK_COLUMNS, _CHUNK_PAIRS = 512, 8192, 256
_SAMPLED_COLUMNS = 128
_MAX_BITS = 1024
_NEGLIGIBLE = 0.02
"""Share of the expected distance that may be left out with the bits that tell least."""
_ROUNDING = 1e-2
"""Far above the float32 errors of sums of a few hundred, far below one half, the least step of a bound."""


class EditBounds:
    """Histograms of texts, and the pairs that they leave over: a distance may be at most the share `allowed`, below 1,
    of both lengths together.
    """

    def __init__(self, texts: Sequence[str], *, allowed: float):
        self.lengths_N = np.array([len(text) for text in texts], dtype=np.int64)
        self._allowed = allowed
        self._counts_KN = _histograms(texts)
        self._long_N = np.full(len(texts), -1)
        is_long_N = self.lengths_N >= _LONG_CHARS
        self._long_N[is_long_N] = np.arange(is_long_N.sum())
        long_texts = [text for text, is_long in zip(texts, is_long_N, strict=True) if is_long]
        self._runs_NK = np.stack([_run_histogram(text) for text in long_texts] or [np.zeros(0)])

    def pairs(
        self, rows_R: np.ndarray, columns_C: np.ndarray, slack_N: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The pairs of a row and a column, indices of texts, whose distance may be within what is allowed, by chunks.

        `slack_N` is added to the allowed distance of a pair, a part for each of its texts; nothing without it.
        """
        slack_N = np.zeros(len(self.lengths_N)) if slack_N is None else slack_N
        rows_R = rows_R[np.argsort(self.lengths_N[rows_R], kind="stable")]
        columns_C = columns_C[np.argsort(self.lengths_N[columns_C], kind="stable")]
        lengths_C = self.lengths_N[columns_C]
        for start in range(0, len(rows_R), _CHUNK_ROWS):
            chunk_R = rows_R[start : start + _CHUNK_ROWS]
            # |a - b| <= allowed (a + b) + slack bounds one length of a pair by the other.
            slack = slack_N[chunk_R].max() + slack_N[columns_C].max(initial=0) + 1e-6
            shortest = (self.lengths_N[chunk_R[0]] * (1 - self._allowed) - slack) / (1 + self._allowed)
            longest = (self.lengths_N[chunk_R[-1]] * (1 + self._allowed) + slack) / (1 - self._allowed)
            window_C = columns_C[np.searchsorted(lengths_C, shortest) : np.searchsorted(lengths_C, longest, "right")]
            if len(window_C):
                yield from self._chunk(chunk_R, window_C, slack_N)

    def _chunk(
        self, rows_R: np.ndarray, columns_C: np.ndarray, slack_N: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        buckets_D, levels_D = _telling_bits(self._counts_KN[:, columns_C[:: -(-len(columns_C) // _SAMPLED_COLUMNS)]])
        rows_RD = self._bits(rows_R, buckets_D, levels_D, slack_N, is_row=True).T
        for start in range(0, len(columns_C), _CHUNK_COLUMNS):
            chunk_C = columns_C[start : start + _CHUNK_COLUMNS]
            columns_DC = self._bits(chunk_C, buckets_D, levels_D, slack_N, is_row=False)
            found_P = np.flatnonzero(rows_RD @ columns_DC >= -_ROUNDING)
            firsts_P, seconds_P = rows_R[found_P // len(chunk_C)], chunk_C[found_P % len(chunk_C)]
            passing_P = self._pass_runs(firsts_P, seconds_P, slack_N)
            yield firsts_P[passing_P], seconds_P[passing_P]

    def _bits(
        self, texts_C: np.ndarray, buckets_D: np.ndarray, levels_D: np.ndarray, slack_N: np.ndarray, *, is_row: bool
    ) -> np.ndarray:
        """Bits of texts, (D + 2, C) float32; the last two make a product of them at least 0 where a pair passes."""
        counts_KC = self._counts_KN[:, texts_C]
        bits_DC = np.empty((len(buckets_D) + 2, len(texts_C)), dtype=np.float32)
        np.greater_equal(counts_KC[buckets_D], levels_D[:, None], out=bits_DC[:-2], casting="unsafe")
        # Of bits A and B differ |A| + |B| - 2 AB, which passes if AB >= (|A| - share of A) / 2 + the same of B.
        needed_C = (bits_DC[:-2].sum(0) - self._allowed * self.lengths_N[texts_C] - slack_N[texts_C]) / 2
        bits_DC[-2], bits_DC[-1] = (-needed_C, -1) if is_row else (1, needed_C)
        return bits_DC

    def _pass_runs(self, firsts_P: np.ndarray, seconds_P: np.ndarray, slack_N: np.ndarray) -> np.ndarray:
        passing_P = np.ones(len(firsts_P), dtype=bool)
        runs_P = np.flatnonzero((self._long_N[firsts_P] >= 0) & (self._long_N[seconds_P] >= 0))
        for start in range(0, len(runs_P), _CHUNK_PAIRS):
            chunk_P = runs_P[start : start + _CHUNK_PAIRS]
            firsts, seconds = firsts_P[chunk_P], seconds_P[chunk_P]
            # Pairs come row by row; fetching two histograms costs more than comparing them.
            is_one_row = firsts[0] == firsts[-1]
            first_PK = self._runs_NK[self._long_N[firsts[:1] if is_one_row else firsts]]
            second_PK = self._runs_NK[self._long_N[seconds]]
            # Of bytes without a sign, the difference of the larger and the smaller one fits.
            bound_P = (np.maximum(first_PK, second_PK) - np.minimum(first_PK, second_PK)).sum(1, dtype=np.uint32)
            limit_P = self._allowed * (self.lengths_N[firsts] + self.lengths_N[seconds])
            passing_P[chunk_P] = bound_P <= _RUN_CHANGES * (limit_P + slack_N[firsts] + slack_N[seconds] + 1e-6)
        return passing_P


def _telling_bits(counts_KC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bucket and level of the bits that differ most often between these texts."""
    levels_L = np.arange(1, counts_KC.max(initial=1) + 1)
    share_KL = (counts_KC[:, :, None] >= levels_L).mean(1)
    # A bit that a share p of the texts has differs in 2 p (1 - p) of the pairs.
    differs_D = (share_KL * (1 - share_KL)).ravel()
    order_D = np.argsort(-differs_D, kind="stable")
    told_D = np.cumsum(differs_D[order_D])
    wanted = int(np.searchsorted(told_D, (1 - _NEGLIGIBLE) * told_D[-1])) + 1
    chosen_D = order_D[: min(wanted, _MAX_BITS)]
    return chosen_D // len(levels_L), (chosen_D % len(levels_L) + 1).astype(np.int16)


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _histograms(texts: Sequence[str]) -> np.ndarray:
    """Hashed character counts of all texts, (64, N) int16."""
    chunks = [texts[start : start + _CHUNK_TEXTS] for start in range(0, len(texts), _CHUNK_TEXTS)]
    # The most frequent characters get a bucket each: hashed by their codes, digits met letters there, and three times
    # as many pairs of generated records were left over.
    frequency = np.zeros(sys.maxunicode + 1, dtype=np.int64)
    for chunk in chunks:
        frequency += np.bincount(_codes("".join(chunk)), minlength=len(frequency))
    bucket_of = np.empty(len(frequency), dtype=np.int64)
    bucket_of[np.argsort(-frequency, kind="stable")] = np.arange(len(frequency)) % _BUCKETS
    counts_KN = np.zeros((_BUCKETS, len(texts)), dtype=np.int16)
    for start, chunk in zip(range(0, len(texts), _CHUNK_TEXTS), chunks, strict=True):
        places = np.repeat(np.arange(len(chunk)), [len(text) for text in chunk])
        cells = places * _BUCKETS + bucket_of[_codes("".join(chunk))]
        counts = np.bincount(cells, minlength=len(chunk) * _BUCKETS).reshape(len(chunk), _BUCKETS)
        counts_KN[:, start : start + len(chunk)] = np.minimum(counts, _LARGEST_COUNT).T
    return counts_KN


def _run_histogram(text: str) -> np.ndarray:
    """Hashed counts of runs of three characters, (2048,) uint8, which saturate."""
    codes = _codes(text).astype(np.uint64)
    hashed = (codes[:-2] * np.uint64(1_000_003) + codes[1:-1]) * np.uint64(1_000_003) + codes[2:]
    # The low bits of a product know only the low bits of its factors; the high ones know all.
    hashed = (hashed * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(53)
    counts = np.bincount(hashed.astype(np.int64), minlength=_RUN_BUCKETS)
    return np.minimum(counts, np.iinfo(np.uint8).max).astype(np.uint8)
