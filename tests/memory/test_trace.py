"""The trace on `meta` equals what a real run on the CPU holds, to the byte; nothing is rounded in either."""

from itertools import product

import pytest
import torch

from redheart.memory.kernels import CPU
from redheart.memory.trace import Trace, at_batch, trace_pass
from redheart.model import blocks
from redheart.model.blocks import set_checkpointing
from redheart.model.dims import preset
from redheart.model.losses import multitask_loss, task_counts
from redheart.model.network import build

DIMS = {name: preset(name) for name in ("tiny", "small")}


def pass_on(device: str, name: str, batch: int, length: int, checkpointing: bool, *, backward: bool = True) -> Trace:
    dims = DIMS[name]
    model = build(dims, seed=0, device=device)
    set_checkpointing(model, checkpointing)
    given = (
        torch.zeros(batch, length, 768, device=device),
        torch.ones(batch, length, dtype=torch.bool, device=device),
        torch.full((batch, 22), 0.1, device=device),
        torch.ones(batch, 22, dtype=torch.bool, device=device),
    )
    counts = task_counts(given[3], dims.outputs)

    def loss(module, items):
        predictions = module(items[0], items[1])
        return multitask_loss(predictions, items[2], items[3], outputs=dims.outputs, step_counts_K=counts).total

    kernels = CPU if device == "meta" else None
    return trace_pass(model, given, loss, kernels=kernels, backward=backward)


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors are tiny: on a busy machine threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CASES = [
    pytest.param(*case, marks=[pytest.mark.long] if case[:3] not in (("tiny", 1, 4), ("small", 5, 9)) else [])
    for case in product(("tiny", "small"), (1, 2, 5), (4, 9), (False, True))
]


@pytest.mark.parametrize(("name", "batch", "length", "checkpointing"), CASES)
def test_traced_peak_is_the_peak_of_a_real_run(
    name: str, batch: int, length: int, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a card, which the trace is of.
    for own_way in ("asks_few", "maps_values_once"):
        monkeypatch.setattr(blocks, own_way, lambda *_, **__: False)
    traced, real = (pass_on(device, name, batch, length, checkpointing) for device in ("meta", "cpu"))
    assert traced.peak_bytes == real.peak_bytes > 0
    monkeypatch.undo()
    # The CPU's own ways, few queries without keys and values, values through one map, hold less.
    assert pass_on("cpu", name, batch, length, checkpointing).peak_bytes <= traced.peak_bytes


def test_checkpointing_lowers_the_peak_and_validation_is_lower_still() -> None:
    plain, checkpointed = (pass_on("meta", "small", 4, 64, flag).peak_bytes for flag in (False, True))
    validation = pass_on("meta", "small", 4, 64, False, backward=False).peak_bytes
    assert validation < checkpointed < plain


def test_other_batch_sizes_follow_from_two() -> None:
    traces = {batch: pass_on("meta", "small", batch, 32, False) for batch in (2, 3)}
    for batch in (5, 16):
        assert at_batch(traces, batch) == pass_on("meta", "small", batch, 32, False)
