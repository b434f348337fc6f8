"""Small networks on the frozen features, as baselines: an MLP on the pooled state, a transformer on the token states.

Both are trained with AdamW on the sum of the tasks' losses; the epoch is the best on the select half of the validation
records.

Shape suffixes: B batch, N records, S tokens, D inputs, T target columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from redheart.core.config import FEATURE_WIDTH
from redheart.core.seeds import stream_seed
from redheart.data.features import FeatureCache
from redheart.data.loader import load_features
from redheart.data.prepare import Prepared
from redheart.evaluate.baselines import CHECKED, Predictions, pooled_features

_BATCH = 64


@dataclass(frozen=True)
class Fit:
    """How a network is trained."""

    epochs: int
    learning_rate: float
    weight_decay: float


MLP_FIT = Fit(epochs=30, learning_rate=3e-4, weight_decay=0.1)
TRANSFORMER_FIT = Fit(epochs=6, learning_rate=3e-4, weight_decay=0.1)


class Mlp(nn.Module):
    """One hidden layer on a pooled state."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 256), nn.GELU(), nn.Dropout(0.3), nn.Linear(256, outputs))

    def forward(self, pooled_BD: Tensor) -> Tensor:
        result: Tensor = self.layers(pooled_BD)
        return result


class Reader(nn.Module):
    """Two transformer layers of width 256 on token states, averaged."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.enter = nn.Linear(inputs, 256)
        layer = nn.TransformerEncoderLayer(
            256, 4, 1024, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(256)
        self.predict = nn.Linear(256, outputs)

    def forward(self, states_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        read_BSD = self.norm(self.layers(self.enter(states_BSD), src_key_padding_mask=~mask_BS))
        mean_BD = (read_BSD * mask_BS[..., None]).sum(1) / mask_BS.sum(1, keepdim=True)
        result: Tensor = self.predict(mean_BD)
        return result


def mlp(prepared: Prepared, features: FeatureCache, *, seeds: Sequence[int]) -> dict[str, Predictions]:
    """The MLP's predictions by part, outputs averaged over seeds."""
    pooled_ND = pooled_features(features)
    train = prepared.split["train"]
    scaled_ND = (pooled_ND - pooled_ND[train].mean(0)) / (pooled_ND[train].std(0) + 1e-6)
    inputs = torch.from_numpy(scaled_ND)

    def read(rows: np.ndarray) -> tuple[Tensor, ...]:
        return (inputs[rows],)

    runs = [
        _train(partial(Mlp, inputs.shape[1], prepared.inventory.num_targets), prepared, read, MLP_FIT, seed)
        for seed in seeds
    ]
    return {
        part: {task: np.mean([run[part][task] for run in runs], axis=0) for task in runs[0][part]} for part in CHECKED
    }


def transformer(prepared: Prepared, features: FeatureCache, *, seed: int) -> dict[str, Predictions]:
    """The transformer's predictions by part."""

    def read(rows: np.ndarray) -> tuple[Tensor, ...]:
        return load_features(features, rows)

    make = partial(Reader, FEATURE_WIDTH, prepared.inventory.num_targets)
    return _train(make, prepared, read, TRANSFORMER_FIT, seed)


def _train(
    make: Callable[[], nn.Module],
    prepared: Prepared,
    read: Callable[[np.ndarray], tuple[Tensor, ...]],
    fit: Fit,
    seed: int,
) -> dict[str, Predictions]:
    with torch.random.fork_rng():
        # Initial weights and dropout draw from it.
        torch.manual_seed(stream_seed(seed, "baseline"))
        return _train_here(make(), prepared, read, fit, seed)


def _train_here(
    network: nn.Module,
    prepared: Prepared,
    read: Callable[[np.ndarray], tuple[Tensor, ...]],
    fit: Fit,
    seed: int,
) -> dict[str, Predictions]:
    train = prepared.split["train"]
    steps = -(-len(train) // _BATCH) * fit.epochs
    optimizer = torch.optim.AdamW(network.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, fit.learning_rate, total_steps=steps, pct_start=0.1)
    best_loss, best = np.inf, {}
    for epoch in range(fit.epochs):
        order = np.random.default_rng(stream_seed(seed, "baseline order", epoch)).permutation(train)
        network.train()
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            loss = _loss(network(*read(rows)), prepared, rows)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        outputs = {part: _predict(network.eval(), read, prepared.split[part]) for part in CHECKED}
        checked = float(_loss(outputs["val_select"], prepared, prepared.split["val_select"]))
        if checked < best_loss:
            best_loss, best = checked, {part: _by_task(found, prepared) for part, found in outputs.items()}
    return best


@torch.inference_mode()
def _predict(network: nn.Module, read: Callable[[np.ndarray], tuple[Tensor, ...]], rows: np.ndarray) -> Tensor:
    parts = [network(*read(rows[start : start + 256])) for start in range(0, len(rows), 256)]
    return torch.cat(parts)


def _loss(outputs_BT: Tensor, prepared: Prepared, rows: np.ndarray) -> Tensor:
    """Sum over the tasks: cross-entropy of the distribution, 10 times the squared error of the values.

    The factor brings both to the same order: .1 nats of KL beside a variance of .01.
    """
    targets_BT, mask_BT = torch.from_numpy(prepared.values_NT[rows]), torch.from_numpy(prepared.mask_NT[rows])
    total = outputs_BT.new_zeros(())
    for task in prepared.inventory.tasks:
        columns = prepared.inventory.columns(task.name)
        outputs_BO, mask_BO = outputs_BT[:, columns], mask_BT[:, columns].float()
        if task.kind == "distribution":
            terms_BO = -targets_BT[:, columns] * functional.log_softmax(outputs_BO, -1)
            total = total + (terms_BO * mask_BO).sum() / mask_BO.amax(1).sum().clamp(min=1)
        else:
            squared_BO = (outputs_BO.sigmoid() - targets_BT[:, columns]).square()
            total = total + 10 * (squared_BO * mask_BO).sum() / mask_BO.sum().clamp(min=1)
    return total


def _by_task(outputs_NT: Tensor, prepared: Prepared) -> Predictions:
    found = {}
    for task in prepared.inventory.tasks:
        part_NO = outputs_NT[:, prepared.inventory.columns(task.name)]
        found[task.name] = (part_NO if task.kind == "distribution" else part_NO.sigmoid()).numpy()
    return found
