"""What is sent arrives in order, and an error on the way is not lost."""

import pytest
import torch

from redheart.memory.ledger import SLOTS, ModelSizes, ledger
from redheart.train.device import transfers
from redheart.train.device.transfers import SLOTS_TO_DEVICE, SLOTS_TO_HOST, ToDevice, ToHost, pieces
from redheart.train.strategy import strategy_sizes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "SLOT_ELEMENTS", 64)


def test_pieces_cover_a_tensor_once_and_fit_into_slots() -> None:
    found = list(pieces(150))
    assert found == [slice(0, 64), slice(64, 128), slice(128, 150)]
    assert list(pieces(0)) == []


def test_tensors_arrive_in_the_order_in_which_they_were_sent() -> None:
    to_host, arrived = ToHost(), []
    for number in range(5 * SLOTS_TO_HOST):
        values = torch.full((number + 1,), float(number), dtype=torch.bfloat16, device=DEVICE)
        to_host.send(values, lambda copy: arrived.append(copy.tolist()))
    to_host.wait()
    assert arrived == [[float(number)] * (number + 1) for number in range(5 * SLOTS_TO_HOST)]


def test_an_error_on_the_host_comes_out_at_the_wait_and_leaves_the_slots_usable() -> None:
    to_host, arrived = ToHost(), []

    def fail(copy: torch.Tensor) -> None:
        raise RuntimeError("no room")

    values = torch.ones(3, dtype=torch.bfloat16, device=DEVICE)
    for _ in range(2 * SLOTS_TO_HOST):
        to_host.send(values, fail)
    with pytest.raises(RuntimeError, match="no room"):
        to_host.wait()
    to_host.send(values, lambda copy: arrived.append(copy.sum().item()))
    to_host.wait()
    assert arrived == [3.0]


def test_a_slot_is_given_again_only_after_its_copy() -> None:
    to_device = ToDevice()
    targets = torch.zeros(6, 64, dtype=torch.bfloat16, device=DEVICE)
    for number, target in enumerate(targets):
        slot = to_device.slot(64)
        slot.fill_(float(number + 1))
        to_device.send(slot, target)
    assert targets[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_the_ledger_counts_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    entries = ledger(ModelSizes({}, (), ()), strategy_sizes("zero2_offload_adam8bit"), accumulates=False)
    elements = (SLOTS_TO_HOST + SLOTS_TO_DEVICE) * transfers.SLOT_ELEMENTS
    (slots_bytes,) = (entry.total_bytes for entry in entries if entry.name == SLOTS)
    assert slots_bytes == elements * torch.bfloat16.itemsize
