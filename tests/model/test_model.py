"""What must hold of the network, whatever its size; the ledger for the full one."""

import pytest
import torch

from redheart.core.errors import RedHeartError
from redheart.model import ledger
from redheart.model.blocks import set_checkpointing
from redheart.model.dims import preset
from redheart.model.losses import multitask_loss, task_counts
from redheart.model.network import WIRING, RedHeart, Signals, as_prediction, build, task_of

DIMS = preset("tiny")


def make_batch(records: int, tokens: int, *, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    features_BSD = torch.randn(records, tokens, 768, generator=generator)
    lengths_B = torch.randint(2, tokens + 1, (records,), generator=generator)
    mask_BS = torch.arange(tokens) < lengths_B[:, None]
    targets_BT = torch.rand(records, 22, generator=generator)
    targets_BT[:, :7] /= targets_BT[:, :7].sum(1, keepdim=True)
    present_BT = torch.rand(records, 22, generator=generator) > 0.2
    present_BT[:, :7] = True
    return features_BSD, mask_BS, targets_BT, present_BT


def loss_of(model: RedHeart, batch: tuple[torch.Tensor, ...], step_counts_K: torch.Tensor) -> torch.Tensor:
    features_BSD, mask_BS, targets_BT, present_BT = batch
    predictions = model(features_BSD, mask_BS)
    return multitask_loss(predictions, targets_BT, present_BT, outputs=DIMS.outputs, step_counts_K=step_counts_K).total


def gradients(model: RedHeart, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss_of(model, batch, task_counts(batch[3], DIMS.outputs)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_full_ledger_is_exact() -> None:
    counted = ledger.count(build(preset("full"), seed=0, device="meta"))
    ledger.check_full(counted)
    assert counted.total == 730_466_848
    assert counted.modules["backbone"] == 90_624_132
    assert sum(counted.modules.values()) == counted.total


def test_ledger_check_names_what_is_off() -> None:
    counted = ledger.count(build(DIMS, seed=0, device="meta"))
    with pytest.raises(RedHeartError, match=r"neural\.regret"):
        ledger.check_full(counted)


@pytest.mark.parametrize(("name", "low", "high"), [("tiny", 2.5e5, 4.5e5), ("small", 2e6, 1e7)])
def test_presets_keep_size_and_proportions(name: str, low: float, high: float) -> None:
    counted = ledger.count(build(preset(name), seed=0, device="meta"))
    full = ledger.count(build(preset("full"), seed=0, device="meta"))
    assert low <= counted.total <= high
    # Widths are rounded to multiples of 8 and depths to whole layers, so shares hold to thirteen points.
    for group, elements in full.groups.items():
        assert counted.groups[group] / counted.total == pytest.approx(elements / full.total, abs=0.13), group


def test_every_parameter_element_receives_a_gradient() -> None:
    found = gradients(build(DIMS, seed=0), make_batch(64, 24))
    assert all(gradient.count_nonzero() > 0 for gradient in found.values())
    nonzero = sum(int(gradient.count_nonzero()) for gradient in found.values())
    assert nonzero >= 0.999 * sum(gradient.numel() for gradient in found.values())


def test_a_record_does_not_depend_on_batch_mates_order_or_padding() -> None:
    model = build(DIMS, seed=0).eval()
    features_BSD, mask_BS, _, _ = make_batch(6, 12)
    together = model(features_BSD, mask_BS)
    backwards = model(features_BSD.flip(0), mask_BS.flip(0))
    padded = model(
        torch.cat((features_BSD, torch.full((6, 9, 768), 3.0)), dim=1),
        torch.cat((mask_BS, torch.zeros(6, 9, dtype=torch.bool)), dim=1),
    )
    alone = model(features_BSD[2:3, : mask_BS[2].sum()], mask_BS[2:3, : mask_BS[2].sum()])
    for name, prediction_BO in together.items():
        # Sums over another number of positions are rounded differently: float32 tolerance, not exactness.
        torch.testing.assert_close(backwards[name].flip(0), prediction_BO, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(padded[name], prediction_BO, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(alone[name], prediction_BO[2:3], atol=2e-5, rtol=1e-4)


def test_evaluation_is_deterministic_and_emotions_are_logits() -> None:
    model = build(DIMS, seed=0).eval()
    features_BSD, mask_BS, _, _ = make_batch(4, 8)
    first, second = model(features_BSD, mask_BS), model(features_BSD, mask_BS)
    for name, prediction_BO in first.items():
        assert torch.equal(prediction_BO, second[name])
        if task_of(name) == "emotion":
            assert not torch.allclose(prediction_BO.sum(-1), torch.ones(4))
        else:
            assert prediction_BO.min() > 0 and prediction_BO.max() < 1


def test_state_dict_round_trip_and_one_module_per_tensor() -> None:
    model = build(DIMS, seed=1)
    other = build(DIMS, seed=2)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    names = ledger.module_names(model)
    assert sorted(names) == sorted(ledger.PRINTED)
    for tensor in model.state_dict():
        assert sum(tensor.startswith(name + ".") for name in names) == 1


def test_checkpointing_gives_bit_identical_gradients() -> None:
    model = build(DIMS, seed=0)
    batch = make_batch(8, 16)
    kept = gradients(model, batch)
    set_checkpointing(model, True)
    recomputed = gradients(model, batch)
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_micro_batches_sum_to_the_one_big_batch() -> None:
    model = build(DIMS, seed=0)
    batch = make_batch(10, 8)
    counts_K = task_counts(batch[3], DIMS.outputs)
    whole = loss_of(model, batch, counts_K)
    parts = [loss_of(model, tuple(tensor[rows] for tensor in batch), counts_K) for rows in (slice(0, 7), slice(7, 10))]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=0)


def test_absent_targets_do_not_change_the_loss() -> None:
    model = build(DIMS, seed=0)
    features_BSD, mask_BS, targets_BT, present_BT = make_batch(5, 8)
    changed_BT = torch.where(present_BT, targets_BT, torch.rand_like(targets_BT))
    counts_K = task_counts(present_BT, DIMS.outputs)
    first = loss_of(model, (features_BSD, mask_BS, targets_BT, present_BT), counts_K)
    assert torch.equal(first, loss_of(model, (features_BSD, mask_BS, changed_BT, present_BT), counts_K))


def test_every_node_reads_what_the_wiring_says_and_nothing_else() -> None:
    model, (features_BSD, mask_BS, *_) = build(DIMS, seed=0).eval(), make_batch(5, 9)
    with torch.no_grad():
        expected = model(features_BSD, mask_BS)
        read: dict[str, Signals] = {}
        for node, sources in WIRING.items():
            read[node] = model.compute(node, features_BSD, mask_BS, {name: read[name] for name in sources})
    found = {name: as_prediction(name, signals) for name, signals in read.items() if "prediction" in signals}
    assert list(found) == list(expected) and set(WIRING) - {"experts"} == set(ledger.module_names(model))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
