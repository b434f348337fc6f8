"""Real steps of training by every way that a step can go: seconds, memory, loss, the same bits twice, and who was busy.

Usage: python benchmarks/card_steps.py --data FILE [--variants today pipeline graphs both gpu_adam8bit]
       [--preset full] [--micro-batch 64] [--steps 100] [--rounds 2] [--name NAME] [--write]

Every run is a process of its own, and the result is written after each. One step of every variant is profiled: the
five lanes of it are `NAME_VARIANT_lanes.png`, the losses `NAME_losses.png`, beside the result.
"""

import argparse
import dataclasses
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from full_steps import first_records
from record import RESULTS, write_result
from training_loops import RATE, one_epoch

from redheart.cli import set_environment
from redheart.core.config import TrainConfig
from redheart.pipeline.lanes import Lane

if TYPE_CHECKING:
    from torch import nn

VARIANTS = {
    "today": {},
    "pipeline": {"pipeline": True},
    "graphs": {"graphs": True},
    "both": {"pipeline": True, "graphs": True},
    "gpu_adam8bit": {"strategy": "gpu_adam8bit"},
}
WARM_UP = 5
"""Steps that are not counted: caches fill, shapes are captured."""


def measure(options: argparse.Namespace, variant: str) -> dict[str, object]:
    """One run in this process."""
    import torch

    from redheart.optim.host_adamw8bit import HostAdamW8bit
    from redheart.study import phases
    from redheart.study.run_folder import RunFolder
    from redheart.train.log.events import read_events
    from redheart.train.loop import train

    settings = TrainConfig(
        effective_batch=options.effective_batch,
        micro_batch=options.micro_batch,
        checkpointing=options.checkpointing,
        **VARIANTS[variant],  # type: ignore[arg-type]
    )
    config = one_epoch(options, settings)
    study = phases.open_study(config, RunFolder(config.out))
    learner = phases.new_learner(study)
    run = dataclasses.replace(
        phases.run_settings(study, RATE, epochs=options.epochs), max_steps=options.steps, snapshots=False
    )
    for name in ("update_part", "add", "sum_squares"):
        setattr(HostAdamW8bit, name, torch.profiler.record_function("host")(getattr(HostAdamW8bit, name)))
    with tempfile.TemporaryDirectory(prefix="redheart-") as folder:
        trace = Path(folder) / "trace.json"
        with one_step_profiled(learner.model, trace):
            train(learner, run, folder=Path(folder) / "train")
        steps, lanes = read_events(Path(folder) / "train" / "events.jsonl", "step"), lanes_of(trace)
    bits = hashlib.sha256()
    for parameter in learner.model.parameters():
        bits.update(parameter.detach().float().cpu().numpy().tobytes())
    on_card = torch.cuda.is_available()
    return {
        "losses": [step["loss"] for step in steps],
        "step_s": [step["step_s"] for step in steps],
        "median_step_s": statistics.median(step["step_s"] for step in steps[WARM_UP:]),  # type: ignore[type-var]
        "median_forward_backward_s": statistics.median(step["forward_backward_s"] for step in steps[WARM_UP:]),  # type: ignore[type-var]
        "weights_sha256": bits.hexdigest(),
        "peak_allocated_bytes": torch.cuda.max_memory_allocated() if on_card else None,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if on_card else None,
        "lanes": lanes,
    }


@contextmanager
def one_step_profiled(model: "nn.Module", trace: Path) -> Iterator[None]:
    """Write what the profiler sees from the first pass after the warm-up to the next but one."""
    import torch

    activities = torch.profiler.supported_activities()
    # The host's lane is a thread of its own.
    everywhere = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    profiler, passes = torch.profiler.profile(activities=activities, experimental_config=everywhere), [0]

    def count(*_: object) -> None:
        passes[0] += model.training
        if passes[0] == WARM_UP and model.training:
            profiler.start()
        elif passes[0] == WARM_UP + 2 and model.training:
            profiler.stop()
            profiler.export_chrome_trace(str(trace))

    handle = model.register_forward_pre_hook(count)
    yield
    handle.remove()


def lanes_of(trace: Path) -> dict[str, list[tuple[float, float]]]:
    """When every lane was busy, in milliseconds since the first."""
    events = json.loads(trace.read_text())["traceEvents"]
    spans: dict[str, list[tuple[float, float]]] = {lane.value: [] for lane in Lane}
    for event in events:
        lane = lane_of(str(event.get("cat", "")), str(event.get("name", "")))
        if lane and "dur" in event:
            spans[lane].append((event["ts"] / 1e3, (event["ts"] + event["dur"]) / 1e3))
    begin = min((start for found in spans.values() for start, _ in found), default=0.0)
    return {lane: sorted((start - begin, end - begin) for start, end in found) for lane, found in spans.items()}


def lane_of(kind: str, name: str) -> str | None:
    """The lane of an event of the profiler's trace, None where it is of none."""
    if kind == "gpu_memcpy":
        return {"DtoH": Lane.OUT.value, "HtoD": Lane.IN.value}.get(name.partition("Memcpy ")[2][:4])
    if kind == "cuda_runtime":
        return Lane.LAUNCH.value if "Launch" in name else None
    if kind == "user_annotation":
        return Lane.HOST.value if name == "host" else None
    return Lane.COMPUTE.value if kind == "kernel" else None


def draw(path: Path, lanes: dict[str, list[list[float]]], title: str) -> None:
    """The five lanes of a step, one above the other."""
    from matplotlib.figure import Figure

    from redheart.report.figures import save_png

    figure = Figure(figsize=(9, 3))
    axes = figure.subplots()
    for number, spans in enumerate(lanes.values()):
        axes.broken_barh([(start, end - start) for start, end in spans], (-number - 0.4, 0.8))
    axes.set(title=title, xlabel="ms", yticks=[-number for number in range(len(lanes))], yticklabels=list(lanes))
    save_png(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="JSON array of records, plain or .gz")
    parser.add_argument("--work", type=Path, default=Path("runs/card_steps"), help="where features are kept")
    parser.add_argument("--records", type=int, default=9000)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--preset", default="full")
    parser.add_argument("--seq-len-tokens", type=int, default=128)
    parser.add_argument("--effective-batch", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--name", default="card_steps", help="of the result's file")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/NAME.json after every run")
    parser.add_argument("--one", choices=VARIANTS, help="one run in this process")
    options = parser.parse_args()
    set_environment()
    if options.one:
        print("RESULT " + json.dumps(measure(options, options.one)))
        return
    from redheart.report.figures import draw_lines

    options.work.mkdir(parents=True, exist_ok=True)
    if not (options.work / "records.json").is_file():
        first_records(options.data, options.records, options.work)
    found: dict[str, dict[str, object]] = {}
    for _ in range(options.rounds):
        for variant in options.variants:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", variant]
            done = subprocess.run(command, capture_output=True, text=True)
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                found[variant] = {"failed": done.stderr.strip().splitlines()[-20:]}
            else:
                run = json.loads(lines[-1].removeprefix("RESULT "))
                lanes, before = run.pop("lanes"), found.get(variant, {}).get("weights_sha256")
                run |= {"notes": [line for line in done.stderr.splitlines() if line.startswith(("note", "warning"))]}
                run |= {"same_bits_as_before": None if before is None else before == run["weights_sha256"]}
                run["busy_ms"] = {lane: sum(end - start for start, end in spans) for lane, spans in lanes.items()}
                found[variant] = run
                if options.write:
                    draw(RESULTS / f"{options.name}_{variant}_lanes.png", lanes, f"{options.preset}, {variant}")
            print(f"{variant}: {found[variant].get('median_step_s', 'failed')} s", file=sys.stderr, flush=True)
            if options.write:
                settings = {**vars(options), "data": options.data.name, "work": options.work.name}
                write_result(options.name, {"variants": found}, settings=settings)
    curves = {name: (list(range(len(run["losses"]))), run["losses"]) for name, run in found.items() if "losses" in run}  # type: ignore[arg-type]
    if options.write and curves:
        path = RESULTS / f"{options.name}_losses.png"
        draw_lines(path, curves, title="loss of the same records", xlabel="step", ylabel="loss")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
