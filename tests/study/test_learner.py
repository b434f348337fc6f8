"""The learner's loss: dropout that a resumed run repeats, tasks weighted as asked."""

import dataclasses
from concurrent.futures import wait
from typing import Any

import numpy as np
import pytest
import torch

from redheart.core.config import FeatureConfig, PrepareConfig, StudyConfig, TrainConfig
from redheart.core.ranks import launched
from redheart.data.features import FeatureCache, make_features
from redheart.data.prepare import Prepared, load_prepared, prepare
from redheart.model.dims import preset
from redheart.model.losses import LossTerms
from redheart.model.network import build
from redheart.study.learner import VALIDATION_PARTS, EmotionLearner, Tensors, computes_in_halves, total_loss
from redheart.train.counting import StepLosses


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, FeatureCache]:
    folder = tmp_path_factory.mktemp("learner")
    prepare(None, out=folder / "data", config=PrepareConfig(num_generated=60), seed=0)
    prepared = load_prepared(folder / "data")
    config = FeatureConfig(encoder="hash", seq_len_tokens=8)
    return prepared, make_features(prepared.records, config=config, root=folder / "features", fit=folder / "fit")


def learner_of(data: tuple[Prepared, FeatureCache], *, halves: bool = False, **train: Any) -> EmotionLearner:
    prepared, features = data
    model = build(preset("tiny", outputs=prepared.inventory.outputs), seed=0)
    return EmotionLearner(model, prepared, features, TrainConfig(micro_batch=8, **train), seed=0, halves=halves)


def loss_of(learner: EmotionLearner, rows: np.ndarray) -> float:
    learner.model.train()
    return float(learner.loss(learner.model, rows, step_rows=rows).total.detach())


def uneven(features: FeatureCache) -> FeatureCache:
    """The same with texts of 2 to 8 tokens."""
    lengths_N = np.arange(len(features)) % 7 + 2
    return dataclasses.replace(features, offsets_N=np.concatenate(([0], np.cumsum(lengths_N))))


def test_a_batch_has_the_targets_of_its_rows(data: tuple[Prepared, FeatureCache]) -> None:
    prepared, _ = data
    rows = np.array([5, 0, 9])
    _, _, targets_BT, present_BT = learner_of(data)._read(rows)
    assert np.array_equal(targets_BT.numpy(), prepared.values_NT[rows], equal_nan=True)
    assert np.array_equal(present_BT.numpy(), prepared.mask_NT[rows])


def test_two_halves_are_the_whole_batch_but_for_rounding_also_what_they_drop(
    data: tuple[Prepared, FeatureCache],
) -> None:
    rows, found = np.arange(7), []
    for halves in (False, True):
        learner = learner_of((data[0], uneven(data[1])), feature_dropout=0.3, halves=halves)
        learner.model.train()
        torch.manual_seed(3)
        loss = learner.loss(learner.model, rows, step_rows=np.arange(9))
        loss.total.backward()  # type: ignore[no-untyped-call]
        gradient = torch.cat([parameter.grad.flatten() for parameter in learner.model.parameters()])  # type: ignore[union-attr]
        found.append((loss, gradient, torch.rand(())))
    (whole, expected, number), (halved, ours, same) = found
    assert same == number and halved.counts == whole.counts
    assert torch.allclose(halved.total, whole.total) and halved.sums.keys() == whole.sums.keys()
    assert all(torch.allclose(halved.sums[name], whole.sums[name]) for name in whole.sums)
    assert (ours - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("train", "preset_name", "ranks", "expected"),
    [
        ({}, "tiny", 1, True),
        ({}, "full", 1, False),
        ({}, "small", 2, False),
        ({"num_threads": 1}, "small", 1, False),
        ({"dropout": 0.1}, "small", 1, False),
    ],
)
def test_halves_are_for_one_process_whose_operators_are_small(
    train: dict[str, Any], preset_name: Any, ranks: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redheart.study.learner.available_cores", lambda: 2)
    monkeypatch.setattr("redheart.study.learner.launched", lambda: dataclasses.replace(launched(), world_size=ranks))
    config = StudyConfig(preset=preset_name, train=TrainConfig(**train))
    assert computes_in_halves(config) == (expected and not torch.cuda.is_available())


def test_values_weigh_as_asked_in_training_and_validation(data: tuple[Prepared, FeatureCache]) -> None:
    rows = np.arange(8)
    losses = [loss_of(learner_of(data, value_weight=weight), rows) for weight in (1, 2, 3)]
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4) and losses[1] > losses[0]
    means = {"heads.emotion": 2.0, "heads.regret": 0.1, "neural.emotion": 1.0, "neural.regret": 0.2}
    expected = 0.7 * (2.0 + 10 * 0.1) / 2 + 0.3 * (1.0 + 10 * 0.2) / 2
    assert total_loss(means, value_weight=10) == pytest.approx(expected)
    learner = learner_of(data, value_weight=10)
    learner.model.eval()
    found = learner.validate(learner.model)
    assert found.loss == pytest.approx(total_loss(found.module_losses, value_weight=10))


def test_steps_and_epochs_tell_one_loss_where_a_task_has_no_target(data: tuple[Prepared, FeatureCache]) -> None:
    prepared, features = data
    mask_NT = prepared.mask_NT.copy()
    mask_NT[:, prepared.inventory.columns("emotion").stop :] = False
    learner = learner_of((dataclasses.replace(prepared, mask_NT=mask_NT), features))
    rows = np.arange(8)
    loss = learner.loss(learner.model, rows, step_rows=rows)
    totals = StepLosses()
    totals.add(loss)
    found = totals.over_ranks(lambda values: values)
    assert learner.mean_losses(found.sums, found.counts)[0] == pytest.approx(found.loss)
    rows = np.concatenate([prepared.split[part] for part in VALIDATION_PARTS])
    loss = learner.loss(learner.model, rows, step_rows=rows)
    assert learner.validate(learner.model).loss == pytest.approx(float(loss.total.detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("threads", "has_card", "expected"), [(1, False, 1), (2, False, 0), (1, True, 1), (2, True, 1)]
)
def test_on_the_cpu_a_batch_is_read_ahead_only_where_one_thread_computes(
    threads: int,
    has_card: bool,
    expected: int,
    data: tuple[Prepared, FeatureCache],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = learner_of(data)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_card)
    learner.read_ahead(np.arange(4))
    assert len(learner._batches._coming) == expected


def test_halves_are_read_ahead_each_apart_and_padded_to_its_own_longest(data: tuple[Prepared, FeatureCache]) -> None:
    rows, features = np.arange(30), uneven(data[1])
    learner = learner_of((data[0], features), halves=True)
    expected = loss_of(learner, rows)
    read: list[Tensors] = []
    inner = learner._batches._read
    learner._batches._read = lambda rows: read.append(inner(rows)) or read[-1]  # type: ignore[func-returns-value]
    learner.read_ahead(rows)
    wait(list(learner._batches._coming.values()))
    assert len(read) == 2
    assert loss_of(learner, rows) == expected and len(read) == 2
    tokens = [mask_BS.numel() for _, mask_BS, _, _ in read]
    assert sum(tokens) < len(rows) * features.lengths(rows).max() and max(tokens) < 0.6 * sum(tokens)
    learner.read_ahead(rows[:1])
    assert not learner._batches._coming


def test_a_batch_that_was_read_ahead_gives_the_same_bits(
    data: tuple[Prepared, FeatureCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    rows, others, learner = np.arange(8), np.arange(8, 16), learner_of(data)
    expected = [loss_of(learner, rows), loss_of(learner, others)]
    read: list[int] = []
    inner = learner._batches._read
    learner._batches._read = lambda rows: read.append(int(rows[0])) or inner(rows)  # type: ignore[func-returns-value]
    learner.read_ahead(rows)
    assert loss_of(learner, rows) == expected[0] and read == [0]
    learner.read_ahead(rows)
    # Another one is asked for than was read, as after a smaller micro-batch.
    assert loss_of(learner, others) == expected[1] and sorted(read[1:]) == [0, 8]
    learner.read_ahead(rows[:0])
    assert loss_of(learner, rows) == expected[0] and read[3:] == [0]
    learner.read_ahead(np.array([10**6]))
    with pytest.raises(IndexError):
        learner.loss(learner.model, np.array([10**6]), step_rows=rows)


def test_padding_to_a_common_length_moves_no_loss(data: tuple[Prepared, FeatureCache]) -> None:
    learner, padded = learner_of(data), learner_of(data)
    padded._length_step = 64
    rows = np.arange(8)
    assert [tensor.shape[1] for tensor in padded._read(rows)[:2]] == [64, 64]
    # Attention adds up in another order over more keys.
    assert loss_of(padded, rows) == pytest.approx(loss_of(learner, rows), rel=1e-5)


def test_all_that_a_loss_is_made_of_is_on_the_model_s_device(
    data: tuple[Prepared, FeatureCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(data)
    learner.model.to("meta")
    found: list[torch.Tensor] = []

    def note(predictions: object, *tensors: torch.Tensor, step_counts_K: torch.Tensor, **_: object) -> LossTerms:
        found.extend((*tensors, step_counts_K))
        return LossTerms(step_counts_K.sum(), {}, step_counts_K)

    monkeypatch.setattr("redheart.study.learner.multitask_loss", note)
    learner.loss(lambda *inputs: found.extend(inputs), np.arange(8), step_rows=np.arange(8))  # type: ignore[arg-type]
    assert [tensor.device.type for tensor in found] == ["meta"] * 5


def test_a_validation_that_does_not_fit_gives_the_same_in_smaller_batches(
    data: tuple[Prepared, FeatureCache], capfd: pytest.CaptureFixture[str]
) -> None:
    learner = learner_of(data)
    whole = learner.validate(learner.model)
    sizes = []

    def allocate(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("planted")

    learner.model.register_forward_pre_hook(allocate)
    found = learner.validate(learner.model)
    # There are six records.
    assert sizes == [6, 3, *[1] * 6]
    assert capfd.readouterr().err.count("going on with batches of") == 2
    for name, outputs in whole.outputs.items():
        # A batch of another size is padded and multiplied in another order.
        assert np.allclose(found.outputs[name], outputs, rtol=1e-4, atol=1e-6)
    assert found.loss == pytest.approx(whole.loss, rel=1e-5)
