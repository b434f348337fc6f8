"""The emotion model as a graph of its modules on fixed records, for the search of `redheart.select`."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from redheart.data.features import FeatureCache
from redheart.data.loader import load_features
from redheart.data.prepare import Prepared
from redheart.evaluate.prediction import length_batches, predictor_losses
from redheart.model.dims import TASKS, ModelDims
from redheart.model.network import WIRING, Signals, as_prediction, build

FINALS = tuple(f"heads.{task}" for task in TASKS)


class ModuleGraph:
    """Implements `redheart.select.conditional.WiredModel`. Only the module that runs holds weights, in float32.

    Args:
        dims: of the model.
        prepared: the data set.
        features: of its records.
        rows: the records to predict, in the order of the losses.
        micro_batch: records per forward pass.
    """

    wiring: Mapping[str, Sequence[str]] = WIRING
    finals: Sequence[str] = FINALS

    def __init__(
        self, dims: ModelDims, prepared: Prepared, features: FeatureCache, rows: np.ndarray, *, micro_batch: int
    ) -> None:
        # As `outputs_of`: torch folds products of weights that require gradients in another way, with other last bits.
        self._model = build(dims, seed=0, device="meta").eval().requires_grad_(False)
        self._prepared, self._features, self._rows = prepared, features, rows
        self._batches, self._back_N = length_batches(features, rows, micro_batch=micro_batch)
        self._masks = [load_features(features, batch)[1] for batch in self._batches]

    @property
    def num_batches(self) -> int:
        return len(self._batches)

    def load(self, module: str, weights: Mapping[str, Tensor]) -> None:
        target = self._model.get_submodule(module)
        target.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True, assign=True)

    def unload(self, module: str) -> None:
        self._model.get_submodule(module).to_empty(device="meta")

    def compute(self, node: str, batch: int, read: Mapping[str, Signals]) -> Signals:
        features_BSD = torch.empty(0)
        if not WIRING[node]:
            features_BSD, _ = load_features(self._features, self._batches[batch])
        return self._model.compute(node, features_BSD, self._masks[batch], read)

    def losses(self, final: str, signals: Sequence[Signals]) -> np.ndarray:
        predictions_NO = torch.cat([as_prediction(final, part) for part in signals]).numpy()[self._back_N]
        return predictor_losses({final: predictions_NO}, self._prepared, self._rows)[final]
