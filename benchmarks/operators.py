"""What one forward and backward pass of a preset launches, counted on `meta` by a dispatch mode; views are left out.

Usage: python benchmarks/operators.py [--preset full] [--json] [--write]

Counted twice: as torch spells attention and norms out on `meta`, and with the kernels that a card runs in their place,
which is what its launching thread has to do. At commit 93b295c it was 14,915 and 10,360.
"""

import argparse
import json
from collections import Counter
from typing import Any

from record import write_result
from torch.utils._python_dispatch import TorchDispatchMode

from redheart.core.config import FeatureConfig, StudyConfig
from redheart.memory.kernels import CUDA, Kernels, replaced
from redheart.study.outlook import planning

RECORDS, LENGTH = 64, 128
VIEWS_BY_COPY = ("aten::_unsafe_view",)
"""Views that do not call themselves so."""


class CountingMode(TorchDispatchMode):
    """Counts operators by name; those that only look at memory in another way launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if not func.is_view and name not in VIEWS_BY_COPY:
            self.counts[name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def operators(name: str, kernels: Kernels | None = None) -> Counter[str]:
    """Operators of a pass in bf16 by name."""
    work = planning.workload(StudyConfig(preset=name, features=FeatureConfig(seq_len_tokens=LENGTH)))  # type: ignore[arg-type]
    given = work.batch(RECORDS)
    with CountingMode() as mode, replaced(kernels):
        work.loss(work.module, given).backward()  # type: ignore[no-untyped-call]
    return mode.counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="full")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    counts = {"on meta": operators(options.preset), "with a card's kernels": operators(options.preset, CUDA)}
    result = {name: {"total": found.total(), "by_kind": dict(found.most_common())} for name, found in counts.items()}
    if options.write:
        write_result("operators", result, settings={"preset": options.preset, "records": RECORDS, "length": LENGTH})
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for name, found in counts.items():
        print(f"{name}: {found.total():,}")
        print("  " + ", ".join(f"{kind} {number:,}" for kind, number in found.most_common(24)))


if __name__ == "__main__":
    main()
