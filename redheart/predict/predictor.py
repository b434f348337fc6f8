"""A model with its encoder, names and calibration: texts in, named numbers out.

Shape suffixes: N texts, O targets of a task.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from redheart.core.config import FeatureConfig
from redheart.core.errors import BadInput, DoesNotFit
from redheart.core.text import is_unicode
from redheart.data.encoders import Encoder
from redheart.data.encoding import encode_texts
from redheart.data.features import widened
from redheart.data.input_text import input_text
from redheart.data.inventory import Inventory
from redheart.data.loader import pad, split
from redheart.data.records import Record
from redheart.data.summary import SummaryFit
from redheart.evaluate.calibration import Calibration, calibrated
from redheart.model.network import RedHeart
from redheart.train.device.out_of_memory import in_parts, no_second_try

_CHUNK_TEXTS = 256
"""Texts that are encoded before the model runs: their states, at most 50 MB, are what is held."""
BATCH = 32
_ELSEWHERE = "free the device of other programs, or predict on the CPU (--device cpu)"


class Prediction(msgspec.Struct, frozen=True):
    """What the model says of one text; shares of a distribution sum to 1."""

    id: str
    tasks: dict[str, dict[str, float]]
    unread_script: str | None = None
    """Script of a text that the encoder cannot be expected to make sense of; None where it can."""


@dataclass(frozen=True)
class Predictor:
    """A model ready to predict; made by `redheart.predict.load` or from a run."""

    model: RedHeart
    """In evaluation mode; predictions are made on its device."""
    encoder: Encoder
    features: FeatureConfig
    inventory: Inventory
    trained: dict[str, tuple[str, ...]]
    """Targets by task that the training records had; the outputs of others were never trained and are not shown."""
    summary: SummaryFit | None = None
    """The fit of a narrow encoder's summaries, made on the training records; None where the states are 768 wide."""
    calibration: Calibration | None = None

    def predict(self, texts: Sequence[str | Record], *, batch: int = BATCH) -> list[Prediction]:
        """Predict texts, in their order, `batch` of them at once; a `Record` may bring a title and an action.

        Raises:
            BadInput: a text is given for the list of them, or is empty, or the model's outputs are not numbers.
            DoesNotFit: the device's memory does not take one text, or the encoder.
        """
        return list(self.stream(texts, batch=batch))

    def stream(self, texts: Sequence[str | Record], *, batch: int = BATCH) -> Iterator[Prediction]:
        """As `predict`, yielding while it goes: memory does not grow with the number of texts."""
        if batch < 1:
            raise BadInput("batch out of range", where="--batch", got=batch, expected="1 or more")
        if isinstance(texts, str):
            raise BadInput("one text is given", where="texts", expected="a list of texts", hint="write [text]")
        records = [Record(f"{index}", text) if isinstance(text, str) else text for index, text in enumerate(texts)]
        empty = [record.id for record in records if not record.text.strip()]
        if empty:
            raise BadInput("a text is empty", where=f"id {', '.join(empty[:10])}", expected="at least one word")
        broken = [record.id for record in records if not is_unicode(f"{record.text}{record.title}{record.action}")]
        if broken:
            raise BadInput(
                "a text is not Unicode",
                where=f"id {', '.join(broken[:10])}",
                hint="write it in UTF-8; a terminal in another encoding sends other bytes",
            )
        for start in range(0, len(records), _CHUNK_TEXTS):
            chunk = records[start : start + _CHUNK_TEXTS]
            outputs, unread = self.outputs(chunk, batch=batch), self.unread(chunk)
            for index, record in enumerate(chunk):
                if not all(np.isfinite(values_NO[index]).all() for values_NO in outputs.values()):
                    raise BadInput(
                        "the model's outputs are not numbers",
                        where=f"id {record.id}",
                        hint="the encoder's states of this text, or the weights, are too large; leave the text out",
                    )
                tasks = {task: self._named(task, outputs[task][index]) for task in self.trained}
                yield Prediction(record.id, tasks, unread[index])

    def unread(self, records: Sequence[Record]) -> list[str | None]:
        """By record, the script that the encoder cannot be expected to make sense of; see `Encoder.unread`."""
        return self.encoder.unread([input_text(record, text_chars=self.features.text_chars) for record in records])

    def _named(self, task: str, values_O: np.ndarray) -> dict[str, float]:
        names = self.inventory.task(task).targets
        shown = self.trained[task]
        return {name: round(float(value), 6) for name, value in zip(names, values_O, strict=True) if name in shown}

    @torch.inference_mode()
    def outputs(self, records: Sequence[Record], *, batch: int = BATCH) -> dict[str, np.ndarray]:
        """Shares of the distribution, after calibration, and values in 0-1, by task, (N, O) float64."""
        texts = [input_text(record, text_chars=self.features.text_chars) for record in records]
        with no_second_try(DoesNotFit("out of device memory", where="the encoder", hint=_ELSEWHERE)):
            encoded = encode_texts(self.encoder, texts, seq_len_tokens=self.features.seq_len_tokens)
        states = [widened(item, text, self.summary) for item, text in zip(encoded, texts, strict=True)]
        # Texts of similar length run together, so that little is computed for padding.
        order = np.argsort([len(item) for item in states], kind="stable")
        parameter = next(self.model.parameters())

        def predicted(rows: np.ndarray) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
            features_BSD, mask_BS = pad([states[row] for row in rows])
            return rows, self.model(features_BSD.to(parameter), mask_BS.to(parameter.device))

        found: dict[str, np.ndarray] = {}
        for rows, predictions in in_parts(split([order], batch), predicted):
            for task in self.inventory.tasks:
                values_BO = predictions[f"heads.{task.name}"].double().cpu().numpy()
                if task.kind == "distribution":
                    values_BO = calibrated(values_BO, self.calibration)
                found.setdefault(task.name, np.empty((len(order), values_BO.shape[1])))[rows] = values_BO
        return found
