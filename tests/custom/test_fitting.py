"""What a notebook does with one's own model: runs after each other, every setting, every schedule, losses by tokens."""

import dataclasses
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kinds
import numpy as np
import pytest
import torch
import transformers
from launching import start_by_hand
from torch import Tensor, nn

from redheart.core.config import SelectConfig, TrainConfig
from redheart.core.errors import BadInput, Diverged
from redheart.core.files import write_json
from redheart.custom import TensorLearner, choose, fit, plan, token_losses, training
from redheart.custom.training import VALIDATION
from redheart.snapshots.module_snapshots import list_snapshots
from redheart.snapshots.states import newest_state
from redheart.snapshots.tensors import REST
from redheart.train.log.events import Event, read_events
from redheart.train.log.wandb_sink import RunId

PLAIN = TrainConfig(strategy="plain", effective_batch=16, cycle_epochs=4, snapshot_every=1)


def learner(model: nn.Module | None = None, losses: Callable[..., Any] = kinds.squares, **more: Any) -> TensorLearner:
    torch.manual_seed(0)
    train, validation = (kinds.part(kinds.NUMBERS, rows) for rows in (slice(64), slice(64, None)))
    given = {"train": train, "validation": validation} | more
    return TensorLearner(model or kinds.Perceptron(), losses, **given)


def events(folder: Path, kind: str) -> list[Event]:
    return read_events(folder / "events.jsonl", kind)


def test_the_same_learner_goes_on_in_its_folder_and_starts_anew_in_another(tmp_path: Path) -> None:
    whole, parts = learner(), learner()
    fit(whole, PLAIN, tmp_path / "whole", epochs=2, learning_rate=1e-2)
    fit(parts, PLAIN, tmp_path / "parts", epochs=1, learning_rate=1e-2)
    choose(parts, tmp_path / "parts")
    fit(parts, PLAIN, tmp_path / "parts", epochs=2, learning_rate=1e-2)
    assert kinds.same(parts.model, whole.model)
    fit(parts, PLAIN, tmp_path / "new", epochs=1, learning_rate=1e-2)
    first, new = events(tmp_path / "whole", "step"), events(tmp_path / "new", "step")
    assert new[0]["step"] == 1 and new[0]["loss"] < first[0]["loss"]
    with pytest.raises(BadInput, match="another run"):
        fit(learner(parts.model), PLAIN, tmp_path / "whole", epochs=3, learning_rate=1e-2)


def test_a_run_that_ends_within_an_epoch_has_the_rates_of_a_longer_one(tmp_path: Path) -> None:
    fit(learner(), PLAIN, tmp_path / "short", max_steps=2, learning_rate=1e-2)
    fit(learner(), PLAIN, tmp_path / "long", epochs=1, learning_rate=1e-2)
    short, long = ([step["learning_rate"] for step in events(tmp_path / name, "step")] for name in ("short", "long"))
    assert len(short) == 2 and short == long[:2]


@pytest.mark.parametrize("strategy", ["window", "last-k"])
def test_statistics_and_counters_keep_their_types_and_have_means(strategy: str, tmp_path: Path) -> None:
    model = kinds.Perceptron(nn.BatchNorm1d(16))
    model.register_buffer("table", torch.arange(3))
    trained = learner(model)
    fit(trained, PLAIN, tmp_path, epochs=3, learning_rate=1e-2)
    state = newest_state(tmp_path / "states")
    assert state and int(state.ranks[0]["buffer.between.num_batches_tracked"]) == 12
    assert torch.equal(state.ranks[0]["buffer.between.running_var"], model.between.running_var)
    kept = list_snapshots(tmp_path / "snapshots")[-1].open_module("between")
    assert {name: kept[name].dtype for name in ("weight", "running_mean", "num_batches_tracked")} == {
        "weight": torch.bfloat16,
        "running_mean": torch.float32,
        "num_batches_tracked": torch.int64,
    }
    choose(trained, tmp_path, settings=SelectConfig(strategy=strategy, level="module", map_epochs=0))
    assert model.table.tolist() == [0, 1, 2] and model.between.num_batches_tracked.dtype == torch.int64


def test_dropout_and_noise_are_drawn_again_by_a_run_that_goes_on(tmp_path: Path) -> None:
    drawn: list[float] = []

    def noisy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        noise = torch.randn_like(batch[0])
        drawn.append(noise[0, 0].item())
        return kinds.squares(module, (batch[0] + 0.1 * noise, batch[1]))

    def made() -> TensorLearner:
        torch.manual_seed(0)
        return learner(kinds.Perceptron(nn.Dropout(0.2)), noisy)

    whole, parts, other = made(), made(), made()
    # A loss is tried where a learner is made.
    drawn.clear()
    config = dataclasses.replace(PLAIN, micro_batch=8)
    fit(whole, config, tmp_path / "whole", epochs=2, learning_rate=1e-2)
    unbroken = drawn.copy()
    drawn.clear()
    fit(other, config, tmp_path / "parts", epochs=1, learning_rate=1e-2)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    fit(parts, config, tmp_path / "parts", epochs=2, learning_rate=1e-2)
    assert torch.equal(torch.get_rng_state(), before)
    assert kinds.same(parts.model, whole.model) and drawn == unbroken
    # 8 steps of two micro-batches have noise of their own, and four batches of the validation one for all epochs.
    assert len(drawn) == 16 + 2 * 4 and len(set(drawn)) == 16 + 4


def test_only_what_is_trained_has_masters_and_is_counted(tmp_path: Path) -> None:
    trained = learner(kinds.frozen())
    assert trained.modules() == ["last", REST]
    before = trained.model.first.weight.clone()
    fit(trained, PLAIN, tmp_path, epochs=1, learning_rate=1e-2)
    state = newest_state(tmp_path / "states")
    assert state and list(state.manifest.parameters) == ["last.weight", "last.bias"]
    assert torch.equal(trained.model.first.weight, before)
    planned, whole = (plan(learner(make()), PLAIN, vram_bytes=8 << 30) for make in (kinds.frozen, kinds.Perceptron))
    assert planned.parts["frozen weights"] == 4 * (8 * 16 + 16)
    assert planned.disk_parts["resume states"] == 3 * 3 * 4 * 17 < whole.disk_parts["resume states"]
    with pytest.raises(BadInput, match="nothing to train"):
        fit(learner(kinds.Perceptron().requires_grad_(False)), PLAIN, tmp_path / "none", epochs=1, learning_rate=1e-2)


def test_a_bf16_checkpoint_is_trained_with_float32_weights(tmp_path: Path) -> None:
    trained = learner(kinds.Perceptron().bfloat16())
    before = trained.model.first.weight.detach().clone()
    fit(trained, PLAIN, tmp_path, epochs=1, learning_rate=1e-5)
    after = trained.model.first.weight.detach()
    # Each step is below what bf16 can tell from nothing.
    assert after.dtype == torch.float32 and 0 < (after - before.float()).abs().max() < 1e-4


def test_memory_that_runs_out_in_the_validation_halves_its_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def greedy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if not torch.is_grad_enabled() and len(batch[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return kinds.squares(module, batch)

    fit(learner(losses=greedy), PLAIN, tmp_path / "greedy", epochs=2, learning_rate=1e-2)
    fit(learner(), PLAIN, tmp_path / "other", epochs=2, learning_rate=1e-2)
    found, expected = (events(tmp_path / name, "epoch")[1]["val_loss"] for name in ("greedy", "other"))
    assert found == pytest.approx(expected, rel=1e-6)
    said = capsys.readouterr().err
    assert [said.count(f"batches of {size} records") for size in (8, 4)] == [1, 1]


def test_a_batch_that_was_halved_behind_others_is_found_out_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = kinds.NUMBERS[0][64]

    def greedy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if not torch.is_grad_enabled() and len(batch[0]) > 4 and not torch.equal(batch[0][0], first):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return kinds.squares(module, batch)

    fit(learner(losses=greedy, micro_batch=8), PLAIN, tmp_path, epochs=3, learning_rate=1e-2)
    assert capsys.readouterr().err.count("batches of 4 records") == 1


def test_fit_runs_the_point_that_was_planned_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(effective_batch=64)
    assert training._micro_batch(learner(), config) == 64
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1 << 20))
    assert training._micro_batch(learner(), config) == 1
    assert training._micro_batch(learner(), dataclasses.replace(config, micro_batch=5)) == 5


def test_every_setting_works_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(training, "open_wandb", lambda mode, **_: modes.append(mode))
    given = {"micro_batch": 4, "wandb": "offline", "compress_snapshots": True, "sample_every_s": 0.0}
    config = dataclasses.replace(PLAIN, **given, learning_rate=1e-2)  # type: ignore[arg-type]
    made = learner()
    fit(made, config, tmp_path, epochs=2)
    assert modes == ["offline"] and events(tmp_path, "start")[0]["micro_batch"] == 4 == made.run.micro_batch
    refused = {"dropout": 0.1, "feature_dropout": 0.1, "value_weight": 2.0, "checkpointing": True}
    for name, value in refused.items():
        with pytest.raises(BadInput) as refusal:
            fit(learner(), dataclasses.replace(PLAIN, **{name: value}), tmp_path / name, epochs=1, learning_rate=1e-2)  # type: ignore[arg-type]
        assert f"TrainConfig.{name}" in str(refusal.value) and refusal.value.hint
    for wrong in ({"epochs": 1}, {"learning_rate": 1e-2}, {"epochs": 1, "learning_rate": 1e-2, "decay": "cosin"}):
        with pytest.raises(BadInput, match="how long"):
            fit(learner(), PLAIN, tmp_path / "wrong", **wrong)  # type: ignore[arg-type]


def test_checkpointing_is_the_models_own_and_is_planned() -> None:
    config = TrainConfig(effective_batch=16, checkpointing=True)
    made = kinds.learner("llama")
    peaks = {on: plan(made, dataclasses.replace(config, checkpointing=on), vram_bytes=8 << 30) for on in (False, True)}
    assert peaks[True].checkpointing
    activations = {on: found.moments["forward"].parts["activations"] for on, found in peaks.items()}
    assert activations[True] < activations[False]
    training.set_checkpointing(made.model, True)
    assert all(layer.gradient_checkpointing for layer in made.model.model.layers)


def test_a_model_of_transformers_that_cannot_checkpoint_is_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.AlbertForMaskedLM(transformers.AlbertConfig(**sizes))
    train, validation = (kinds.part(kinds.TEXTS, rows) for rows in (slice(64), slice(64, None)))
    made = learner(model, token_losses, train=train, validation=validation)
    config = dataclasses.replace(PLAIN, checkpointing=True)
    for go in (
        lambda: plan(made, config, vram_bytes=8 << 30),
        lambda: fit(made, config, tmp_path, epochs=1, learning_rate=1e-2),
    ):
        with pytest.raises(BadInput, match="no checkpointing of its own"):
            go()


def test_a_run_of_so_many_steps_warms_up_decays_and_ends_with_a_snapshot(tmp_path: Path) -> None:
    made = learner()
    fit(made, PLAIN, tmp_path, max_steps=6, learning_rate=1e-2, decay="linear", warmup_steps=2)
    rates = [event["learning_rate"] for event in events(tmp_path, "step")]
    falling = [1e-6 + (1e-2 - 1e-6) * share for share in (1, 0.75, 0.5, 0.25)]
    assert rates == pytest.approx([5e-3, 1e-2, *falling])
    assert [event["step"] for event in events(tmp_path, "epoch")] == [4, 6]
    assert events(tmp_path, "start")[0]["steps"] == 6
    assert [snapshot.epoch for snapshot in list_snapshots(tmp_path / "snapshots")] == [1, 2]
    with pytest.raises(BadInput, match="another run"):
        fit(made, PLAIN, tmp_path, max_steps=8, learning_rate=1e-2, decay="linear", warmup_steps=2)


class Counting(nn.Module):
    """Predicts a token's number from it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 1)

    def forward(self, ids_BS: Tensor) -> Tensor:
        return self.table(ids_BS).squeeze(2)


def of_tokens(module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    mask_BS = batch["attention_mask"]
    errors_BS = (module(batch["input_ids"]) - batch["input_ids"]) ** 2 * mask_BS
    return errors_BS.sum(1), mask_BS.sum(1)


def test_losses_by_tokens_do_not_depend_on_the_micro_batch(tmp_path: Path) -> None:
    texts = {"input_ids": [list(range(1, 2 + (7 * number) % 13)) for number in range(32)]}
    num_tokens = sum(map(len, texts["input_ids"]))
    config = dataclasses.replace(PLAIN, effective_batch=32)
    found = {}
    for size in (32, 5):
        torch.manual_seed(0)
        made = learner(Counting(), of_tokens, train=texts, validation=texts)
        batch = made.train.batch(np.arange(32))
        mean = of_tokens(made.model, batch)[0].sum().item() / num_tokens
        folder = tmp_path / str(size)
        fit(made, dataclasses.replace(config, micro_batch=size), folder, epochs=2, learning_rate=1e-2)
        step, epoch = events(folder, "step")[0], events(folder, "epoch")[-1]
        assert step["loss"] == pytest.approx(mean, rel=1e-5)
        after = of_tokens(made.model, batch)[0].sum().item() / num_tokens
        assert epoch["val_loss"] == pytest.approx(after, rel=1e-5)
        found[size] = made.model.table.weight.detach()
    assert torch.allclose(found[32], found[5], rtol=1e-5)


def test_an_error_in_the_validation_costs_no_step(tmp_path: Path) -> None:
    def wrong(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if not torch.is_grad_enabled():
            raise KeyError("labels")
        return kinds.squares(module, batch)

    made = learner(losses=wrong)
    with pytest.raises(KeyError, match="labels"):
        fit(made, PLAIN, tmp_path, epochs=1, learning_rate=1e-2)
    made.record_losses = kinds.squares
    fit(made, PLAIN, tmp_path, epochs=1, learning_rate=1e-2)
    assert [event["step"] for event in events(tmp_path, "step")] == [1, 2, 3, 4]


@pytest.mark.long
def test_two_ranks_train_a_model_of_ones_own(tmp_path: Path) -> None:
    script = str(Path(kinds.__file__))
    ranks = start_by_hand(2, [sys.executable, script], tmp_path, "trained", "batch_norm")
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    folder = tmp_path / "batch_norm" / "parts"
    assert events(folder, "start")[0]["ranks"] == 2
    assert (folder / "select").is_dir()
    assert [snapshot.epoch for snapshot in list_snapshots(folder / "snapshots")] == [1, 2]


def killed_at(epoch: int) -> SimpleNamespace:
    """An event sink that ends a run there as a kill does, before anything more is written."""

    def write(event: Event) -> None:
        if event["event"] == "epoch" and event["epoch"] == epoch:
            raise RuntimeError("killed")

    return SimpleNamespace(wants_past=False, write=write, close=lambda *, exit_code: None)


def test_a_run_that_was_killed_before_its_first_state_is_not_another_one_s_beginning(tmp_path: Path) -> None:
    """Its snapshots would be chosen from beside those of the other."""
    with pytest.raises(RuntimeError, match="killed"):
        fit(learner(), PLAIN, tmp_path / "run", epochs=6, learning_rate=1e-2, sinks=[killed_at(3)])
    assert newest_state(tmp_path / "run/states") is None and list_snapshots(tmp_path / "run/snapshots")
    with pytest.raises(BadInput, match="another run"):
        fit(learner(), PLAIN, tmp_path / "run", epochs=6, learning_rate=1e-5)
    again, whole = learner(), learner()
    fit(again, PLAIN, tmp_path / "run", epochs=6, learning_rate=1e-2)
    fit(whole, PLAIN, tmp_path / "whole", epochs=6, learning_rate=1e-2)
    assert kinds.same(again.model, whole.model)


@pytest.mark.parametrize("name", ["clip_norm", "snapshot_every", "cycle_growth", "effective_batch", "micro_batch"])
def test_settings_out_of_range_are_refused_before_anything_is_trained(name: str, tmp_path: Path) -> None:
    wrong: dict[str, Any] = {name: -1}
    with pytest.raises(BadInput, match=name):
        fit(learner(), dataclasses.replace(PLAIN, **wrong), tmp_path / "run", epochs=1, learning_rate=1e-2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": -0.01},
        {"learning_rate": math.nan},
        {"learning_rate": "fast"},
        {"epochs": -1},
        {"epochs": 1.5},
        {"max_steps": -1},
        {"max_steps": np.float64(2)},
        {"warmup_steps": -64},
    ],
)
def test_how_long_and_how_fast_is_checked_before_anything_is_trained(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="how long, how fast") as refusal:
        fit(learner(), PLAIN, tmp_path / "run", **({"epochs": 1, "learning_rate": 1e-2} | wrong))
    assert f"{next(iter(wrong))} {next(iter(wrong.values()))}" in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_and_torch_and_a_folder_as_text_are_taken(tmp_path: Path) -> None:
    own, others, folder = learner(), learner(), str(tmp_path / "others")
    fit(own, PLAIN, tmp_path / "own", epochs=3, max_steps=6, learning_rate=1e-2, warmup_steps=2)
    numbers: dict[str, Any] = {"epochs": np.int64(3), "max_steps": torch.tensor(6), "warmup_steps": np.uint8(2)}
    fit(others, PLAIN, folder, learning_rate=np.float64(1e-2), **numbers)
    assert kinds.same(others.model, own.model)
    assert events(tmp_path / "others", "start")[0]["key"] == events(tmp_path / "own", "start")[0]["key"]
    assert choose(others, folder).folder.is_dir()


@pytest.mark.parametrize("no_gradients", [torch.no_grad, torch.inference_mode])
def test_it_trains_whatever_mode_it_is_called_in(no_gradients: Any, tmp_path: Path) -> None:
    trained = learner()
    with no_gradients():
        fit(trained, PLAIN, tmp_path, epochs=1, learning_rate=1e-2)
        assert not torch.is_grad_enabled()
    assert trained.model.first.weight.requires_grad


def test_the_model_is_in_evaluation_mode_afterwards_whether_it_was_trained_or_not(tmp_path: Path) -> None:
    for _ in range(2):
        trained = learner()
        fit(trained, PLAIN, tmp_path, epochs=1, learning_rate=1e-2)
        assert not any(part.training for part in trained.model.modules())


def test_there_are_validation_records_enough_to_choose_and_to_judge(tmp_path: Path) -> None:
    few, enough = (learner(validation=[item[:size] for item in kinds.NUMBERS]) for size in (3, 4))
    with pytest.raises(BadInput, match="too few validation records"):
        fit(few, PLAIN, tmp_path / "few", epochs=2, learning_rate=1e-2)
    assert not (tmp_path / "few").exists()
    fit(enough, PLAIN, tmp_path / "enough", epochs=2, learning_rate=1e-2)
    assert choose(enough, tmp_path / "enough").gain_confirm.num_records == 2


@pytest.mark.parametrize("strategy", ["plain", "zero2_offload_adam8bit"])
def test_a_step_that_is_skipped_leaves_the_statistics_of_norms_alone(strategy: str, tmp_path: Path) -> None:
    inputs, targets = (item.clone() for item in kinds.part(kinds.NUMBERS, slice(64)))
    inputs[0] = math.inf
    made = learner(kinds.Perceptron(nn.BatchNorm1d(16)), train=[inputs, targets])
    fit(made, dataclasses.replace(PLAIN, strategy=strategy), tmp_path, epochs=2, learning_rate=1e-2)
    assert [event["applied"] for event in events(tmp_path, "step")].count(False) == 2
    assert all(buffer.isfinite().all() for buffer in made.model.buffers())


def test_a_choice_is_made_on_the_records_that_the_run_was_validated_on(tmp_path: Path) -> None:
    trained = learner()
    fit(trained, PLAIN, tmp_path, epochs=2, learning_rate=1e-2)
    reversed_rows = learner(validation=[item[64:].flip(0) for item in kinds.NUMBERS])
    with pytest.raises(BadInput, match="in another order"):
        choose(reversed_rows, tmp_path)


def test_the_validation_records_are_those_of_the_try_that_left_a_snapshot(tmp_path: Path) -> None:
    def broken(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return kinds.squares(module, batch) * math.nan

    with pytest.raises(Diverged):
        fit(learner(losses=broken), PLAIN, tmp_path, epochs=2, learning_rate=1e-2)
    mended = learner(validation=[item[64:].flip(0) for item in kinds.NUMBERS])
    fit(mended, PLAIN, tmp_path, epochs=2, learning_rate=1e-2)
    assert choose(mended, tmp_path).spot.modules


def test_a_foreign_file_in_the_place_of_the_validation_records_stays(tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        fit(learner(losses=lambda *given: kinds.squares(*given) * math.nan), PLAIN, tmp_path, epochs=1, learning_rate=1)
    (tmp_path / VALIDATION).write_text("{}")
    with pytest.raises(BadInput, match="other files"):
        fit(learner(), PLAIN, tmp_path, epochs=1, learning_rate=1e-2)
    assert (tmp_path / VALIDATION).read_text() == "{}"


def test_a_run_keeps_the_modules_that_it_was_started_with(tmp_path: Path) -> None:
    def divided(*middle: str) -> TensorLearner:
        torch.manual_seed(0)
        model = kinds.Perceptron(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))
        return learner(model, modules=["first", *middle, "last"])

    fit(divided("between"), PLAIN, tmp_path, epochs=1, learning_rate=1e-2)
    other = divided("between.0", "between.1")
    for go_on in (lambda: fit(other, PLAIN, tmp_path, epochs=2, learning_rate=1e-2), lambda: choose(other, tmp_path)):
        with pytest.raises(BadInput, match="other modules"):
            go_on()


def test_frozen_weights_are_left_alone_by_a_choice(tmp_path: Path) -> None:
    trained = learner(kinds.frozen())
    before = trained.model.first.weight.clone()
    assert not torch.equal(before.bfloat16().float(), before)
    fit(trained, PLAIN, tmp_path, epochs=1, learning_rate=1e-2)
    choose(trained, tmp_path)
    assert torch.equal(trained.model.first.weight, before)
    # What was trained is what the verdict was made on and the file holds.
    assert torch.equal(trained.model.last.weight, trained.model.last.weight.bfloat16().float())


def test_a_module_may_be_called_as_the_outputs_are(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.outputs = nn.Linear(8, 16), nn.Linear(16, 1)

        def forward(self, inputs_ND: Tensor) -> Tensor:
            return self.outputs(torch.relu(self.body(inputs_ND))).squeeze(1)

    trained = learner(Named())
    fit(trained, PLAIN, tmp_path, epochs=2, learning_rate=1e-2)
    kept = list_snapshots(tmp_path / "snapshots")[-1]
    assert torch.equal(kept.open_module("outputs")["weight"], trained.model.outputs.weight.bfloat16())
    choose(trained, tmp_path)


def test_a_try_that_ended_before_it_had_a_log_is_no_other_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="zero9"):
        fit(learner(), dataclasses.replace(PLAIN, strategy="zero9"), tmp_path / "run", epochs=1, learning_rate=1e-2)
    # As W&B leaves its own when what comes behind its start is refused.
    (tmp_path / "run/wandb/run-1").mkdir(parents=True)
    with pytest.raises(BadInput, match="wandb"):
        fit(learner(), PLAIN, tmp_path / "run", epochs=1, learning_rate=1e-2)
    write_json(tmp_path / "run/wandb.json", RunId("1"))
    fit(learner(), PLAIN, tmp_path / "run", epochs=1, learning_rate=1e-2)


def test_a_choice_brings_back_frozen_weights_that_a_learner_does_not_have(tmp_path: Path) -> None:
    trained = learner(kinds.frozen())
    before = trained.model.first.weight.clone()
    fit(trained, PLAIN, tmp_path, epochs=2, learning_rate=1e-2)
    other = learner(kinds.frozen())
    with torch.no_grad():
        other.model.first.weight.zero_()
    choose(other, tmp_path)
    assert torch.equal(other.model.first.weight, before.bfloat16().float())


def test_every_further_choice_has_a_wider_interval_and_one_that_comes_again_keeps_its(tmp_path: Path) -> None:
    trained = learner()
    fit(trained, PLAIN, tmp_path, epochs=3, learning_rate=1e-2)
    levels = {}
    for last_k in (3, 2, 3):
        settings = SelectConfig(strategy="last-k", last_k=last_k, level="module", map_epochs=0)
        levels[last_k] = choose(trained, tmp_path, settings=settings).gain_confirm.level
    assert levels == {3: 0.95, 2: 0.975}


class Table(kinds.Perceptron):
    """With what models of a tutorial have: a table in float32 that is added, and a scalar that is trained."""

    def __init__(self, turned: torch.dtype | None) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 16))
        self.register_buffer("passes", torch.zeros(()))
        self.scale, self._turned = nn.Parameter(torch.tensor(1.0)), turned

    def forward(self, inputs_ND: Tensor) -> Tensor:
        self.passes += self.training / 1024
        table = self.table.to(self._turned or self.table.dtype)
        hidden = self.first(inputs_ND.to(self.first.weight.dtype)) + table
        return self.last(hidden).squeeze(1) * self.scale


def test_a_table_in_float32_that_meets_weights_in_bf16_is_named(tmp_path: Path) -> None:
    config = dataclasses.replace(PLAIN, strategy="zero2_offload_adam8bit", compute_type="bf16")
    with pytest.raises(BadInput, match=r"two types meet(.|\n)*table(.|\n)*to\(inputs.dtype\)"):
        fit(learner(Table(None)), config, tmp_path / "run", epochs=1, learning_rate=1e-2)


@pytest.mark.parametrize("strategy", ["plain", "zero2_offload_adam8bit"])
def test_counters_and_scalars_are_kept_and_trained_by_every_strategy(strategy: str, tmp_path: Path) -> None:
    trained = learner(Table(torch.bfloat16 if strategy != "plain" else None))
    config = dataclasses.replace(PLAIN, strategy=strategy, micro_batch=16, compute_type="bf16")
    assert plan(trained, config, vram_bytes=8 << 30).fits
    before = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE")}
    fit(trained, config, tmp_path, epochs=2, learning_rate=1e-2)
    # A Trainer of the user's own would take DeepSpeed for it.
    assert {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE")} == before
    # Held in bf16 it would stand still at a fourth.
    assert float(trained.model.scale) != 1 and float(trained.model.passes) == 8 / 1024
    assert choose(trained, tmp_path).spot.modules


def test_a_batch_of_one_record_under_batch_norms_is_refused_before_the_first_epoch(tmp_path: Path) -> None:
    model = kinds.Perceptron(nn.BatchNorm1d(16))
    before = {name: item.clone() for name, item in model.state_dict().items()}
    one_more = learner(model, train=kinds.part(kinds.NUMBERS, slice(33)))
    with pytest.raises(BadInput, match="micro-batch would be of one record"):
        fit(one_more, PLAIN, tmp_path / "run", epochs=1, learning_rate=1e-2)
    assert not (tmp_path / "run").exists()
    assert all(torch.equal(item, before[name]) for name, item in model.state_dict().items())
    fit(one_more, dataclasses.replace(PLAIN, effective_batch=11), tmp_path / "run", epochs=1, learning_rate=1e-2)


class LateInteraction(nn.Module):
    """A loss over all pairs of a batch: its memory grows with the square of the records."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 8)

    def forward(self, states_BSD: Tensor) -> Tensor:
        states_BSD = self.map(states_BSD)
        return torch.einsum("asd,btd->abst", states_BSD, states_BSD).amax(-1).mean(-1).logsumexp(-1)


def test_a_pass_whose_memory_is_not_affine_in_the_batch_is_traced_at_its_batch() -> None:
    states = [torch.randn(64, 32, 8)]
    trained = TensorLearner(LateInteraction(), lambda model, batch: model(*batch), train=states, validation=states)
    peaks = {}
    for size in (8, 16, 32):
        config = TrainConfig(strategy="plain", effective_batch=size, micro_batch=size)
        found = plan(trained, config, vram_bytes=80 << 30)
        peaks[size] = found.peak_bytes
    assert peaks[32] - peaks[16] > 3 * (peaks[16] - peaks[8])


def test_buffers_are_planned_on_the_card_the_host_and_the_disk() -> None:
    model = kinds.Perceptron()
    few = plan(learner(model), PLAIN, vram_bytes=8 << 30, epochs=4)
    model.register_buffer("bank", torch.zeros(1 << 28, device="meta"))
    many = plan(learner(model), PLAIN, vram_bytes=8 << 30, epochs=4)
    assert many.peak_bytes - few.peak_bytes == pytest.approx(1 << 30, rel=0.01)
    # Three states, four snapshots and one being written.
    assert many.disk_bytes - few.disk_bytes == 8 << 30


def test_attention_of_torch_s_own_modules_is_planned() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    states = [torch.randn(64, 4, 8)]
    trained = TensorLearner(layer, lambda model, batch: model(*batch).mean((1, 2)), train=states, validation=states)
    assert plan(trained, TrainConfig(effective_batch=8), vram_bytes=8 << 30).fits
