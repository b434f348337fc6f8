"""A step of the full model against a clock: what every lane does, from the constants of a machine.

Usage: python benchmarks/simulated_step.py [--json] [--write]

Constants are measurements on an H200 with 16 cores and PCIe 5, and guesses for a laptop:
the pass replayed as one CUDA graph, pinned copies, the host's update and the norm on the card.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import product

from record import write_result

from redheart.model.dims import preset
from redheart.model.network import WIRING, build
from redheart.pipeline.bucket import cut
from redheart.pipeline.clock import Machine, Passes, StepTimes, simulate
from redheart.pipeline.lanes import Lane

H200 = Machine("H200, 16 cores, PCIe 5", 54.7e9, 54.7e9, update_s=0.142e-9, drain_s=0.084e-9)
LAPTOP = Machine("laptop, 8 cores, PCIe 4 x8 (assumed)", 12e9, 12e9, update_s=0.35e-9, drain_s=0.2e-9)
CASES = {
    "one graph of 64": (H200, Passes(15.2e-3, 30.3e-3, launch_s=2e-3)),
    "launched one by one, 64 with checkpointing": (H200, Passes(0.137, 0.454, launch_s=0.55)),
    "launched one by one, 4 x 16": (H200, Passes(0.128, 0.255, launch_s=0.35, micro_batches=4)),
    "a card of an eighth, one graph of 64 with checkpointing": (LAPTOP, Passes(0.12, 0.36, launch_s=2e-3)),
}
RINGS_MIB = (2048, 256, 64)


def modules_of_full() -> dict[str, int]:
    """Elements of every module of `full`, in the order of the forward pass."""
    model = build(preset("full"), seed=0, device="meta")
    names = [name for name in WIRING if name != "experts"]
    return {name: sum(item.numel() for item in model.get_submodule(name).parameters()) for name in names}


def rows() -> list[dict[str, object]]:
    """Every case with every ring."""
    modules, found = modules_of_full(), []
    for (name, (machine, passes)), ring_mib in product(CASES.items(), RINGS_MIB):
        times = simulate(modules, machine, passes, ring_bytes=ring_mib << 20)
        chain_s = floor_s(modules, machine, passes)
        found.append(
            {"case": name, "machine": asdict(machine), "passes": asdict(passes), "ring_mib": ring_mib}
            | {"step_s": times.step_s, "longest_chain_s": chain_s, "ratio": times.step_s / chain_s}
            | {"busy_s": times.busy_s, "bound_by": times.bound_by, "lanes": drawn(times)}
        )
    return found


def floor_s(modules: Mapping[str, int], machine: Machine, passes: Passes) -> float:
    """The longest chain that no order can shorten: backward pass, norm, all updates, the last upload.

    Before it the passes of all micro-batches but the last.
    """
    buckets = cut(modules)
    elements = sum(bucket.elements for bucket in buckets)
    norm_s = machine.norm_s if passes.micro_batches == 1 else elements * machine.square_s
    earlier = (passes.micro_batches - 1) * (passes.forward_s + passes.backward_s)
    upload = buckets[-1].wire_bytes / machine.in_bytes_s
    return earlier + passes.backward_s + norm_s + elements * machine.update_s + upload


def drawn(times: StepTimes, width: int = 100) -> dict[str, str]:
    """Every lane of the step as a line: `#` where it is busy, `.` where it waits."""
    begin_s = min(item.start_s for item in times.timeline)
    end_s = max(item.end_s for item in times.timeline)
    lines = {}
    for lane in Lane:
        cells = ["."] * width
        for item in times.timeline:
            if item.lane == lane and item.end_s > item.start_s:
                first, last = (
                    int((at - begin_s) / (end_s - begin_s) * (width - 1)) for at in (item.start_s, item.end_s)
                )
                cells[first : last + 1] = "#" * (last - first + 1)
        lines[lane.value] = "".join(cells)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    found = rows()
    if options.write:
        write_result("simulated_step", {"rows": found}, settings={"rings_mib": RINGS_MIB})
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for row in found:
        print(f"{row['case']}, ring of {row['ring_mib']} MiB: {row['step_s']:.3f} s, {row['ratio']:.2f} of its chain")
        for lane, line in row["lanes"].items():  # type: ignore[attr-defined]
            print(f"  {lane:12} {row['busy_s'][lane]:.3f} s  {line}")  # type: ignore[index]


if __name__ == "__main__":
    main()
