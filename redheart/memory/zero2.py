"""What DeepSpeed's ZeRO-2 keeps, as far as several strategies share it.

Sources without a folder are of DeepSpeed 0.19.8. Groups are padded to a multiple of twice the number of ranks, and a
rank's part is that of one rank.
"""

from collections.abc import Sequence
from math import ceil

from redheart.kernel.bindings import BLOCK
from redheart.memory.ledger import Entry, ModelSizes, StrategySizes, each
from redheart.optim.host_adamw8bit import MIN_8BIT_ELEMENTS

ZERO = "stage_1_and_2.py"
HELD = "single_partition_of_fp32_groups"
"""DeepSpeed's name of the masters; `.grad` of it holds their gradients."""
SHARED = "redheart/train/zero/startup.py, let_weights_be_masters"
INIT = f"{ZERO}, __init__"
GIVEN_UP = f"{INIT}; given up by {SHARED}"


def padded_groups(model: ModelSizes, ranks: int) -> tuple[list[int], list[int]]:
    """Elements of every flattened group, and of a rank's part of it."""
    parts = [ceil(sum(model.parameters[name] for name in group) / (2 * ranks)) * 2 for group in model.groups]
    return [ranks * count for count in parts], parts


def groups_on_card(parts: Sequence[int], share: float) -> list[int]:
    """Numbers of the groups whose masters and states lie on the card: in their order, as long as they fit the share.

    The first are those that the next forward pass needs first.
    """
    room, chosen = share * sum(parts), []
    for index, elements in enumerate(parts):
        if elements <= room:
            room -= elements
            chosen.append(index)
    return chosen


def homes(parts: Sequence[int], share: float) -> tuple[list[int], list[int]]:
    """Elements of every group whose masters lie on the host, and on the card."""
    chosen = set(groups_on_card(parts, share))
    host = [0 if index in chosen else count for index, count in enumerate(parts)]
    return host, [count - there for count, there in zip(parts, host, strict=True)]


def states_bytes(elements: int, bits: int) -> int:
    """A code a moment and a float per block; 32-bit moments where they are asked for, and for few elements."""
    is_8bit = bits == 8 and elements >= MIN_8BIT_ELEMENTS
    return 2 * elements + 8 * ceil(elements / BLOCK) if is_8bit else 8 * elements


def bucket(strategy: StrategySizes) -> Entry:
    """What gradients are reduced in."""
    size = strategy.weight_bytes * strategy.num_buckets * strategy.bucket_elements
    return Entry("gradient bucket", "device", "once", "backward", (size,), f"{ZERO}, setup_buckets", "ipg_buckets")


def offload(
    model: ModelSizes, strategy: StrategySizes, *, leaving: Sequence[Entry] = (), kept: Sequence[Entry]
) -> list[Entry]:
    """What is there whoever steps on the host, with what a gradient passes through on its way out and is kept in."""
    weight, (groups, parts) = strategy.weight_bytes, padded_groups(model, strategy.ranks)
    # Float32 weights are the masters.
    upcast, beside = each(4 if weight < 4 else 0, parts), each(0 if weight < 4 else 4, parts)
    masters = each(4 if weight < 4 else 0, homes(parts, strategy.card_share)[0])
    buffer, held = (weight * max(model.parameters.values(), default=0),), "temp_grad_buffer_for_{}_offload"
    made = f"{ZERO}, DeepSpeedZeroOptimizer.__init__, flatten_dense_tensors_aligned"
    cloned = f"{INIT}: weights_partition = ….detach().clone()"
    converted = f"{INIT}: .to(device='cpu', dtype=float32) converts on the device"
    shared = f"{INIT}; float32 weights are the masters: {SHARED}"
    return [
        Entry("flat weights", "device", "group", "always", each(weight, groups), made, "bit16_groups_flat"),
        Entry("clone of a partition", "device", "group", "init", each(weight, parts), cloned),
        Entry("upcast of a partition before it goes to the host", "device", "group", "init", upcast, converted),
        Entry("buffer for offloading a gradient", "device", "once", "always", buffer, INIT, held.format("gpu")),
        bucket(strategy),
        *leaving,
        Entry("master weights", "host", "group", "always", masters, shared, HELD),
        Entry("master weights beside float32 weights", "host", "group", "init_all", beside, GIVEN_UP),
        *kept,
        Entry("staging of a gradient", "host", "once", "always", buffer, INIT, held.format("cpu")),
    ]


def deepspeed_offload(model: ModelSizes, strategy: StrategySizes, accumulates: bool) -> list[Entry]:
    """ZeRO-2 offload by DeepSpeed's own path, with 32-bit states."""
    weight, (_, parts) = strategy.weight_bytes, padded_groups(model, strategy.ranks)
    is_float32, counts = weight == 4, model.parameters.values()
    converted, states = each(0 if is_float32 else 4, counts), each(8, parts)
    grad, bf16_copy, copy = each(4, parts), each(0 if is_float32 else 2, parts), each(4 if is_float32 else 0, parts)
    norm = f"{ZERO}, set_norm_for_param_grad_in_gpu"
    overflow = f"{ZERO}, update_offload_overflow_tracker_for_param_grad"
    sent = f"{ZERO}, async_inplace_copy_grad_to_fp32_buffer_from_gpu"
    summed = f"{ZERO}, async_accumulate_grad_in_cpu_via_gpu"
    initialised = f"{ZERO}, initialize_optimizer_states"
    staged = f"{INIT}; of float32 weights the weights themselves: {SHARED}"
    sums = each(weight if accumulates else 0, counts)
    copy_attribute = "param_buffer_of_bit16_for_cpu_offload_groups"
    leaving = [
        Entry("norm in float64", "device", "parameter", "boundary", each(8, counts), norm),
        Entry("overflow check in float32", "device", "parameter", "boundary", converted, overflow),
        Entry("upcast before the copy to the host", "device", "parameter", "boundary", converted, sent),
    ]
    kept = [
        Entry("gradients in float32", "host", "group", "always", grad, initialised, f"{HELD}.grad"),
        Entry("staging of the new weights", "host", "group", "always", bf16_copy, staged, copy_attribute),
        Entry("staging of new float32 weights", "host", "group", "init_all", copy, GIVEN_UP),
    ]
    return [
        *offload(model, strategy, leaving=leaving, kept=kept),
        Entry("accumulated gradients", "host", "parameter", "always", sums, summed, "accumulated_grads_in_cpu"),
        Entry("optimizer states", "host", "group", "always", states, "torch/optim/adamw.py, _init_group", "state"),
    ]
