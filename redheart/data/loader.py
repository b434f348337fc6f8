"""Batches in a seekable order: the records of any step of any epoch follow from the seed alone.

Shape suffixes: B batch, S tokens, D 768.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from redheart.core.seeds import stream_seed
from redheart.data.features import FeatureCache


def epoch_order(rows: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """The rows in the order of an epoch."""
    return np.random.default_rng(stream_seed(seed, "order", epoch)).permutation(rows)


def effective_batches(order: np.ndarray, *, effective_batch: int) -> list[np.ndarray]:
    """The rows of every optimizer step; the last step takes what is left, nothing is dropped."""
    return [order[start : start + effective_batch] for start in range(0, len(order), effective_batch)]


def micro_batches(step_rows: np.ndarray, *, micro_batch: int, rank: int, world_size: int) -> list[np.ndarray]:
    """This rank's micro-batches of a step.

    Rows are dealt out to the ranks in turn. All ranks get the same number of micro-batches, since they wait for
    each other in every backward pass; one that has no row left for it gets an empty one.
    """
    mine = step_rows[rank::world_size]
    largest = -(-len(step_rows) // world_size)
    return [mine[start : start + micro_batch] for start in range(0, largest, micro_batch)]


def split(parts: list[np.ndarray], micro_batch: int) -> list[np.ndarray]:
    """Micro-batches cut into smaller ones, in their order."""
    return [part[start : start + micro_batch] for part in parts for start in range(0, len(part), micro_batch)]


def load_features(features: FeatureCache, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of rows, (B, S, 768) float32, padded to the longest of them, and their mask, (B, S) bool."""
    return pad([features.row(int(row)) for row in rows])


def pad(states: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (S, 768) of several texts side by side, padded on the right, as `load_features` gives them."""
    features_BSD = pad_sequence([torch.from_numpy(item.astype(np.float32)) for item in states], batch_first=True)
    lengths_B = torch.tensor([len(item) for item in states])
    return features_BSD, torch.arange(features_BSD.shape[1]) < lengths_B[:, None]
