"""Steps that were measured on a card, beside what the simulation says of them (`redheart plan --card`).

Usage: python benchmarks/step_times.py [--json] [--write]

The simulation has FITTED constants that were fitted to the rows without a reason to be left out; the others were
measured one by one or are data sheets'. Operators were counted at the commit of each measurement, by the planner's
dispatch mode on `meta`.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from record import RESULTS, write_result

from redheart.memory.cards import find
from redheart.memory.step_time import HostSpeed, constants
from redheart.pipeline.clock import Counts, PassWork, Rates, in_turn
from redheart.train.strategy import strategy_sizes

FITTED = ("flop_s", "launch_s", "recompute_s", "hand_over_s", "keep_s")
PARAMETERS = 730_466_848
FORWARD, BACKWARD, CHECKPOINTED = (
    Counts(0, 4.023e12, 6.82e9),
    Counts(0, 8.064e12, 11.94e9),
    Counts(0, 10.477e12, 17.54e9),
)
"""Of 64 records of 128 tokens; the last is the backward pass with checkpointing."""
OPERATORS = {"93b295c": (3156, 6518, 1052), "93b295c without the filter's loop": (1719, 2139, 1052)}
"""Of forward and backward, and what checkpointing adds."""
HOST = HostSpeed(update_s=0.142e-9, add_s=0.084e-9, copy_bytes_s=math.inf, bus_bytes_s=54.7e9)
"""Of both machines: 16 cores and PCIe 5. Copies within their memory were not measured."""
STRATEGIES = {name: strategy_sizes(name) for name in ("zero2_offload_adam8bit", "gpu_adam8bit")}
FIRST_SLOTS = "with page-locked slots"
"""Code of the first runs on an H100 that is in no commit; its slots took gradients in faster than today's."""
EARLIER = {
    "as of the commit": "gradients went into pageable memory, in the thread that launches",
    FIRST_SLOTS: "a hand-over of its own, read off the backward pass of 64",
}
"""Code of the first runs, and what in it is not today's."""
FIRST_RUNS = json.loads((RESULTS / "vram_first_runs.json").read_text())["result"]["rows"]


class Case(NamedTuple):
    """A measured step."""

    card: str
    strategy: str
    """`the model alone` is a pass without an engine."""
    micro_batch: int
    checkpointing: bool
    measured_s: float
    code: str = "93b295c"
    as_graph: bool = False
    hand_over_s: float | None = None
    """Of an element, where code that is not today's took gradients in."""
    left_out: str | None = None
    """Why nothing was fitted to it."""
    what: str = ""

    @property
    def name(self) -> str:
        parts = [self.card, self.strategy, f"{self.micro_batch}", "checkpointing" * self.checkpointing, self.what]
        return ", ".join(filter(None, parts))


def cases() -> Iterator[Case]:
    """Every step that was measured on a card: on an H200 as noted, on an H100 from the committed results."""
    alone, offload = "the model alone", "zero2_offload_adam8bit"
    for size, checkpointing, step_s in ((16, 0, 0.383), (32, 0, 0.387), (64, 0, 0.411), (64, 1, 0.591)):
        yield Case("H200", alone, size, bool(checkpointing), step_s)
    without = "93b295c without the filter's loop"
    for size, checkpointing, step_s in ((64, 0, 0.160), (16, 0, 0.204), (64, 1, 0.286)):
        yield Case("H200", alone, size, bool(checkpointing), step_s, without, what="without the filter's loop")
    yield Case("H200", alone, 64, False, 0.0455, without, as_graph=True, what="as one CUDA graph")
    compiled = "how many kernels a card's compiler makes of it is not known: docs/step.md"
    yield Case("H200", alone, 64, False, 0.137, without, left_out=compiled, what="torch.compile")
    for size, checkpointing, step_s in ((16, 0, 3.52), (32, 0, 1.85), (64, 1, 1.16), (64, 0, 1.08)):
        yield Case("H200", offload, size, bool(checkpointing), step_s)
    yield Case("H200", offload, 64, True, 0.99, what="a training on real records")
    for size, step_s in ((64, 0.64), (16, 2.51)):
        yield Case("H200", "gpu_adam8bit", size, False, step_s)
    for row in [*json.loads((RESULTS / "vram_8gib.json").read_text())["result"]["rows"], *FIRST_RUNS]:
        what = row.get("code", "")
        hand_over_s = first_hand_over_s() if what == FIRST_SLOTS else None
        step_s = sum(row["steps"][-1].values())
        case = Case("H100", row["strategy"], row["micro_batch"], False, step_s, left_out=EARLIER.get(what), what=what)
        yield case._replace(hand_over_s=hand_over_s)


def first_hand_over_s() -> float:
    """Of the first runs' slots: the whole backward pass of the one row whose step is one micro-batch, an element.

    It is bound by that, or by its launches, which then hide a faster hand-over.
    """
    (row,) = (row for row in FIRST_RUNS if row["code"] == FIRST_SLOTS and row["micro_batch"] == 64)
    return float(row["steps"][-1]["backward_s"]) / PARAMETERS


def simulated_s(case: Case, **changed: float) -> float:
    """Seconds of a case with the typical constants, or with some of them changed."""
    forward, backward, recomputed = OPERATORS[case.code]
    share, recomputed = case.micro_batch / 64, recomputed * case.checkpointing
    work = PassWork(
        Counts(forward).plus(FORWARD, share),
        Counts(backward + recomputed).plus(CHECKPOINTED if case.checkpointing else BACKWARD, share),
        recomputed,
    )
    is_alone = case.strategy not in STRATEGIES
    strategy = STRATEGIES["gpu_adam8bit" if is_alone else case.strategy]
    rates = Rates(
        **{name: value.typical for name, value in constants(find(case.card), strategy, HOST).items()} | changed
    )
    if is_alone:
        rates = replace(rates, around_s=0.0, launch_s=0.0 if case.as_graph else rates.launch_s)
    if case.hand_over_s is not None:
        rates = replace(rates, hand_over_s=case.hand_over_s)
    micro_batches = 1 if is_alone else 64 // case.micro_batch
    home = "on_host" if case.strategy == "zero2_offload_adam8bit" else "on_card"
    elements = {home: 0 if is_alone else PARAMETERS}
    return sum(in_turn(work, rates, micro_batches=micro_batches, **elements).values())


def rows() -> list[dict[str, object]]:
    """Measured and simulated seconds of every case, and the relative error."""
    return [
        {"case": case.name, "measured_s": case.measured_s, "simulated_s": round(found_s, 4)}
        | {"error": round(found_s / case.measured_s - 1, 4), "left_out": case.left_out}
        for case in cases()
        for found_s in (simulated_s(case),)
    ]


def residual(found: list[dict[str, object]]) -> float:
    """Root mean square of the logarithms of simulated over measured, of what was fitted to."""
    errors = [math.log1p(float(str(row["error"]))) for row in found if row["left_out"] is None]
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    found = rows()
    num_fitted_to = sum(row["left_out"] is None for row in found)
    first = {"hand_over_s": first_hand_over_s(), "read_off": "the backward pass of one step", "steps_predicted": 2}
    result = {"constants": FITTED, "measurements": num_fitted_to, "residual": round(residual(found), 4)}
    result |= {FIRST_SLOTS: first, "rows": found}
    if options.write:
        write_result("step_times", result)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for row in found:
        why = f"  not fitted to: {row['left_out']}" if row["left_out"] else ""
        print(f"{row['case']:<62} {row['measured_s']:7.3f} s  {row['simulated_s']:7.3f} s  {row['error']:+7.1%}{why}")
    print(f"{len(FITTED)} constants for {num_fitted_to} measurements, {residual(found):.1%} left")


if __name__ == "__main__":
    main()
