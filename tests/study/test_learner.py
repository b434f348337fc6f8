"""The learner's loss: dropout that a resumed run repeats, tasks weighted as asked."""

import numpy as np
import pytest
import torch

from redheart.core.config import FeatureConfig, PrepareConfig
from redheart.data.features import FeatureCache, make_features
from redheart.data.prepare import Prepared, load_prepared, prepare
from redheart.model.dims import preset
from redheart.model.network import build
from redheart.study.learner import EmotionLearner, total_loss


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, FeatureCache]:
    folder = tmp_path_factory.mktemp("learner")
    prepare(None, out=folder / "data", config=PrepareConfig(num_generated=60), seed=0)
    prepared = load_prepared(folder / "data")
    config = FeatureConfig(encoder="hash", seq_len_tokens=8)
    return prepared, make_features(prepared.records, config=config, root=folder / "features", fit=folder / "fit")


def learner_of(data: tuple[Prepared, FeatureCache], *, value_weight: float = 1, **dropouts: float) -> EmotionLearner:
    prepared, features = data
    model = build(preset("tiny", outputs=prepared.inventory.outputs, **dropouts), seed=0)
    return EmotionLearner(model, prepared, features, seed=0, micro_batch=8, value_weight=value_weight)


def loss_of(learner: EmotionLearner, rows: np.ndarray) -> float:
    learner.model.train()
    return float(learner.loss(learner.model, rows, step_rows=rows).total.detach())


@pytest.mark.parametrize("kind", ["dropout", "feature_dropout"])
def test_dropout_follows_from_the_rows_and_leaves_the_global_stream_alone(
    data: tuple[Prepared, FeatureCache], kind: str
) -> None:
    rows = np.arange(8)
    learner = learner_of(data, **{kind: 0.3})
    torch.manual_seed(1)
    first = loss_of(learner, rows)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert loss_of(learner, rows) == first
    assert loss_of(learner_of(data), rows) != first
    # The same rows in another order, as in another epoch, draw other units; without dropout only sums are reordered.
    turned = rows[::-1].copy()
    assert abs(loss_of(learner, turned) - first) > 1e-4
    assert abs(loss_of(learner_of(data), turned) - loss_of(learner_of(data), rows)) < 1e-5


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
