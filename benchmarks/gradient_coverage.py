"""Which share of the model's parameters receives a gradient within one effective batch of real records.

Float32, all gradients of `full` at once: 6 GiB of host memory beside the activations.
"""

import argparse
import json
import time
from pathlib import Path

from record import write_result

from redheart.cli import set_environment
from redheart.core.config import FeatureConfig, StudyConfig, resolved
from redheart.core.progress import Display


def coverage(config: StudyConfig, *, micro_batch: int) -> dict[str, object]:
    """Tensors and elements with a non-zero gradient after one effective batch, in all and per module."""
    import torch

    from redheart.study import phases, run_folder
    from redheart.study.learner import EmotionLearner

    folder = run_folder.start(config)
    study = phases.open_study(config, folder, display=Display("bar"))
    learner = EmotionLearner(
        phases.new_model(config, study.prepared),
        study.prepared,
        study.features,
        config.train,
        seed=config.seed,
    )
    rows = learner.epoch_rows(0)[: config.train.effective_batch]
    start_s = time.perf_counter()
    loss = 0.0
    for start in range(0, len(rows), micro_batch):
        part = learner.loss(learner.model, rows[start : start + micro_batch], step_rows=rows)
        part.total.backward()
        loss += part.total.item()
    silent = []
    modules: dict[str, list[int]] = {name: [0, 0] for name in learner.modules()}
    for name, parameter in learner.model.named_parameters():
        module = next(item for item in modules if name.startswith(f"{item}."))
        received = 0 if parameter.grad is None else int(torch.count_nonzero(parameter.grad))
        modules[module][0] += received
        modules[module][1] += parameter.numel()
        if not received:
            silent.append(name)
    received, elements = (sum(counts[index] for counts in modules.values()) for index in (0, 1))
    return {
        "parameters": elements,
        "elements_with_gradient": received,
        "share": received / elements,
        "tensors": sum(1 for _ in learner.model.parameters()),
        "tensors_without_gradient": silent,
        "share_by_module": {name: counts[0] / counts[1] for name, counts in modules.items()},
        "records": len(rows),
        "loss": loss,
        "forward_backward_s": round(time.perf_counter() - start_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="file of records")
    parser.add_argument("--out", type=Path, required=True, help="run folder; its features are used again")
    parser.add_argument("--preset", default="full")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/gradient_coverage.json")
    options = parser.parse_args()
    set_environment()
    config = resolved(
        StudyConfig(
            data=options.data, out=options.out, preset=options.preset, features=FeatureConfig(encoder=options.encoder)
        )
    )
    result = coverage(config, micro_batch=options.micro_batch)
    if options.write:
        settings = {"preset": options.preset, "encoder": options.encoder, "data": Path(options.data).name}
        write_result("gradient_coverage", result, settings=settings)
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
