"""The strategies: what each keeps where, its optimizer and its cost."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput
from redheart.memory import zero2
from redheart.memory.ledger import DS_CONFIGS, SLOTS, Entry, Groups, ModelSizes, Strategy, StrategySizes, each
from redheart.memory.zero2 import HELD, ZERO
from redheart.optim.host_adamw8bit import HostAdamW8bit
from redheart.pipeline.clock import deepspeed_offload, fused_offload, on_card
from redheart.train.zero.extension import building
from redheart.train.zero.fused_step import install

INSTALL = "redheart/train/zero/fused_step.py, install"


def plain_ledger(model: ModelSizes, strategy: StrategySizes, accumulates: bool) -> list[Entry]:
    """Weights, gradients and states, parameter by parameter."""
    counts = model.parameters.values()
    four, made = each(4, counts), "redheart/train/engine.py, PlainEngine"
    update = "torch/optim/adamw.py, _multi_tensor_adam: exp_avg_sq_sqrt of all parameters of a group"
    states = "torch/optim/adamw.py, _init_group"
    return [
        Entry("weights", "device", "parameter", "always", four, made, "parameters"),
        Entry("gradients", "device", "parameter", "accumulation", four, "torch.autograd", "parameters.grad"),
        Entry("intermediates of the multi-tensor update", "device", "parameter", "step_all", four, update),
        Entry("optimizer states", "device", "parameter", "always", each(8, counts), states, "state"),
    ]


def torch_adamw(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """Torch's own; on the CPU its fused one, a quarter of the time for the many small tensors of `small`.

    That one reads weights and states as they lie in memory, whatever their strides.
    """
    groups = list(groups)
    is_dense = all(parameter.is_contiguous() for group in groups for parameter in group["params"])  # type: ignore[attr-defined]
    fused = True if is_dense and not torch.cuda.is_available() else None
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), fused=fused)


PLAIN = Strategy(
    name="plain",
    configuration=None,
    is_zero=False,
    home="device",
    state_bits=32,
    ledger=plain_ledger,
    optimizer=torch_adamw,
    cost=on_card,
)
"""One process, no DeepSpeed, everything in float32 on the device; for debugging and as a reference."""
FP32_ADAMW = replace(PLAIN, name="fp32_adamw", configuration=DS_CONFIGS / "fp32_adamw.json")
"""The naive run, which the planner must refuse at 8 GiB."""


def zero2_ledger(model: ModelSizes, strategy: StrategySizes, accumulates: bool) -> list[Entry]:
    """Everything on the device; the gradients of a step beside those of the micro-batch before it is stepped."""
    weight, (groups, parts) = strategy.weight_bytes, zero2.padded_groups(model, strategy.ranks)
    flat, masters, second = each(weight, groups), each(4, parts), each(weight if accumulates else 0, groups)
    upcast, states = each(0 if weight == 4 else 4, parts), tuple(zero2.states_bytes(count, 8) for count in parts)
    made = f"{ZERO}, DeepSpeedZeroOptimizer.__init__"
    dropped = f"{ZERO}, initialize_optimizer_states: allocated for all groups, then dropped"
    own = f"{ZERO}, copy_grads_in_partition: grads_in_partition"
    beside = f"{ZERO}, independent_gradient_partition_epilogue: all_grad_tensors beside the new ones"
    flattened = f"{ZERO}, step: flatten_dense_tensors_aligned"
    converted = f"{ZERO}, step: .to(single_partition_of_fp32_groups[i].dtype)"
    started = "bitsandbytes/optim/optimizer.py, Optimizer2State.init_state"
    return [
        Entry("flat weights", "device", "group", "always", flat, made, "bit16_groups_flat"),
        Entry("clone of a partition", "device", "group", "init", each(weight, parts), f"{ZERO}, __init__"),
        Entry("master weights", "device", "group", "always", masters, f"{ZERO}, __init__", HELD),
        Entry("gradients of a group at initialisation", "device", "group", "init_all", masters, dropped),
        zero2.bucket(strategy),
        Entry("gradients of the own partition", "device", "group", "accumulation", flat, own, "averaged_gradients"),
        Entry("second set of gradients while summing", "device", "group", "backward", second, beside),
        Entry("flat gradients of a group", "device", "group", "step", flat, flattened),
        Entry("gradients of a group in float32", "device", "group", "step", upcast, converted),
        Entry("optimizer states", "device", "group", "always", states, started, "state"),
    ]


def bitsandbytes_adamw(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(list(groups), lr=0.0, betas=(config.beta1, config.beta2))
    return optimizer


GPU_ADAM8BIT = Strategy(
    name="gpu_adam8bit",
    configuration=DS_CONFIGS / "gpu_adam8bit.json",
    is_zero=True,
    home="device",
    state_bits=8,
    ledger=zero2_ledger,
    optimizer=bitsandbytes_adamw,
    cost=on_card,
    is_offered=True,
)
"""ZeRO-2 without offload; weights, float32 masters, 8-bit states and gradients on the device."""


def deepspeed_adam(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """DeepSpeed's for the host, compiled at its first use.

    Raises:
        BadInput: it cannot be compiled or loaded.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    betas = (config.beta1, config.beta2)
    try:
        with building("cpu_adam"):
            adam: torch.optim.Optimizer = DeepSpeedCPUAdam(list(groups), lr=0.0, betas=betas, adamw_mode=True)
    except RuntimeError as error:
        raise BadInput(
            "DeepSpeed's Adam for the host cannot be compiled or loaded",
            got=_cause(str(error.__cause__ or error)),
            hint="install g++ (apt install g++), or take --train.strategy zero2_offload_adam8bit",
        ) from error
    return adam


def _cause(text: str) -> str:
    """The line of a failed build that says why; ninja's first is the whole command."""
    lines = text.strip().splitlines() or [""]
    return next((line for line in lines if "error:" in line or "not found" in line), lines[0])


ZERO2_OFFLOAD_ADAM32 = Strategy(
    name="zero2_offload_adam32",
    configuration=DS_CONFIGS / "zero2_offload_adam32.json",
    is_zero=True,
    home="host",
    state_bits=32,
    ledger=zero2.deepspeed_offload,
    optimizer=deepspeed_adam,
    cost=deepspeed_offload,
    is_offered=True,
)
"""ZeRO-2 offload by DeepSpeed's own path with 32-bit states, the exact reference."""
ZERO2_OFFLOAD_MULTI = replace(
    ZERO2_OFFLOAD_ADAM32,
    name="zero2_offload_multi",
    configuration=DS_CONFIGS / "zero2_offload_multi.json",
    is_offered=False,
)
"""The same over several devices, reduction overlapped with the backward pass."""


def fused_ledger(model: ModelSizes, strategy: StrategySizes, accumulates: bool) -> list[Entry]:
    """ZeRO-2 offload without DeepSpeed's copy of the new weights; gradients stay as small as they come.

    A share of the groups has its masters, states and waiting gradients on the card.
    """
    weight, (_, parts) = strategy.weight_bytes, zero2.padded_groups(model, strategy.ranks)
    host, card = zero2.homes(parts, strategy.card_share)
    grad_bytes = 4 if accumulates else weight
    grad = f"{INSTALL}: the type of the weights where a micro-batch is the whole step, else the float32 sum"
    copy = f"{ZERO}, __init__, param_buffer_of_bit16_for_cpu_offload_groups; given up by {INSTALL}"
    first = f"{ZERO}, initialize_optimizer_states, beyond those that are kept"
    slots, slots_bytes = "redheart/train/device/transfers.py: six of 8 Mi bf16 elements", 6 * (8 << 20) * 2
    states = tuple(map(zero2.states_bytes, host, model.group_state_bits))
    started = "redheart/optim/host_adamw8bit.py, HostAdamW8bit._start"
    if strategy.ring_bytes:
        gradients, leaving = _in_ring(parts, strategy, accumulates)
        grad_bytes = 0
    else:
        leaving = []
        gradients = [
            Entry("gradients", "host", "group", "always", each(grad_bytes, host), grad, f"{HELD}.grad"),
            Entry(SLOTS, "host", "once", "always", (slots_bytes,), slots),
        ]
    kept = [
        *gradients,
        Entry("DeepSpeed's copy of the new weights", "host", "group", "init_all", each(weight, parts), copy),
        Entry("gradients in float32", "host", "group", "init_all", each(4 - grad_bytes, host), first),
    ]
    held = Entry("optimizer states", "host", "group", "always", states, started, "state")
    on_device = _on_card(model, card, weight, grad_bytes) if any(card) else []
    return [*on_device, *zero2.offload(model, strategy, leaving=leaving, kept=kept), held]


def _in_ring(parts: Sequence[int], strategy: StrategySizes, accumulates: bool) -> tuple[list[Entry], list[Entry]]:
    """Gradients of a step that is a pipeline, on the host and on their way there."""
    source = "redheart/optim/offloaded.py"
    largest_bytes = strategy.weight_bytes * max(parts, default=0)
    num_slots = min(len(parts), max(1, strategy.ring_bytes // max(1, largest_bytes)))
    ring_bytes = num_slots * largest_bytes
    # Where one micro-batch is the whole step, what is in a slot when the norm is known has no sum.
    summed = sorted(parts)[0 if accumulates else num_slots :]
    sum_bytes = 4 if accumulates else strategy.weight_bytes
    ring = Entry("ring of slots", "host", "once", "always", (ring_bytes,), f"{source}, Offloaded._slots")
    sums = Entry("sums of gradients", "host", "group", "always", each(sum_bytes, summed), f"{source}, drain")
    # A bus that is slower than the pass lets more of them wait.
    waiting = f"{source}, copy_out: record_stream, for as many as there are slots"
    return [ring, sums], [Entry("gradients on their way", "device", "once", "backward", (ring_bytes,), waiting)]


def _on_card(model: ModelSizes, card: Sequence[int], weight: int, grad_bytes: int) -> list[Entry]:
    update = "redheart/optim/chunked.py, CardKernel.update: grad.float()"
    own, converted = each(4 if weight < 4 else 0, card), each(4 if grad_bytes < 4 else 0, card)
    states = tuple(map(zero2.states_bytes, card, model.group_state_bits))
    made = f"{ZERO}, __init__; taken to the card by {INSTALL}"
    return [
        Entry("master weights on the card", "device", "group", "always", own, INSTALL, HELD),
        Entry("gradients on the card", "device", "group", "always", each(grad_bytes, card), INSTALL, f"{HELD}.grad"),
        Entry("optimizer states on the card", "device", "group", "always", states, INSTALL, "state"),
        Entry("gradients of a group in float32", "device", "group", "step", converted, update),
        Entry("masters and gradients of the card", "host", "group", "init_all", each(8, card), made),
    ]


ZERO2_OFFLOAD_ADAM8BIT = Strategy(
    name="zero2_offload_adam8bit",
    configuration=DS_CONFIGS / "zero2_offload_adam8bit.json",
    is_zero=True,
    home="host",
    state_bits=8,
    ledger=fused_ledger,
    optimizer=lambda groups, config: HostAdamW8bit(list(groups), lr=0.0, betas=(config.beta1, config.beta2)),
    cost=fused_offload,
    install_step=install,
    is_offered=True,
)
"""ZeRO-2, float32 masters and 8-bit AdamW states on the host, stepped by the fused kernel."""

ALL = (PLAIN, FP32_ADAMW, GPU_ADAM8BIT, ZERO2_OFFLOAD_ADAM32, ZERO2_OFFLOAD_MULTI, ZERO2_OFFLOAD_ADAM8BIT)
