"""The emotion model as a graph of its modules on fixed records, for the search of `redheart.select`."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from redheart.core.device import records_at_once, study_device, weights_type
from redheart.data.loader import load_features, split
from redheart.evaluate.prediction import length_batches, predictor_losses
from redheart.model.dims import TASKS, preset
from redheart.model.network import WIRING, Signals, as_prediction, build
from redheart.study.phases import Study
from redheart.train.device.out_of_memory import in_parts

FINALS = tuple(f"heads.{task}" for task in TASKS)


class ModuleGraph:
    """Implements `redheart.select.conditional.WiredModel`. Only the module that runs holds weights.

    It predicts these rows of a study's records, with as many at once as the study says, fewer where the device's memory
    runs out.
    """

    wiring: Mapping[str, Sequence[str]] = WIRING
    finals: Sequence[str] = FINALS

    def __init__(self, study: Study, rows: np.ndarray) -> None:
        dims = preset(study.config.preset, outputs=study.prepared.inventory.outputs)
        # As `outputs_of`: torch folds products of weights that require gradients in another way, with other last bits.
        self._model = build(dims, seed=0, device="meta").eval().requires_grad_(False)
        self._prepared, self._features, self._rows = study.prepared, study.features, rows
        self._device = study_device(study.config.device)
        self._dtype, self._largest = weights_type(self._device), records_at_once(study.config)
        self._batches, self._back_N = length_batches(study.features, rows, micro_batch=self._largest)
        self._masks = [load_features(study.features, batch)[1].to(self._device) for batch in self._batches]

    @property
    def num_batches(self) -> int:
        return len(self._batches)

    def load(self, module: str, weights: Mapping[str, Tensor]) -> None:
        typed = {name: tensor.to(self._dtype) for name, tensor in weights.items()}
        self._model.get_submodule(module).load_state_dict(typed, strict=True, assign=True)

    def unload(self, module: str) -> None:
        self._model.get_submodule(module).to_empty(device="meta")

    def compute(self, node: str, batch: int, read: Mapping[str, Signals]) -> Signals:
        def computed(rows: np.ndarray) -> Signals:
            part = slice(rows[0], rows[-1] + 1)
            features_BSD = torch.empty(0)
            if not WIRING[node]:
                features_BSD, _ = load_features(self._features, self._batches[batch])
                features_BSD = features_BSD[part].to(self._device, self._dtype)
            own = {name: {key: value[part] for key, value in signals.items()} for name, signals in read.items()}
            return self._model.compute(node, features_BSD, self._masks[batch][part], own)

        parts = in_parts(split([np.arange(len(self._batches[batch]))], self._largest), computed)
        if len(parts) == 1:
            return parts[0]
        # Memory ran out: the next node need not find that out again.
        self._largest = max(len(next(iter(part.values()))) for part in parts)
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def losses(self, final: str, signals: Sequence[Signals]) -> np.ndarray:
        predictions_NO = torch.cat([as_prediction(final, part) for part in signals]).cpu().numpy()[self._back_N]
        if not np.isfinite(predictions_NO).all():
            # Without a target nothing would show of it, and `predict_rows` would refuse the model once it is chosen.
            return np.full(len(self._rows), np.inf)
        return predictor_losses({final: predictions_NO}, self._prepared, self._rows)[final]
