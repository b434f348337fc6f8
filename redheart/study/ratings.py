"""A run's predictions beside ratings or recordings of people."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from redheart.core.config import Device
from redheart.core.errors import BadInput
from redheart.data.input_text import read_forms
from redheart.data.prepare import load_prepared
from redheart.data.rating_table import RatingTable, read_ratings
from redheart.data.records import Record
from redheart.evaluate.holdout_log import CONFIRM, SELECT
from redheart.evaluate.rank_correlation import Correlation, correlate
from redheart.predict.texts import read_texts
from redheart.study import run_folder
from redheart.study.final import open_run

# Plutchik's and Ekman's, and what GoEmotions counts as positive and as negative (Demszky et al. 2020).
_PLEASANT = """joy trust love amusement gratitude happiness admiration approval caring desire excitement optimism pride
relief"""
_UNPLEASANT = """fear sadness disgust anger annoyance disappointment disapproval embarrassment grief nervousness
remorse"""
_SIGNS = dict.fromkeys(_PLEASANT.split(), 1.0) | dict.fromkeys(_UNPLEASANT.split(), -1.0)


class RatingsResult(msgspec.Struct, frozen=True):
    """Correlations by measure."""

    num_texts: int
    """Rated texts that were predicted."""
    num_rows: int
    num_rows_left_out: int
    """Rows whose text was trained on, is of the test split, or is not known."""
    measures: dict[str, Correlation | None]
    """None where there was too little to correlate."""


def rate(
    root: Path, csv: Path, *, texts: Path | None, encoder: str | None = None, device: Device = "auto"
) -> RatingsResult:
    """Correlate a run's predictions with a table of ratings.

    Of the `texts` that its ids mean, those that the run was trained on are left out: they would flatter the model.
    Without them they are records of the run, of its validation split only: `evaluate` alone opens the test split.

    Raises:
        BadInput: the table or the texts are malformed, a measure is not known, or no row is left.
    """
    table = read_ratings(csv)
    predictor = open_run(root, encoder=encoder, device=device)
    records = _known_texts(root, table, texts)
    rows = [row for row, name in enumerate(table.ids) if name in records]
    if not rows:
        raise BadInput(
            "no text of the table can be predicted",
            where=csv,
            got=f"ids such as {table.ids[0]}",
            expected="ids of texts in the file of --texts that the run was not trained on"
            if texts
            else "ids of the run's validation records",
            hint="give texts with --texts FILE that the run was not trained on",
        )
    found = predictor.predict(list(records.values()))
    affects = {prediction.id: predicted_affect(prediction.tasks) for prediction in found}
    known = next(iter(affects.values()))
    unknown = [name for name in table.values if name not in known]
    if unknown:
        raise BadInput(
            "the model predicts nothing that a column can be held against",
            where=f"{csv}: {', '.join(unknown)}",
            expected=", ".join(sorted(name for name in known if "." not in name)),
            hint="rename or remove the column",
        )
    return RatingsResult(
        num_texts=len(records),
        num_rows=len(rows),
        num_rows_left_out=len(table.ids) - len(rows),
        measures={name: _measure(name, table, rows, affects) for name in table.values},
    )


def predicted_affect(tasks: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Everything of a prediction that a rating can be held against, by measure.

    `valence` is the share of the pleasant emotions less that of the unpleasant ones; others, such as surprise, have
    none. `faa` is held against valence: frontal alpha asymmetry is larger where people approach (Davidson 1992).
    `arousal` is the predicted intensity (Bentham), where that was trained. Targets go by their own name, as
    `sadness` or `regret_factor`; one that two tasks have goes by `surd.surprise`.
    """
    found: dict[str, float] = {}
    for task, values in tasks.items():
        for name, value in values.items():
            found.setdefault(name.lower(), value)
            found[f"{task}.{name}".lower()] = value
    emotions = {name.lower(): value for name, value in tasks.get("emotion", {}).items()}
    if {1.0, -1.0} <= {_SIGNS.get(name) for name in emotions}:
        found["valence"] = found["faa"] = sum(_SIGNS.get(name, 0.0) * value for name, value in emotions.items())
    if "bentham.intensity" in found:
        found["arousal"] = found["bentham.intensity"]
    return found


def _measure(
    name: str, table: RatingTable, rows: list[int], affects: dict[str, dict[str, float]]
) -> Correlation | None:
    rated = [
        (affects[table.ids[row]][name], value, table.subjects[row], table.ids[row])
        for row in rows
        if (value := table.values[name][row]) is not None
    ]
    if not rated:
        return None
    return correlate(*zip(*rated, strict=True))


def _known_texts(root: Path, table: RatingTable, texts: Path | None) -> dict[str, Record]:
    wanted = set(table.ids)
    folder, config = run_folder.load(root)
    prepared = load_prepared(folder.data)
    if texts:
        found = [record for record in read_texts(texts) if record.id in wanted]
        twice = [name for name, count in Counter(record.id for record in found).items() if count > 1]
        if twice:
            raise BadInput("an id stands for several texts", where=texts, got=", ".join(twice[:10]))
        text_chars = config.features.text_chars
        trained = {
            form for row in prepared.split["train"] for form in read_forms(prepared.records[row], text_chars=text_chars)
        }
        return {record.id: record for record in found if trained.isdisjoint(read_forms(record, text_chars=text_chars))}
    rows = np.concatenate([prepared.split[part] for part in (SELECT, CONFIRM)])
    return {prepared.records[row].id: prepared.records[row] for row in rows if prepared.records[row].id in wanted}
