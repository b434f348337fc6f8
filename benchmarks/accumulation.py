"""How far the gradient of a step of several micro-batches is from its float64 sum, and what crosses the bus for it.

DeepSpeed sums in bf16, pulling the sum back to the device for every micro-batch; the fused step sends each gradient to
the host once and sums it there in float32. Each strategy runs in a process of its own.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from record import write_result

from redheart.cli import set_environment

if TYPE_CHECKING:
    import torch

set_environment()


def measure_here(strategy: str, micro_batches: int) -> dict[str, float]:
    """Error and traffic of one strategy in this process, on a `tiny` model and random records."""
    import torch

    from redheart.core.config import TrainConfig
    from redheart.model.dims import preset
    from redheart.model.losses import multitask_loss, task_counts
    from redheart.model.network import build
    from redheart.train.engine import start_engine

    torch.manual_seed(0)
    dims, share = preset("tiny"), 4
    records = share * micro_batches
    features_BSD = torch.randn(records, 12, 768).bfloat16()
    mask_BS = torch.ones(records, 12, dtype=torch.bool)
    targets_BT = torch.rand(records, 22)
    targets_BT[:, :7] /= targets_BT[:, :7].sum(1, keepdim=True)
    present_BT = torch.ones(records, 22, dtype=torch.bool)
    counts_K = task_counts(present_BT, dims.outputs)
    engine = start_engine(
        build(dims, seed=0), TrainConfig(strategy=strategy, micro_batch=share, effective_batch=records)
    )
    zero = engine._zero  # type: ignore[union-attr]
    moved = count_traffic(zero)
    exact: dict[int, torch.Tensor] = {}
    for param_id, param in zero.param_dict.items():
        exact[param_id] = torch.zeros(param.numel(), dtype=torch.float64)
        param.register_hook(adder(exact[param_id]))
    for part in range(micro_batches):
        rows = slice(part * share, (part + 1) * share)
        loss = multitask_loss(
            engine.module(features_BSD[rows], mask_BS[rows]),
            targets_BT[rows],
            present_BT[rows],
            outputs=dims.outputs,
            step_counts_K=counts_K,
        ).total
        engine.backward(loss, last=part == micro_batches - 1)
    squares = error = 0.0
    for param_id, (group, _, offset, elements) in zero.grad_position.items():
        found = zero.single_partition_of_fp32_groups[group].grad.narrow(0, offset, elements).double()
        error += (found - exact[param_id]).square().sum().item()
        squares += exact[param_id].square().sum().item()
    parameters = sum(param.numel() for param in zero.param_dict.values())
    return {
        "relative_error_of_the_sum": (error / squares) ** 0.5,
        # The new weights come back in bf16 in both.
        "bus_bytes_per_param": round(sum(moved) / parameters + 2, 3),
    }


def adder(total: "torch.Tensor") -> "Callable[[torch.Tensor], None]":
    """A gradient hook that adds to a float64 total."""

    def add(grad: "torch.Tensor") -> None:
        total.add_(grad.flatten().double())

    return add


def count_traffic(zero: object) -> list[int]:
    """Count the bytes of gradient that cross between device and host, by wrapping the functions that move them."""
    from types import MethodType

    moved: list[int] = []

    def wrap(name: str, bytes_of: object) -> None:
        original = getattr(zero, name)

        def counted(self: object, param: object, *rest: object) -> None:
            moved.append(bytes_of(param))  # type: ignore[operator]
            original(param, *rest)

        setattr(zero, name, MethodType(counted, zero))

    if hasattr(zero, "_received"):
        wrap("copy_grads_in_partition", lambda param: 2 * param.numel())
    else:
        # Out in bf16, and from the second micro-batch on in as well; at the end out in float32.
        wrap(
            "async_accumulate_grad_in_cpu_via_gpu",
            lambda param: (4 if zero.micro_step_id > 0 else 2) * param.numel(),  # type: ignore[union-attr]
        )
        wrap("async_inplace_copy_grad_to_fp32_buffer_from_gpu", lambda param: 4 * param.numel())
    return moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--here", nargs=2, metavar=("STRATEGY", "MICRO_BATCHES"), help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/accumulation.json")
    options = parser.parse_args()
    if options.here:
        print("RESULT " + json.dumps(measure_here(options.here[0], int(options.here[1]))))
        return
    result = {}
    for strategy in ("zero2_offload_adam8bit", "zero2_offload_adam32"):
        for micro_batches in (1, 4, 16):
            done = subprocess.run(
                [sys.executable, str(Path(__file__)), "--here", strategy, str(micro_batches)],
                capture_output=True,
                text=True,
                check=True,
            )
            line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
            result[f"{strategy}, {micro_batches} micro-batches"] = json.loads(line.removeprefix("RESULT "))
    if options.write:
        write_result("accumulation", result)
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
