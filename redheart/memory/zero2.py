"""What DeepSpeed's ZeRO-2 keeps, as far as several strategies share it.

Sources without a folder are of DeepSpeed 0.19.8. Groups are padded to a multiple of twice the number of ranks, and a
rank's part is that of one rank. Where weights are float32 they are the masters, and what converts them is not there.
"""

from math import ceil

from redheart.memory.adamw8bit.kernel import BLOCK
from redheart.memory.adamw8bit.optimizer import MIN_8BIT_ELEMENTS
from redheart.memory.ledger import Entry, ModelSizes, StrategySizes, each

ZERO = "stage_1_and_2.py"
HELD = "single_partition_of_fp32_groups"
"""DeepSpeed's name of the masters; `.grad` of it holds their gradients."""
SHARED = "redheart/train/engine.py, _let_weights_be_masters"
GIVEN_UP = f"{ZERO}, __init__; given up by {SHARED}"


def padded_groups(model: ModelSizes, ranks: int) -> list[int]:
    """Elements of every flattened group."""
    alignment = 2 * ranks
    return [-(-sum(model.parameters[name] for name in group) // alignment) * alignment for group in model.groups]


def parts_of(model: ModelSizes, ranks: int) -> list[int]:
    """Elements of a rank's part of every flattened group."""
    return [count // ranks for count in padded_groups(model, ranks)]


def states_8bit_bytes(elements: int) -> int:
    """A code a moment and a float per block; 32-bit moments for few elements."""
    return 8 * elements if elements < MIN_8BIT_ELEMENTS else 2 * elements + 8 * ceil(elements / BLOCK)


def bucket(strategy: StrategySizes) -> Entry:
    """What gradients are reduced in."""
    size = strategy.weight_bytes * strategy.num_buckets * strategy.bucket_elements
    return Entry("gradient bucket", "device", "once", "backward", (size,), f"{ZERO}, setup_buckets", "ipg_buckets")


def offload_device(model: ModelSizes, strategy: StrategySizes) -> list[Entry]:
    """What is left on the device when the optimizer lies on the host."""
    weight, parts = strategy.weight_bytes, parts_of(model, strategy.ranks)
    flat, upcast = each(weight, padded_groups(model, strategy.ranks)), each(4 if weight < 4 else 0, parts)
    made = f"{ZERO}, DeepSpeedZeroOptimizer.__init__, flatten_dense_tensors_aligned"
    cloned = f"{ZERO}, __init__: weights_partition = ….detach().clone()"
    converted = f"{ZERO}, __init__: .to(device='cpu', dtype=float32) converts on the device"
    buffer, held = (weight * model.largest,), "temp_grad_buffer_for_gpu_offload"
    return [
        Entry("flat weights", "device", "group", "always", flat, made, "bit16_groups_flat"),
        Entry("clone of a partition", "device", "group", "init", each(weight, parts), cloned),
        Entry("upcast of a partition before it goes to the host", "device", "group", "init", upcast, converted),
        Entry("buffer for offloading a gradient", "device", "once", "always", buffer, f"{ZERO}, __init__", held),
        bucket(strategy),
    ]


def offload_masters(model: ModelSizes, strategy: StrategySizes) -> list[Entry]:
    """The masters on the host."""
    parts, is_float32 = parts_of(model, strategy.ranks), strategy.weight_bytes == 4
    own, beside = each(0 if is_float32 else 4, parts), each(4 if is_float32 else 0, parts)
    made = f"{ZERO}, __init__; float32 weights are the masters: {SHARED}"
    return [
        Entry("master weights", "host", "group", "always", own, made, HELD),
        Entry("master weights beside float32 weights", "host", "group", "init_all", beside, GIVEN_UP),
    ]


def offload_staging(model: ModelSizes, strategy: StrategySizes) -> Entry:
    """What a gradient passes through on the host."""
    size, held = strategy.weight_bytes * model.largest, "temp_grad_buffer_for_cpu_offload"
    return Entry("staging of a gradient", "host", "once", "always", (size,), f"{ZERO}, __init__", held)


def deepspeed_offload(model: ModelSizes, strategy: StrategySizes, accumulates: bool) -> list[Entry]:
    """ZeRO-2 offload by DeepSpeed's own path, with 32-bit states."""
    weight, parts = strategy.weight_bytes, parts_of(model, strategy.ranks)
    is_float32, counts = weight == 4, model.parameters.values()
    converted, states = each(0 if is_float32 else 4, counts), each(8, parts)
    grad, bf16_copy, copy = each(4, parts), each(0 if is_float32 else 2, parts), each(4 if is_float32 else 0, parts)
    norm = f"{ZERO}, set_norm_for_param_grad_in_gpu"
    overflow = f"{ZERO}, update_offload_overflow_tracker_for_param_grad"
    sent = f"{ZERO}, async_inplace_copy_grad_to_fp32_buffer_from_gpu"
    summed = f"{ZERO}, async_accumulate_grad_in_cpu_via_gpu"
    initialised = f"{ZERO}, initialize_optimizer_states"
    staged = f"{ZERO}, __init__; of float32 weights the weights themselves: {SHARED}"
    sums = each(weight if accumulates else 0, counts)
    copy_attribute = "param_buffer_of_bit16_for_cpu_offload_groups"
    return [
        *offload_device(model, strategy),
        Entry("norm in float64", "device", "parameter", "boundary", each(8, counts), norm),
        Entry("overflow check in float32", "device", "parameter", "boundary", converted, overflow),
        Entry("upcast before the copy to the host", "device", "parameter", "boundary", converted, sent),
        *offload_masters(model, strategy),
        Entry("gradients in float32", "host", "group", "always", grad, initialised, f"{HELD}.grad"),
        Entry("staging of the new weights", "host", "group", "always", bf16_copy, staged, copy_attribute),
        Entry("staging of new float32 weights", "host", "group", "init_all", copy, GIVEN_UP),
        offload_staging(model, strategy),
        Entry("accumulated gradients", "host", "parameter", "always", sums, summed, "accumulated_grads_in_cpu"),
        Entry("optimizer states", "host", "group", "always", states, "torch/optim/adamw.py, _init_group", "state"),
    ]
