"""How many texts a second `redheart predict` reads, by preset, encoder and batch.

The weights are initial ones: speed does not depend on them. All ways run in turn in every round, so that a busy moment
of the machine does not fall on one of them alone; the best round of each counts. `encode_share` is the part of the
time that the frozen encoder takes.

Usage: python benchmarks/predict.py [--json] [--write] [--texts N] [--rounds N] [--presets tiny small] [--data FILE]
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from record import write_result

from redheart.core.config import FeatureConfig
from redheart.core.errors import BadInput
from redheart.data.encoders import Encoder, open_encoder
from redheart.data.encoding import encode_texts
from redheart.data.generator import generate
from redheart.data.input_text import input_text
from redheart.data.inventory import make_inventory
from redheart.data.records import Record
from redheart.data.summary import POOLED_WIDTH, SummaryFit
from redheart.data.words import WORDS_WIDTH, Labels, fit_words
from redheart.model.dims import preset
from redheart.model.network import build
from redheart.predict.predictor import Predictor
from redheart.predict.texts import read_texts

ENCODERS = ("hash", "minilm")
BATCHES = (1, 8, 32, 128)


def make_predictor(name: str, encoder: Encoder, label: str) -> Predictor:
    """A predictor of a preset with initial weights and, for a narrow encoder, any projection of its summaries."""
    inventory = make_inventory()
    (sample,) = encoder.encode(["any text"])
    numbers = len(sample.summary_L)
    summary = None
    if numbers:
        shape = (numbers, POOLED_WIDTH - WORDS_WIDTH)
        projection_LP = np.random.default_rng(0).normal(size=shape).astype(np.float32) / np.sqrt(np.float32(numbers))
        texts = [str(row["text"]) for row in generate(2000, seed=0)[0]]
        values_NT = np.random.default_rng(1).random((len(texts), inventory.num_targets))
        rows = np.arange(len(texts))
        labels = Labels(rows, values_NT, np.ones_like(values_NT, dtype=bool), rows)
        words, _ = fit_words(texts, labels)
        summary = SummaryFit("any", np.zeros(numbers, dtype=np.float32), projection_LP, words)
    model = build(preset(name, outputs=inventory.outputs), seed=0).eval()
    trained = {task.name: task.targets for task in inventory.tasks}
    return Predictor(model, encoder, FeatureConfig(encoder=label), inventory, trained, summary)


def some_texts(count: int, data: Path | None) -> list[Record]:
    """The first texts of a file, or generated ones (three sentences in English or Korean)."""
    if data:
        return read_texts(data)[:count]
    rows, _ = generate(count, seed=0)
    return [Record(str(row["id"]), str(row["text"])) for row in rows]


def measure(records: list[Record], *, presets: list[str], batches: list[int], rounds: int) -> list[dict[str, object]]:
    """Texts a second of every way, best of the rounds."""
    encoders = {label: open_encoder(label) for label in ENCODERS}
    predictors = {(name, label): make_predictor(name, encoders[label], label) for name in presets for label in ENCODERS}
    # The texts are sent one call a batch, as a service would; the last batch may be smaller.
    best_s: dict[tuple[str, str, int], float] = {}
    encode_s: dict[tuple[str, int], float] = {}
    for _ in range(rounds):
        for batch in batches:
            parts = [records[start : start + batch] for start in range(0, len(records), batch)]
            for label, encoder in encoders.items():
                start_s = time.perf_counter()
                for part in parts:
                    texts = [input_text(record, text_chars=FeatureConfig().text_chars) for record in part]
                    encode_texts(encoder, texts, seq_len_tokens=FeatureConfig().seq_len_tokens)
                spent_s = time.perf_counter() - start_s
                encode_s[label, batch] = min(encode_s.get((label, batch), spent_s), spent_s)
            for (name, label), predictor in predictors.items():
                start_s = time.perf_counter()
                for part in parts:
                    predictor.predict(part, batch=batch)
                spent_s = time.perf_counter() - start_s
                best_s[name, label, batch] = min(best_s.get((name, label, batch), spent_s), spent_s)
    return [
        {
            "preset": name,
            "encoder": label,
            "batch": batch,
            "texts_per_s": round(len(records) / spent_s, 1),
            "ms_per_batch": round(1000 * spent_s / -(-len(records) // batch), 2),
            "encode_share": round(min(1.0, encode_s[label, batch] / spent_s), 3),
        }
        for (name, label, batch), spent_s in sorted(best_s.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--presets", nargs="+", choices=("tiny", "small", "full"), default=["tiny", "small"])
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--data", type=Path, help="texts to read instead of generated ones")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/predict.json")
    options = parser.parse_args()
    if min(options.texts, options.rounds, *options.batches) < 1:
        raise SystemExit("error: --texts, --rounds and --batches must be 1 or more")
    try:
        records = some_texts(options.texts, options.data)
    except BadInput as error:
        raise SystemExit(f"error: {error}") from None
    words = sum(len(record.text.split()) for record in records)
    result = {
        "texts": len(records),
        "words_per_text": round(words / len(records), 1),
        "ways": measure(records, presets=options.presets, batches=options.batches, rounds=options.rounds),
    }
    if options.write:
        # Where the texts lie is no setting; what they are is.
        settings = {**vars(options), "data": options.data.name if options.data else None}
        write_result("predict", result, settings=settings)
    if options.json:
        print(json.dumps(result))
        return
    print(f"{len(records)} texts of {result['words_per_text']} words")
    for way in result["ways"]:
        print(
            f"{way['preset']:<6} {way['encoder']:<7} batch {way['batch']:>4}  {way['texts_per_s']:>8} texts/s  "
            f"{way['ms_per_batch']:>9} ms a batch  {way['encode_share']:.0%} in the encoder"
        )


if __name__ == "__main__":
    main()
