"""What `full_study.sh` asks of Python: a plan before a study, its small results after every call.

Usage: python benchmarks/full_study.py plan RUN RESULTS CAP CALL_S [OPTIONS of `redheart train`]
       python benchmarks/full_study.py results RUN RESULTS

`plan` writes RESULTS/plan.json, tells on standard error what the sweep and the run are expected to take in calls of
CALL_S seconds, and prints the options that a card of CAP is best used with. `results` copies what a run tells to
RESULTS and adds `study.json` (as `study.py --so-far`) and `measured.json`, planned beside measured. No file of more
than 16 MiB is written: it is compressed, or left out and named in `left_out.json`.
"""

import gzip
import json
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from record import result_record
from study import found_by

from redheart.cli import set_environment
from redheart.core.errors import RedHeartError

MAX_BYTES = 16 << 20
KEPT = (
    *("config.json", "openings.json", "data/manifest.json", "train/*.jsonl", "select/*.json", "evaluation/*.json"),
    *("sweep/*.json", "sweep/*.csv", "sweep/*.png", "sweep/*/*.jsonl", "calibration/*", "report/**/*"),
)
"""What of a run's files is small and tells something."""


def plan(run: Path, results: Path, cap: str, call_s: float, arguments: Sequence[str]) -> None:
    """Plan a study for a card of `cap`, and say how long it takes on this machine.

    Raises:
        BadInput: a setting is wrong.
        DoesNotFit: a card of this size is too small.
    """
    import torch

    from redheart.cli.options import parse
    from redheart.cli.study import study_defaults
    from redheart.core.config import StudyConfig, resolved
    from redheart.core.files import read_sealed, write_json
    from redheart.data.prepare import Manifest
    from redheart.data.split import expected_rows
    from redheart.memory.cards import known
    from redheart.study.outlook import plan_output, planning

    default, _, rest, _ = study_defaults([item for item in arguments if item != "--force"])
    given = parse(StudyConfig, rest, "train", default)
    config = resolved(given)
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    # The card is larger than what is allowed of it, and `redheart` would choose for all of it.
    is_open = device is not None and config.preset == "full" and not given.train.micro_batch
    path, asked = results / "plan.json", [cap, device, *arguments]
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if found.get("asked") != asked:
        answer = planning.answer(
            config,
            vram_bytes=planning.parse_bytes(cap),
            micro_batch=None if is_open else config.train.micro_batch,
            card=known(device) if device else None,
        )
        if device:
            planning.refuse_unless_fits(answer)
        found = {"asked": asked, "device": device, "plan": plan_output.plan_fields(answer)}
        write_json(path, found)
    manifest = run / "data" / "manifest.json"
    planned = expected_rows(planning.NUM_RECORDS)["train"]
    records = read_sealed(manifest, Manifest).train if manifest.is_file() else planned
    steps = math.ceil(records / config.train.effective_batch)
    for part, epochs in {"sweep": len(config.sweep.rates) * config.sweep.epochs, "train": config.epochs}.items():
        print(f"{part}: {estimate_text(found['plan'], epochs, steps, call_s=call_s)}", file=sys.stderr)
    if is_open:
        recompute = ["--train.checkpointing"] if found["plan"]["checkpointing"] else []
        print(*("--train.micro-batch", found["plan"]["micro_batch"], *recompute))


def step_times(fields: dict[str, Any]) -> tuple[float, float, float, str] | None:
    """Seconds of a step by a plan, from least to most, and where they are from; None where it has none."""
    if card := fields["on_card"]:
        step = card["step"]
        return step["step_s"], step["low_s"], step["high_s"], f"simulated, {card['card']}"
    if fields["step_s"] is None:
        return None
    return fields["step_s"], fields["step_s"], fields["step_s"], f"measured: {fields['time_basis']}"


def estimate_text(fields: dict[str, Any], epochs: int, steps: int, *, call_s: float) -> str:
    """Hours and calls of so many epochs of so many steps."""
    text = f"{epochs} epochs of {steps} steps"
    times = step_times(fields)
    if times is None:
        return f"{text}; this machine has not taken such steps yet, the run says how long after its first ones"
    hours = [epochs * steps * seconds / 3600 for seconds in times[:3]]
    calls = math.ceil(hours[0] * 3600 / max(1.0, call_s))
    return (
        f"{text} of {times[0]:.2f} s ({times[3]}), {hours[0]:.2f} hours ({hours[1]:.2f} to {hours[2]:.2f}) without "
        f"validation and saving, {calls} calls"
    )


def collect(run: Path, results: Path) -> None:
    """Copy what a run tells, whatever has run of it; afterwards `results` holds no file of more than MAX_BYTES.

    Raises:
        CorruptFile: a file of the run was changed.
    """
    import msgspec

    from redheart.study.run_folder import load

    paths = {path for pattern in KEPT for path in run.glob(pattern) if path.is_file() and path.name[0] != "."}
    sizes = {str(path.relative_to(run)): keep(results, path.relative_to(run), path.read_bytes()) for path in paths}
    if (run / "data" / "manifest.json").is_file():
        folder, config = load(run)
        settings = msgspec.to_builtins(config, enc_hook=str) | {"data": Path(config.data).name, "out": run.name}
        for name, found in {"study": found_by(folder, so_far=True), "measured": measured(run, results)}.items():
            record = json.dumps(result_record(f"full_study_{name}", found, settings=settings), indent=1)
            sizes[f"{name}.json"] = keep(results, Path(f"{name}.json"), record.encode())
    left_out = sorted(name for name, size in sizes.items() if size is None)
    keep(results, Path("left_out.json"), json.dumps(left_out).encode())
    written = sum(size or 0 for size in sizes.values())
    print(f"results: {len(sizes) - len(left_out)} files, {written / 2**20:.2f} MiB, in {results}", file=sys.stderr)
    if left_out:
        print(f"warning: too large for results: {', '.join(left_out)}", file=sys.stderr)


def keep(results: Path, name: Path, content: bytes, *, max_bytes: int = MAX_BYTES) -> int | None:
    """Write a file of results, compressed where it is too large; bytes written, None where it is left out."""
    from redheart.core.files import write_bytes

    plain = results / name
    packed = plain.with_name(f"{plain.name}.gz")
    path, other = plain, packed
    if len(content) > max_bytes:
        path, other, content = packed, plain, gzip.compress(content, mtime=0)
    other.unlink(missing_ok=True)
    if len(content) > max_bytes:
        path.unlink(missing_ok=True)
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
    return len(content)


def measured(run: Path, results: Path) -> dict[str, object]:
    """What was planned beside what was measured, of the run or, before it, of the sweep's trials."""
    from redheart.train.log.events import watched_events

    logs = [
        watched_events(path) for path in (run / "train" / "events.jsonl", *sorted(run.glob("sweep/*/events.jsonl")))
    ]
    events = next((log for log in logs if any(event["event"] == "step" for event in log)), [])
    steps = [event["step_s"] for before, event in pairwise(events) if before["event"] == event["event"] == "step"]
    # The first step of a process loads kernels; it counts where there is no other.
    steps = steps or [event["step_s"] for event in events if event["event"] == "step"]
    epochs = [event for event in events if event["event"] == "epoch"]
    peaks_path, plan_path = results / "peaks.jsonl", results / "plan.json"
    peaks = [json.loads(line) for line in peaks_path.read_text().splitlines()] if peaks_path.is_file() else []
    planned: dict[str, Any] = json.loads(plan_path.read_text()) if plan_path.is_file() else {}

    def most(name: str, found: Sequence[dict[str, Any]]) -> Any:
        return max((item[name] for item in found if item.get(name) is not None), default=None)

    fields, has_device = planned.get("plan"), planned.get("device") is not None
    rows: dict[str, object] = {
        "device_process_bytes": most("device_process_bytes", peaks),
        "device_allocated_bytes": most("device_peak_bytes", epochs),
        "host_rss_bytes": most("host_rss_peak_bytes", epochs) or most("host_rss_bytes", peaks),
        "step_s": median(steps) if steps else None,
        "num_steps": len(steps),
        "epoch_s": median(event["epoch_s"] for event in epochs) if epochs else None,
        "validation_s": median(event["validation_s"] for event in epochs) if epochs else None,
    }
    return {
        "measured": rows,
        "planned": fields
        and {
            "device_process_bytes": fields["peak_bytes"],
            "device_process_at_most_bytes": fields["upper_bytes"],
            "device_allocated_bytes": max(item["allocated_bytes"] for item in fields["moments"].values()),
            # Without a card its share lies on the host too.
            "host_rss_bytes": fields["host_bytes"] if has_device else None,
            "step_s": step_times(fields),
        },
        "estimates": [event for event in events if event["event"] in ("estimate", "estimate_check", "end")],
        "processes": peaks,
    }


def main() -> None:
    command, run, results, *rest = sys.argv[1:]
    set_environment()
    try:
        if command == "plan":
            plan(Path(run), Path(results), rest[0], float(rest[1]), rest[2:])
        else:
            collect(Path(run), Path(results))
    except RedHeartError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
