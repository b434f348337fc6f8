"""Near-duplicates among texts, exactly, without comparing or keeping all pairs.

Similarity is `1 - d / (a + b)` with d the insertions and deletions between texts of a and b characters (what
`rapidfuzz.fuzz.ratio / 100` computes). Equal texts are joined first. Then every text is compared with the kept ones
before it: thousands of texts that are all alike meet one kept text, not each other. That leaves open whether dropped
texts join what is kept. Where many follow one text they are looked at together: d is a metric, so that a group within r
of its kept text is as a whole out of reach of what is far enough from that text.

Shape suffixes: N texts, P pairs, M members of a group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from redheart.data.edit_bounds import EditBounds

_FIRST_BATCH, _LARGEST_BATCH = 64, 2048
_BLOCK = 512
_WORTH_THREADS = 1000
_LARGEST_DENOMINATOR = 10**6
"""Of a similarity as a fraction: a million times a distance fits 64 bits, and no similarity of two texts of less than
half a million characters each lies between the fraction and what was given."""
_LARGE_GROUP = 16
"""Dropped texts from which on a group is looked at as a whole."""


@dataclass(frozen=True)
class NearDuplicates:
    """What is near what among N texts."""

    kept_N: np.ndarray
    """bool; True for every text that is no near-duplicate of an earlier kept one."""
    clusters_N: np.ndarray
    """int64; the connected component of every text, named by its smallest member."""


def near_duplicates(texts: Sequence[str], *, similarity: float) -> NearDuplicates:
    """Which texts are kept and which hang together, at `similarity` or above it; at 0 all are kept and none do."""
    exact = Fraction(str(similarity)).limit_denominator(_LARGEST_DENOMINATOR)
    if exact == 0:
        return NearDuplicates(np.ones(len(texts), dtype=bool), np.arange(len(texts)))
    place_of: dict[str, int] = {}
    place_N = np.array([place_of.setdefault(text, len(place_of)) for text in texts], dtype=np.int64)
    _, first_D = np.unique(place_N, return_index=True)
    search = _Search(list(place_of), exact)
    search.lead()
    search.join_singles()
    search.join_groups()
    kept_N = np.zeros(len(texts), dtype=bool)
    kept_N[first_D[search.is_kept_N]] = True
    return NearDuplicates(kept_N, first_D[search.components_N[place_N]])


class _Search:
    """The search among texts, no two of them equal, step by step; a pair is near from `similarity` on."""

    def __init__(self, texts: Sequence[str], similarity: Fraction):
        self._texts_N = np.array(texts, dtype=object)
        self._allowed = 1 - similarity
        self._bounds = EditBounds(texts, allowed=float(self._allowed))
        self._lengths_N = self._bounds.lengths_N
        self._leaders_N = np.arange(len(texts))
        """The nearest kept text before a dropped one; a kept text itself."""
        self._distances_N = np.full(len(texts), np.iinfo(np.int64).max)
        """Of a dropped text to its leader."""
        self.components_N = np.arange(len(texts))
        """The smallest member of what is known to hang together."""

    @property
    def is_kept_N(self) -> np.ndarray:
        is_kept_N: np.ndarray = self._leaders_N == np.arange(len(self._leaders_N))
        return is_kept_N

    def lead(self) -> None:
        """Keep every text that is near no kept one before it; every pair of a kept and a later one is compared."""
        num_texts = len(self._texts_N)
        start, size = 0, _FIRST_BATCH
        while start < num_texts:
            batch = np.arange(start, min(start + size, num_texts))
            kept = np.flatnonzero(self.is_kept_N[:start])
            for later_P, kept_P in self._bounds.pairs(batch, kept):
                self._follow(kept_P, later_P)
            for first_P, later_P in _by_first(self._bounds.pairs(batch[self.is_kept_N[batch]], batch)):
                if self._leaders_N[first_P[0]] == first_P[0]:
                    self._follow(first_P, later_P)
            start, size = start + size, min(2 * size, _LARGEST_BATCH)

    def _follow(self, kept_P: np.ndarray, later_P: np.ndarray) -> None:
        """Let later texts follow the kept ones that they are near."""
        near_P, distances_P = self._near(kept_P, later_P)
        kept_P, later_P, distances_P = kept_P[near_P], later_P[near_P], distances_P[near_P]
        self._join(kept_P, later_P)
        # The last one written is the nearest.
        order_P = np.argsort(-distances_P, kind="stable")
        order_P = order_P[distances_P[order_P] < self._distances_N[later_P[order_P]]]
        self._leaders_N[later_P[order_P]] = kept_P[order_P]
        self._distances_N[later_P[order_P]] = distances_P[order_P]

    def join_singles(self) -> None:
        """Join what hangs together by dropped texts of small groups; `lead` has compared them with the kept before."""
        singles = np.flatnonzero(~self._is_in_large_group_N)
        dropped = singles[~self.is_kept_N[singles]]
        sizes_N = np.bincount(self.components_N, minlength=len(self._texts_N))
        # A block out of one large component has nothing to ask of the rest of it.
        component = np.where(sizes_N >= _BLOCK, np.arange(len(sizes_N)), -1)[self.components_N[dropped]]
        dropped = dropped[np.lexsort((self._lengths_N[dropped], component))]
        for start in range(0, len(dropped), _BLOCK):
            block = dropped[start : start + _BLOCK]
            own = np.unique(self.components_N[block])
            others = singles[self.components_N[singles] != own[0]] if len(own) == 1 else singles
            for first_P, second_P in self._bounds.pairs(block, others):
                self._join_near(first_P[first_P < second_P], second_P[first_P < second_P])

    def join_groups(self) -> None:
        """Join what hangs together by members of large groups."""
        is_inside_N = self._is_in_large_group_N
        large = np.unique(self._leaders_N[is_inside_N])
        dropped = np.flatnonzero(is_inside_N & ~self.is_kept_N)
        radii_N = np.zeros(len(self._texts_N))
        np.maximum.at(radii_N, self._leaders_N[dropped], self._distances_N[dropped])
        # For y and z within r and s of p and q: d(p, q) <= r + d(y, z) + s, and y is at most r longer than p.
        slack_N = float(1 + self._allowed) * radii_N
        members = {leader: np.flatnonzero(self._leaders_N == leader) for leader in large}
        for first_P, second_P in self._bounds.pairs(
            large, np.concatenate((np.flatnonzero(~is_inside_N), large)), slack_N
        ):
            reach_P = self._reach(first_P, second_P) + slack_N[first_P] + slack_N[second_P]
            distances_P = self._distances(first_P, second_P, cutoff=int(reach_P.max(initial=0)))
            order_P = np.argsort(distances_P, kind="stable")
            for pair in order_P[distances_P[order_P] <= reach_P[order_P]]:
                first, second = first_P[pair], second_P[pair]
                if self.components_N[first] != self.components_N[second]:
                    self._join_group(members[first], members.get(second, second_P[pair : pair + 1]), second, slack_N)

    def _join_group(self, members_M: np.ndarray, others_M: np.ndarray, other: int, slack_N: np.ndarray) -> None:
        """Join two groups if a member of one is near a member of the other, whose leader is given."""
        other_M = np.full(len(members_M), other)
        reach_M = self._reach(members_M, other_M) + slack_N[other]
        distances_M = self._distances(members_M, other_M, cutoff=int(reach_M.max()))
        for first_P, second_P in self._bounds.pairs(members_M[distances_M <= reach_M], others_M):
            self._join_near(first_P, second_P)

    @property
    def _is_in_large_group_N(self) -> np.ndarray:
        sizes_N = np.bincount(self._leaders_N[~self.is_kept_N], minlength=len(self._texts_N))
        is_inside_N: np.ndarray = (sizes_N >= _LARGE_GROUP)[self._leaders_N]
        return is_inside_N

    def _join_near(self, first_P: np.ndarray, second_P: np.ndarray) -> None:
        is_open_P = self.components_N[first_P] != self.components_N[second_P]
        first_P, second_P = first_P[is_open_P], second_P[is_open_P]
        near_P, _ = self._near(first_P, second_P)
        self._join(first_P[near_P], second_P[near_P])

    def _join(self, first_P: np.ndarray, second_P: np.ndarray) -> None:
        """Join the components of near pairs."""
        roots_P = self.components_N[first_P], self.components_N[second_P]
        if not (roots_P[0] != roots_P[1]).any():
            return
        num_texts = len(self._texts_N)
        graph = coo_array((np.ones(len(first_P), dtype=bool), roots_P), shape=(num_texts, num_texts))
        num_names, names_N = connected_components(graph, directed=False)
        smallest = np.full(num_names, num_texts)
        np.minimum.at(smallest, names_N, np.arange(num_texts))
        self.components_N = smallest[names_N[self.components_N]]

    def _near(self, first_P: np.ndarray, second_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which pairs are near, and the distances of these."""
        both_P = self._lengths_N[first_P] + self._lengths_N[second_P]
        distances_P = self._distances(first_P, second_P, cutoff=int(self._allowed * int(both_P.max(initial=0))))
        # In whole numbers, so that a pair on the border is near.
        return distances_P * self._allowed.denominator <= self._allowed.numerator * both_P, distances_P

    def _reach(self, first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
        reach_P: np.ndarray = float(self._allowed) * (self._lengths_N[first_P] + self._lengths_N[second_P]) + 1e-6
        return reach_P

    def _distances(self, first_P: np.ndarray, second_P: np.ndarray, *, cutoff: int | None = None) -> np.ndarray:
        """Indel distances of pairs; above the cutoff any number above it."""
        found_P = process.cpdist(
            self._texts_N[first_P].tolist(),
            self._texts_N[second_P].tolist(),
            scorer=Indel.distance,
            score_cutoff=cutoff,
            dtype=np.int32,
            # To start threads costs more than some hundred distances.
            workers=-1 if len(first_P) >= _WORTH_THREADS else 1,
        )
        return found_P.astype(np.int64)


def _by_first(chunks: Iterator[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (i, j), i < j, of all chunks, those of every i together and i rising."""
    rising = [(first_P[first_P < second_P], second_P[first_P < second_P]) for first_P, second_P in chunks]
    if rising:
        first_P, second_P = (np.concatenate(part) for part in zip(*rising, strict=True))
        order_P = np.argsort(first_P, kind="stable")
        ends = np.flatnonzero(np.diff(first_P[order_P])) + 1
        for part_P in np.split(order_P, ends) if len(order_P) else ():
            yield first_P[part_P], second_P[part_P]
