"""Which features and which settings of the training carry the quality: ridge proxies in seconds, then real networks.

Usage: python benchmarks/quality.py --data FILE [--work DIR] [--variants NAME ...] [--test NAME] [--json] [--write]

Proxies are ridge regressions cross-validated on the training records alone. Networks are runs of the product, one
process and one folder below --work each; started again, finished runs are only read. They are compared on the select
half of the validation records; only the variant that --test names is evaluated on the test split.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from record import write_result

from redheart.cli import set_environment
from redheart.core.config import FeatureConfig, StudyConfig, TrainConfig, resolved
from redheart.core.progress import SILENT, Display

if TYPE_CHECKING:
    import numpy as np

    from redheart.data.prepare import Prepared
    from redheart.evaluate.evaluation import Evaluation
    from redheart.study.phases import Study

VARIANTS: dict[str, dict[str, object]] = {
    "default": {},
    "dropout .2": {"dropout": 0.2},
    "decay 1": {"weight_decay": 1.0},
    "decay 6": {"weight_decay": 6.0},
    "decay 12": {"weight_decay": 12.0},
    "decay 6, values x 10": {"weight_decay": 6.0, "value_weight": 10.0},
    "decay 6, feature dropout .3": {"weight_decay": 6.0, "feature_dropout": 0.3},
}
"""Settings of the training by name of the variant."""

FOLDS = 5
# Inputs are standardised and divided by the root of their number, so that one grid fits every choice of features.
STRENGTHS = (0.3, 1.0, 3.0, 10.0)


def proxies(data: "Study") -> dict[str, object]:
    """Cross-validated metrics of ridge on each choice of features, at its best strength by emotion KL."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.utils.extmath import randomized_svd

    from redheart.data.input_text import input_text

    prepared, features = data.prepared, data.features
    width = features.manifest.state_width
    summaries_NL, layers_NP = features.summaries_NL, features.layers_NP.astype(np.float32)
    layers = [summaries_NL[:, start : start + width] for start in range(0, summaries_NL.shape[1], width)]
    train = prepared.split["train"]
    texts = [input_text(record, text_chars=1500) for record in prepared.records]
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2), max_features=50_000)
    shares = vectorizer.fit([texts[row] for row in train]).transform(texts)
    lexical_NK = shares @ randomized_svd(shares[train], 150, random_state=0)[2].T
    choices = {f"layer {index}": states_NW for index, states_NW in enumerate(layers)}
    choices |= {
        "all layers": summaries_NL,
        "middle and last two layers, averaged (the token states)": np.mean(
            [layers[len(layers) // 2], *layers[-2:]], axis=0
        ),
        "150 components of TF-IDF": lexical_NK,
        "all layers beside 150 components of TF-IDF": np.concatenate((summaries_NL, lexical_NK), axis=1),
    }
    found: dict[str, object] = {name: _cross_validated(prepared, inputs_ND) for name, inputs_ND in choices.items()}
    found[f"{layers_NP.shape[1]} half-whitened components of all layers (of the pooled half)"] = _cross_validated(
        prepared, layers_NP, standardise=False
    )
    return found


def _cross_validated(prepared: "Prepared", inputs_ND: "np.ndarray", *, standardise: bool = True) -> dict[str, float]:
    import numpy as np

    train = prepared.split["train"]
    given_ND = inputs_ND[train].astype(np.float64)
    # Without labels, so that no fold learns another's answers from it.
    given_ND -= given_ND.mean(0)
    if standardise:
        given_ND /= given_ND.std(0) + 1e-6
    given_ND /= np.sqrt(given_ND.shape[1])
    values_NT = prepared.values_NT[train].astype(np.float64)
    folds = np.array_split(np.random.default_rng(0).permutation(len(train)), FOLDS)
    predicted = {strength: np.zeros_like(values_NT) for strength in STRENGTHS}
    for fold in folds:
        others = np.setdiff1d(np.arange(len(train)), fold)
        mean_T = values_NT[others].mean(0)
        square_DD = given_ND[others].T @ given_ND[others]
        product_DT = given_ND[others].T @ (values_NT[others] - mean_T)
        for strength in STRENGTHS:
            weights_DT = np.linalg.solve(square_DD + strength * np.eye(len(square_DD)), product_DT)
            predicted[strength][fold] = given_ND[fold] @ weights_DT + mean_T
    scores = [_short(prepared, predictions_NT, train) | {"strength": s} for s, predictions_NT in predicted.items()]
    return min(scores, key=lambda score: score["kl"])


def _short(prepared: "Prepared", predicted_NT: "np.ndarray", rows: "np.ndarray") -> dict[str, float]:
    """The figures of the table without intervals: a bootstrap a fold would take longer than the fits."""
    import numpy as np

    from redheart.evaluate import metrics
    from redheart.evaluate.baselines import as_predictions

    predictions = as_predictions(predicted_NT, prepared.inventory)
    values_NT, mask_NT = prepared.values_NT[rows].astype(np.float64), prepared.mask_NT[rows]
    emotion = prepared.inventory.columns("emotion")
    found = {
        "kl": float(metrics.emotion_kl(predictions["emotion"], values_NT[:, emotion]).mean()),
        "accuracy": float(metrics.hits(predictions["emotion"], values_NT[:, emotion], tie_tolerant=False).mean()),
    }
    for task in ("bentham", "regret", "surd"):
        columns = prepared.inventory.columns(task)
        scores = [
            metrics.r_squared(values_NT[:, column], predictions[task][:, index])
            for index, column in enumerate(range(columns.start, columns.stop))
            if mask_NT[:, column].all() and np.ptp(values_NT[:, column])
        ]
        found[f"r2_{task}"] = float(np.mean(scores))
    return found


def study(options: argparse.Namespace, variant: str) -> StudyConfig:
    """The configuration of one run: one cosine cycle over all epochs, so that it ends annealed."""
    train = TrainConfig(
        learning_rate=options.learning_rate,
        cycle_epochs=options.epochs,
        snapshot_every=options.epochs,
        progress="off" if options.json else "bar",
    )
    train = dataclasses.replace(train, **VARIANTS[variant])
    features = FeatureConfig(seq_len_tokens=options.seq_len_tokens)
    return resolved(
        StudyConfig(
            data=str(options.data),
            out=options.work,
            preset=options.preset,
            epochs=options.epochs,
            features=features,
            train=train,
        )
    )


def run_one(options: argparse.Namespace, variant: str) -> None:
    """Train one variant to its end, from wherever it stopped."""
    from redheart.study import phases
    from redheart.study.run_folder import RunFolder

    config = study(options, variant)
    data = phases.open_study(config, RunFolder(options.work), display=SILENT if options.json else Display("bar"))
    phases.run_training(dataclasses.replace(data, folder=RunFolder(folder_of(options, variant))))


def folder_of(options: argparse.Namespace, variant: str) -> Path:
    """Where a variant's run lies."""
    return Path(options.work) / variant.replace(" ", "_").replace(",", "")


def network(options: argparse.Namespace, variant: str, data: "Study") -> dict[str, object]:
    """Losses by epoch and metrics on val_select of a finished run; on the test split where it was asked for."""
    import msgspec
    import numpy as np
    import torch

    from redheart.evaluate.evaluation import evaluate_predictions
    from redheart.evaluate.prediction import predict_rows
    from redheart.model.dims import TASKS
    from redheart.snapshots.blend import single
    from redheart.snapshots.consolidate import assemble, load_assembly
    from redheart.snapshots.module_snapshots import list_snapshots
    from redheart.study import phases
    from redheart.study.run_folder import RunFolder
    from redheart.study.selecting import expected_specs
    from redheart.train.log.events import read_events

    folder = RunFolder(folder_of(options, variant))
    snapshots = list_snapshots(folder.snapshots)
    specs = expected_specs(study(options, variant), data.prepared)
    choice = dict.fromkeys(specs, single(snapshots[-1].epoch))
    assemble(folder.select / "last", choice=choice, snapshots=snapshots, expected=specs)
    model = phases.new_model(study(options, variant), data.prepared)
    load_assembly(model, folder.select / "last")
    model.eval()

    def evaluated(part: str) -> "Evaluation":
        rows = data.prepared.split[part]
        outputs: dict[str, np.ndarray] = predict_rows(model, data.features, rows, micro_batch=64)
        predictions = {task: outputs[f"heads.{task}"] for task in TASKS}
        values_NT, mask_NT = data.prepared.values_NT[rows], data.prepared.mask_NT[rows]
        return evaluate_predictions(predictions, values_NT, mask_NT, data.prepared.inventory)

    torch.set_num_threads(1)
    events = read_events(folder.train / "events.jsonl", "epoch")
    parts = ["val_select", "test"] if variant == options.test else ["val_select"]
    return {
        "settings": VARIANTS[variant],
        **{name: [float(str(event[name])) for event in events] for name in ("train_loss", "val_loss", "epoch_s")},
        **{part: msgspec.to_builtins(evaluated(part)) for part in parts},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="file of records")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="where runs are kept and resumed")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seq-len-tokens", type=int, default=FeatureConfig().seq_len_tokens)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), help="networks to train")
    parser.add_argument("--test", choices=VARIANTS, help="the variant, chosen on val_select, to evaluate on test")
    parser.add_argument("--one", choices=VARIANTS, help="train one in this process")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/quality.json")
    options = parser.parse_args()
    set_environment()
    if options.one:
        run_one(options, options.one)
        return
    for variant in options.variants:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", variant], check=True)
    from redheart.study import phases
    from redheart.study.run_folder import RunFolder

    data = phases.open_study(
        study(options, "default"), RunFolder(options.work), display=SILENT if options.json else Display("bar")
    )
    result: dict[str, object] = {"ridge, 5 folds of the training records": proxies(data)}
    result["networks"] = {variant: network(options, variant, data) for variant in options.variants}
    if options.write:
        names = ("preset", "epochs", "learning_rate", "seq_len_tokens")
        settings = {name: getattr(options, name) for name in names} | {"data": options.data.name}
        write_result("quality", result, settings=settings)
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
