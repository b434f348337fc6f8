"""Every single baseline refitted on the run's own split, evaluated on the test split with bootstrap intervals.

Usage: python benchmarks/baselines.py --data FILE [--work DIR] [--seed N] [--skip-transformer] [--json] [--write]

Records, split and features below --work are those of a run's folder and are made where they are missing. The stack is
a convex combination of all the others, its weights fitted on the select half of the validation records: a line to
compare a single model with, not a model that anyone trains.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from record import write_result

from redheart.cli import set_environment
from redheart.core.config import FeatureConfig, StudyConfig
from redheart.core.progress import SILENT, Display

if TYPE_CHECKING:
    from redheart.data.prepare import Prepared
    from redheart.evaluate.baselines import Predictions
    from redheart.evaluate.evaluation import Evaluation


def fit_all(options: argparse.Namespace) -> "dict[str, Evaluation]":
    """Evaluations on the test split by name, the stack last."""
    import network_baselines

    from redheart.evaluate.baselines import evaluate_on, linear_baselines
    from redheart.study import phases
    from redheart.study.run_folder import RunFolder

    # The baselines of the table read what they always read: the last layer's states.
    features = FeatureConfig()
    config = StudyConfig(data=str(options.data), out=options.work, features=features, seed=options.seed)
    study = phases.open_study(config, RunFolder(options.work), display=SILENT if options.json else Display("bar"))
    # The test split is opened for baselines alone: nothing of ours is chosen by it.
    prepared = dataclasses.replace(study.prepared, split=study.prepared.split.opened())
    found = linear_baselines(prepared, study.features, text_chars=features.text_chars)
    found["MLP on pooled states"] = network_baselines.mlp(prepared, study.features, seeds=(0, 1, 2))
    if not options.skip_transformer:
        found["transformer on token states"] = network_baselines.transformer(prepared, study.features, seed=0)
    found["stack of all"] = stack(prepared, list(found.values()))
    return {name: evaluate_on(prepared, parts["test"], "test") for name, parts in found.items()}


def stack(prepared: "Prepared", members: "list[dict[str, Predictions]]") -> "dict[str, Predictions]":
    """A convex combination of the members for every task; the emotion's in log shares."""
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import log_softmax, softmax

    from redheart.evaluate.metrics import record_losses

    combined: dict[str, Predictions] = {"test": {}}
    rows = prepared.split["val_select"]
    for task in prepared.inventory.tasks:
        columns = prepared.inventory.columns(task.name)
        is_distribution = task.kind == "distribution"
        parts = {
            part: np.stack(
                [log_softmax(m[part][task.name], axis=1) if is_distribution else m[part][task.name] for m in members]
            )
            for part in ("val_select", "test")
        }

        def loss(
            free: np.ndarray,
            members_MNO: np.ndarray = parts["val_select"],
            kind: str = task.kind,
            columns: slice = columns,
        ) -> float:
            mixed_NO = np.tensordot(softmax(free), members_MNO, 1)
            losses_N = record_losses(
                kind, mixed_NO, prepared.values_NT[rows][:, columns], prepared.mask_NT[rows][:, columns]
            )
            return float(np.nanmean(losses_N))

        weights = softmax(minimize(loss, np.zeros(len(members)), method="Powell", bounds=[(-6, 6)] * len(members)).x)
        combined["test"][task.name] = np.tensordot(weights, parts["test"], 1)
    return combined


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="file of records")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/baselines"), help="a run's folder, for data and features"
    )
    parser.add_argument("--seed", type=int, default=0, help="the run's, which decides its split")
    parser.add_argument("--skip-transformer", action="store_true", help="leave out the slowest, about half an hour")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/baselines.json")
    options = parser.parse_args()
    set_environment()
    found = fit_all(options)
    import msgspec
    from study_tables import models_table

    payload = {name: msgspec.to_builtins(evaluation) for name, evaluation in found.items()}
    if options.write:
        settings = {"seed": options.seed, "data": options.data.name, "features": dataclasses.asdict(FeatureConfig())}
        write_result("baselines", payload, settings=settings)
    print(json.dumps(payload) if options.json else models_table(found))


if __name__ == "__main__":
    main()
