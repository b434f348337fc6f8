"""What this host does beside a card, measured in seconds: `redheart plan --card` takes it in place of any host's."""

import logging
import time
from collections.abc import Callable

import torch
from torch import nn

from redheart.memory.adamw8bit.optimizer import HostAdamW8bit
from redheart.memory.step_time import HostSpeed
from redheart.memory.trace import trace_pass

ELEMENTS = 1 << 25
"""Of a parameter: far more than caches hold, .3 GiB with its gradient and states."""
ROUNDS = 5
LAYERS, WIDTH = 64, 64


def measure(*, elements: int = ELEMENTS) -> HostSpeed:
    """The fastest of a few rounds: what else runs is not the host's. Launches and the bus need a card.

    Args:
        elements: of the parameter that is updated, by as many threads as torch takes.
    """
    # It warns of kernels that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    master = nn.Parameter(torch.zeros(elements))
    optimizer = HostAdamW8bit([master])
    gradient, weights = (torch.full((elements,), 1e-3, dtype=torch.bfloat16) for _ in range(2))
    (group,) = optimizer.param_groups
    update_s = _least_s(lambda: optimizer.update(group, master, gradient, out_bf16=weights))
    total = torch.zeros(elements)
    add_s = _least_s(lambda: optimizer.add(total, gradient))
    copy_s = _least_s(lambda: weights.copy_(gradient))
    has_card = torch.cuda.is_available()
    return HostSpeed(
        update_s / elements,
        add_s / elements,
        weights.nbytes / copy_s,
        launch_s=launch_s(torch.device("cuda")) if has_card else None,
        bus_bytes_s=_bus_bytes_s(gradient) if has_card else None,
    )


def host_text(found: HostSpeed) -> str:
    """In one line."""
    parts = [
        f"update {1e9 * found.update_s:.2f} and sum {1e9 * found.add_s:.2f} ns/param",
        f"copies {found.copy_bytes_s / 1e9:.1f} GB/s",
    ]
    if found.launch_s is not None and found.bus_bytes_s is not None:
        parts.append(f"launches {1e6 * found.launch_s:.0f} us, bus {found.bus_bytes_s / 1e9:.1f} GB/s")
    return ", ".join(parts)


def launch_s(device: torch.device) -> float:
    """Seconds of an operator in a pass of operators too small to compute for long."""

    def build(where: torch.device | str) -> tuple[nn.Module, torch.Tensor]:
        layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH, device=where), nn.GELU())]
        return nn.Sequential(*layers).bfloat16(), torch.ones(WIDTH, WIDTH, dtype=torch.bfloat16, device=where)

    def loss(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = module(batch).float().sum()
        return total

    counted = trace_pass(*build("meta"), loss)
    module, batch = build(device)

    def run() -> None:
        loss(module, batch).backward()  # type: ignore[no-untyped-call]
        module.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return _least_s(run) / (counted.forward.operators + counted.backward.operators)


def _bus_bytes_s(tensor: torch.Tensor) -> float:
    """Page-locked, the slower way."""
    locked, there = tensor.pin_memory(), tensor.cuda()

    def run(target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return tensor.nbytes / max(_least_s(lambda: run(there, locked)), _least_s(lambda: run(locked, there)))


def _least_s(run: Callable[[], object]) -> float:
    """Of a few calls, after one that warms up."""
    run()
    times = []
    for _ in range(ROUNDS):
        start_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - start_s)
    return min(times)
