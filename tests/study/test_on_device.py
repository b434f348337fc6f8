"""The phases after training on a device: everything is computed there, and what comes out is what the CPU gives."""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import stub_device
import torch
from quick_run import QuickRun, make_run, shake
from torch import Tensor

from redheart.cli import main
from redheart.core import device as placing
from redheart.core.config import Device
from redheart.core.errors import BadInput
from redheart.core.progress import Display
from redheart.evaluate.results import CalibrationResult, Crossover, EvaluationResult
from redheart.model import blocks
from redheart.model.network import RedHeart, Signals
from redheart.predict.predictor import Prediction
from redheart.select.conditional import ConditionalEvaluator
from redheart.select.sweet_spot import SweetSpot
from redheart.snapshots.blend import Blend, mean_of, single
from redheart.study import run_folder
from redheart.study.calibrating import run_calibration
from redheart.study.evaluating import run_evaluation
from redheart.study.final import open_run
from redheart.study.phases import Study, load_study
from redheart.study.recombining import run_crossover
from redheart.study.run_folder import RunFolder
from redheart.study.selecting import expected_specs, make_evaluator, open_snapshots, run_sweet_spot

TEXTS = ["I should not have said that to her.", "He thanked me, and I was proud.", "well"]


@dataclasses.dataclass(frozen=True)
class Found:
    """What the phases after training have found."""

    spot: SweetSpot
    crossover: Crossover
    calibration: CalibrationResult
    evaluation: EvaluationResult
    predictions: list[Prediction]


@pytest.fixture(autouse=True, scope="module")
def few_queries_read_as_on_a_card() -> Iterator[None]:
    """The CPU's own way is equal but for rounding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "asks_few", lambda *_, **__: False)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> QuickRun:
    return make_run(tmp_path_factory.mktemp("trained"), lambda model, epoch: shake(model, epoch, scale=0.1))


def phases_of(run: QuickRun, out: Path, *, device: Device = "auto") -> Found:
    shutil.copytree(run.config.out, out)
    study = run.choosing(budget_evaluations=4)
    config = dataclasses.replace(study.config, out=out, device=device)
    study = dataclasses.replace(study, config=config, folder=RunFolder(out))
    return Found(
        spot=run_sweet_spot(study),
        crossover=run_crossover(study),
        # Before there is a calibration, whose last bits are other ones on a device: see below.
        predictions=open_run(out, device=device).predict(TEXTS),
        calibration=run_calibration(study),
        evaluation=run_evaluation(study),
    )


@pytest.fixture(scope="module")
def on_cpu(trained: QuickRun, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return phases_of(trained, tmp_path_factory.mktemp("cpu") / "run")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Passes of modules with weights, by the device that these lie on."""
    counted: Counter[str] = Counter()
    compute = RedHeart.compute

    def counting(
        self: RedHeart, node: str, features_BSD: Tensor, mask_BS: Tensor, read: Mapping[str, Signals]
    ) -> Signals:
        if node != "experts":
            counted[next(self.get_submodule(node).parameters()).device.type] += 1
        return compute(self, node, features_BSD, mask_BS, read)

    monkeypatch.setattr(RedHeart, "compute", counting)
    return counted


@pytest.mark.long
def test_every_phase_computes_on_the_device_and_finds_what_the_cpu_finds(
    trained: QuickRun, on_cpu: Found, tmp_path: Path, passes: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_device.install(monkeypatch)
    monkeypatch.setattr(placing, "CARD_TYPE", torch.float32)
    found = phases_of(trained, tmp_path / "device", device="cuda")
    assert passes["cuda"] > 300 and passes["cpu"] == 0
    for field in set(SweetSpot.__struct_fields__) - {"work"}:
        assert getattr(found.spot, field) == getattr(on_cpu.spot, field), field
    assert found.crossover == on_cpu.crossover
    assert found.evaluation == on_cpu.evaluation
    assert found.predictions == on_cpu.predictions
    # Calibration leaves its weights wanting gradients, by which torch multiplies in another way, with other last bits.
    assert found.calibration.verdict == on_cpu.calibration.verdict
    for name, method in found.calibration.methods.items():
        assert method.select_cross_entropy == pytest.approx(
            on_cpu.calibration.methods[name].select_cross_entropy, rel=1e-6
        )
    passes.clear()
    again = phases_of(trained, tmp_path / "host", device="cpu")
    assert passes["cpu"] > 300 and passes["cuda"] == 0
    assert again.evaluation == on_cpu.evaluation and again.calibration == on_cpu.calibration


@pytest.mark.long
def test_in_bf16_the_phases_find_the_same_within_its_rounding(
    trained: QuickRun, on_cpu: Found, tmp_path: Path, passes: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_device.install(monkeypatch)
    found = phases_of(trained, tmp_path / "device", device="cuda")
    assert passes["cuda"] > 300 and passes["cpu"] == 0
    assert (found.spot.computed_in, on_cpu.spot.computed_in) == ("bf16", "fp32")
    # A bf16 number has 8 bits; what is left of that in a loss, a percentage of it and a share was .0006, .11 and .024.
    for name, gain in found.spot.baselines.items():
        assert gain.percent == pytest.approx(on_cpu.spot.baselines[name].percent, abs=0.5)
    tasks = (found.evaluation.models["best_single"].tasks, on_cpu.evaluation.models["best_single"].tasks)
    kl, expected = (item["emotion"]["kl"].value for item in tasks)
    assert kl == pytest.approx(expected, abs=5e-3) and kl != expected
    for prediction, other in zip(found.predictions, on_cpu.predictions, strict=True):
        for task, values in prediction.tasks.items():
            assert values == pytest.approx(other.tasks[task], abs=0.1)
    # What was searched on a card is assembled and judged on the CPU too.
    config = dataclasses.replace(trained.config, out=tmp_path / "device", device="cpu")
    passes.clear()
    run_crossover(dataclasses.replace(trained.study, config=config, folder=RunFolder(config.out)))
    assert passes["cuda"] == 0


def choices(study: Study) -> list[dict[str, Blend]]:
    """A whole model, and one with three modules of another snapshot and a mean."""
    whole = dict.fromkeys(expected_specs(study.config, study.prepared), single(4))
    return [whole, {**whole, "neural.surd": single(2), "signal.dsp": mean_of((2, 4)), "heads.regret": single(2)}]


def evaluated(study: Study, *, number: int = 2) -> tuple[list[dict[str, np.ndarray]], ConditionalEvaluator]:
    evaluator = make_evaluator(study, open_snapshots(study.folder))
    found = [evaluator.losses(choice) for choice in choices(study)[:number]]
    return found, evaluator


def test_the_search_and_predictions_on_the_device_have_the_bits_of_the_cpu_within_its_memory(
    finished_run: Path, tmp_path: Path, passes: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = run_folder.load(finished_run)
    study, folder.select = load_study(config, folder), tmp_path / "cpu"
    expected, _ = evaluated(study)
    predictor = open_run(finished_run)
    predictor.model.requires_grad_(False)
    predictions = predictor.predict(TEXTS)
    stub_device.install(monkeypatch, free_bytes=1 << 19)
    folder.select = tmp_path / "asked"
    passes.clear()
    evaluated(study, number=1)
    assert passes["cpu"] > 0 and passes["cuda"] == 0, "not measured on a card yet: it must be asked for"
    study = dataclasses.replace(study, config=dataclasses.replace(config, device="cuda"))
    passes.clear()
    with monkeypatch.context() as patch:
        patch.setattr(placing, "CARD_TYPE", torch.float32)
        folder.select = tmp_path / "device"
        found, evaluator = evaluated(study)
        for losses, others in zip(found, expected, strict=True):
            assert all(np.array_equal(losses[name], others[name], equal_nan=True) for name in others)
        # Half of the device's memory, results and weights together.
        memos = (evaluator._results, evaluator._weights)
        assert all(memo.held_bytes > 0 for memo in memos) and sum(memo.limit_bytes for memo in memos) <= 1 << 18
        assert open_run(finished_run).predict(TEXTS) == predictions
    # What was computed in another type is not taken for this one's.
    (rounded,), _ = evaluated(study, number=1)
    emotion, exact = (losses["heads.emotion"] for losses in (rounded, expected[0]))
    assert not np.array_equal(emotion, exact, equal_nan=True)
    assert np.nanmean(emotion) == pytest.approx(np.nanmean(exact), rel=5e-3)
    assert passes["cuda"] > 50 and passes["cpu"] == 0


def test_where_memory_runs_out_a_node_takes_fewer_records(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = run_folder.load(finished_run)
    study, folder.select = load_study(config, folder), tmp_path / "whole"
    expected, _ = evaluated(study, number=1)
    compute, tried = RedHeart.compute, []

    def short(self: RedHeart, node: str, features_BSD: Tensor, mask_BS: Tensor, read: Mapping[str, Signals]) -> Signals:
        tried.append(len(mask_BS))
        if len(mask_BS) > 7:
            raise torch.OutOfMemoryError("out of memory")
        return compute(self, node, features_BSD, mask_BS, read)

    monkeypatch.setattr(RedHeart, "compute", short)
    folder.select = tmp_path / "parts"
    found, _ = evaluated(study, number=1)
    # Sums of products of another shape are taken in another order.
    np.testing.assert_allclose(found[0]["heads.surd"], expected[0]["heads.surd"], rtol=1e-4)
    # It is found out once.
    assert capsys.readouterr().err.count("out of device memory") == sum(size > 7 for size in tried) < 3


def test_a_device_that_is_not_there_is_refused_and_which_one_is_no_part_of_a_run(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(finished_run), "--text", "x", "--device", "cuda"])
    assert ended.value.code == BadInput.exit_code
    assert "there is no CUDA device" in capsys.readouterr().err
    _, config = run_folder.load(finished_run)
    saved = run_folder.check(dataclasses.replace(config, device="cpu"))
    assert saved and saved.config["device"] == "auto"


def test_a_search_tells_how_much_of_its_budget_is_spent(
    trained: QuickRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, list[float]] = {}

    @contextmanager
    def track(self: Display, phase: str, total: float, *, unit: str) -> Iterator[Callable[[float], None]]:
        told[phase] = [total]
        yield told[phase].append

    monkeypatch.setattr(Display, "track", track)
    shutil.copytree(trained.config.out, tmp_path / "run")
    study = trained.choosing(budget_evaluations=4, map_epochs=2)
    spot = run_sweet_spot(dataclasses.replace(study, folder=RunFolder(tmp_path / "run")))
    total, *parts = told["sweet-spot"]
    assert spot.evaluations <= sum(parts) <= total == 4 + len(spot.baselines) and len(parts) > 5
    total, *parts = told["maps"]
    assert sum(parts) == pytest.approx(total)


def test_what_a_process_may_take_is_what_is_free_within_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    stub_device.install(monkeypatch, free_bytes=80 << 30)
    assert placing.free_bytes(device) == 80 << 30
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda *_: 0.1)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 3 << 30)
    assert placing.free_bytes(device) == 5 << 30
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 9 << 30)
    assert placing.free_bytes(device) == 0
