"""A stratified split 80/10/10 that keeps clusters together; validation is halved into select and confirm."""

from collections.abc import Iterator, Mapping

import numpy as np

from redheart.core.seeds import stream_seed

TEST = "test"
PARTS = ("train", "val_select", "val_confirm", "test")
# Dealt out in turn along the records sorted by class: every class gives its share to every part within one record.
_DEAL = ("test", *["train"] * 4, "val_select", *["train"] * 4, "test", *["train"] * 4, "val_confirm", *["train"] * 4)


def split_rows(classes_N: np.ndarray, clusters_N: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Rows of every part, sorted, from the class of every record, in a canonical order; those of one cluster stay
    together.
    """
    leaders_M, first_M = np.unique(clusters_N, return_index=True)
    shuffled_M = np.random.default_rng(stream_seed(seed, "split")).permutation(len(leaders_M))
    by_class_M = shuffled_M[np.argsort(classes_N[first_M][shuffled_M], kind="stable")]
    part_of_cluster = {int(leaders_M[unit]): _DEAL[turn % len(_DEAL)] for turn, unit in enumerate(by_class_M)}
    parts_N = np.array([part_of_cluster[int(cluster)] for cluster in clusters_N])
    return {part: np.flatnonzero(parts_N == part) for part in PARTS}


def expected_rows(num_records: int) -> dict[str, int]:
    """Rows of every part of so many records, but for the few that clusters move."""
    return {part: round(num_records * _DEAL.count(part) / len(_DEAL)) for part in PARTS}


class Split(Mapping[str, np.ndarray]):
    """Rows by part. The rows of the test part are closed: whoever wants them must open them, and say so."""

    def __init__(self, parts: Mapping[str, np.ndarray], *, _is_open: bool = False) -> None:
        self._parts, self._is_open = dict(parts), _is_open

    def __getitem__(self, part: str) -> np.ndarray:
        if part == TEST and not self._is_open:
            raise AssertionError("the test split is closed here; only an evaluation opens it")
        return self._parts[part]

    def __iter__(self) -> Iterator[str]:
        return iter(part for part in self._parts if part != TEST or self._is_open)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def opened(self) -> "Split":
        """The same with the test part."""
        return Split(self._parts, _is_open=True)
