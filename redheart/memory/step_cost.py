"""Seconds of a step for ranking configurations: the pipeline against a clock, with the constants of no card.

Every function here takes the parameters of a rank, the micro-batches of a step and whether it checkpoints, in which
case the forward pass is computed and launched twice. No promise of a time.
"""

from dataclasses import replace
from functools import cache

from redheart.pipeline.clock import Machine, Passes, simulate

RING_BYTES = 96 << 20
"""Page-locked slots of today's transfers."""
SMALL_CARD = Machine("a small card on PCIe 3.0 x16", 12e9, 12e9, update_s=0.6e-9, drain_s=0.2e-9)
"""Constants that configurations are ranked by; no card's own."""
UPDATE_32_S = 1.1e-9
"""An element's update on that machine with 32-bit states."""
PASS_S = (0.08, 0.17)
"""Forward and backward of 64 records of 128 tokens of the full model on a small card, at 40 TFLOP/s bf16."""
LAUNCH_S = 0.4
"""Launches of a micro-batch, whatever its size: measured 383 ms for 16 and 411 for 64 records on an H200."""
PARTS = 4
"""Of a model whose modules are not looked at."""


def traffic_bytes(steps: int, *, state_bits: int) -> int:
    """Bytes a parameter over the bus in one step of ZeRO-2 offload with `steps` micro-batches.

    With 8-bit states the gradient leaves in bf16 at every micro-batch and is summed on the host. DeepSpeed's own path
    sends the sum out at every micro-batch, pulls it in again at every later one, and sends it in float32 at the end.
    Either way the weights return in bf16. Counted by benchmarks/accumulation.py.
    """
    if state_bits == 8:
        return 2 * steps + 2
    return 6 if steps == 1 else 4 * steps + 4


def on_card(parameters: int, steps: int, checkpointing: bool) -> float:
    """All on the card: the passes and their launches."""
    passes = _passes(steps, checkpointing)
    return steps * max(passes.forward_s + passes.backward_s, passes.launch_s)


@cache
def fused_offload(parameters: int, steps: int, checkpointing: bool, machine: Machine = SMALL_CARD) -> float:
    """So much of the optimizer on the host, by the pipeline's own order."""
    if not parameters:
        return on_card(parameters, steps, checkpointing)
    modules = {f"part {number}": max(1, parameters // PARTS) for number in range(PARTS)}
    return simulate(modules, machine, _passes(steps, checkpointing), ring_bytes=RING_BYTES, steps=2).step_s


def deepspeed_offload(parameters: int, steps: int, checkpointing: bool) -> float:
    """The same by DeepSpeed's own path, which takes twice the bytes out (see `traffic_bytes`), with 32-bit states."""
    machine = replace(SMALL_CARD, update_s=UPDATE_32_S, out_bytes_s=SMALL_CARD.out_bytes_s / 2)
    return fused_offload(parameters, steps, checkpointing, machine)


def _passes(steps: int, checkpointing: bool) -> Passes:
    forward_s, backward_s = (share / steps for share in PASS_S)
    launch_s = LAUNCH_S * (4 / 3 if checkpointing else 1)
    return Passes(forward_s, backward_s + forward_s * checkpointing, launch_s, steps)
