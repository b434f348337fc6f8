"""Batches in a seekable order: the records of any step of any epoch follow from the seed alone.

Shape suffixes: B batch, S tokens, D 768.
"""

from collections.abc import Sequence

import numpy as np
import torch

from redheart.core.config import FEATURE_WIDTH
from redheart.core.seeds import stream_seed
from redheart.data.features import FeatureCache


def epoch_order(rows: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """The rows in the order of an epoch."""
    return np.random.default_rng(stream_seed(seed, "order", epoch)).permutation(rows)


def micro_batches(step_rows: np.ndarray, *, micro_batch: int, rank: int, world_size: int) -> list[np.ndarray]:
    """This rank's micro-batches of a step.

    Rows are dealt out to the ranks in turn. All ranks get the same number of micro-batches, since they wait for
    each other in every backward pass; one that has no row left for it gets an empty one.
    """
    mine = step_rows[rank::world_size]
    largest = -(-len(step_rows) // world_size)
    return [mine[start : start + micro_batch] for start in range(0, largest, micro_batch)]


def split(parts: list[np.ndarray], size: int) -> list[np.ndarray]:
    """Batches cut into smaller ones, in their order; the last of each takes what is left, nothing is dropped."""
    return [part[start : start + size] for part in parts for start in range(0, len(part), size)]


def load_features(features: FeatureCache, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of rows, (B, S, 768) float32, padded to the longest of them, and their mask, (B, S) bool."""
    return pad([features.row(int(row)) for row in rows])


def kept_channels(num_records: int, share: float, *, like: torch.Tensor) -> torch.Tensor:
    """What features are multiplied by, (B, 1, D): 0 for a share of the channels, the same ones at all tokens of a text.

    The others are scaled up. On the device and in the type of `like`. Source: Tompson et al. 2015 (spatial dropout).
    """
    return torch.nn.functional.dropout(like.new_ones(num_records, 1, FEATURE_WIDTH), share)


def pad(states: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (S, 768) of several texts side by side, padded on the right, as `load_features` gives them."""
    lengths_B = torch.tensor([len(item) for item in states])
    padded_BSD = np.zeros((len(states), int(lengths_B.max()), states[0].shape[1]), dtype=np.float16)
    for padded_SD, item in zip(padded_BSD, states, strict=True):
        padded_SD[: len(item)] = item
    # Widened by torch, which takes a quarter of numpy's time.
    return torch.from_numpy(padded_BSD).float(), torch.arange(padded_BSD.shape[1]) < lengths_B[:, None]
