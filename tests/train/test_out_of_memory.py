"""Memory that runs out, with a stub of the allocator: what a failed try held is free before it is asked again."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from line import BATCH, STEPS_PER_EPOCH, Line, run
from torch import Tensor, nn

from redheart.core.errors import Diverged, DoesNotFit
from redheart.custom import TensorLearner
from redheart.snapshots.states import newest_state
from redheart.train import loop
from redheart.train.device.out_of_memory import in_parts, tried
from redheart.train.learner import Validation
from redheart.train.log.events import read_events


@dataclass
class Card:
    """A card on which a pass over more than `fits` records runs out of memory, after it has allocated something."""

    fits: int
    held: list[weakref.ref[Tensor]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    emptied: int = 0

    def use(self, records: int, *, in_a_cycle: bool = False) -> None:
        """What a pass over so many records allocates."""
        activations = torch.zeros(records, 4)
        if in_a_cycle:
            # As closures of a checkpointed block and their frames hold each other.
            activations.owner = [activations]  # type: ignore[attr-defined]
        self.sizes.append(records)
        self.held.append(weakref.ref(activations))
        if records > self.fits:
            raise torch.OutOfMemoryError("planted")

    def empty_cache(self) -> None:
        """Gives back what nobody holds; it must be everything by then."""
        assert not [item for item in self.held if item() is not None], "activations of the failed try are still held"
        self.emptied += 1


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    card = Card(fits=2)
    monkeypatch.setattr(torch.cuda, "empty_cache", card.empty_cache)
    # What the interpreter would find by itself sooner or later must not make a test pass.
    gc.disable()
    yield card
    gc.enable()


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_a_failed_try_holds_nothing_when_the_cache_is_emptied(card: Card, in_a_cycle: bool) -> None:
    assert tried(lambda: card.use(3, in_a_cycle=in_a_cycle)) is None
    assert card.emptied == 1
    assert tried(lambda: 5) == 5 and card.emptied == 1


def test_a_training_step_frees_what_the_failed_forward_held(card: Card, tmp_path: Path) -> None:
    class OnCard(nn.Module):
        def __init__(self, model: nn.Module):
            super().__init__()
            self.line = model

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = inputs * 2
            card.use(len(hidden))
            return self.line(inputs)  # type: ignore[no-any-return]

    learner = Line()
    learner.model["line"] = OnCard(learner.model["line"])  # type: ignore[index, operator]
    steps = run(tmp_path, learner, epochs=1)
    assert card.sizes == [8, 4, *[2] * 4 * STEPS_PER_EPOCH] and card.emptied == 2
    assert len(steps) == STEPS_PER_EPOCH


def test_batches_are_halved_where_one_does_not_fit_and_stay_in_order(
    card: Card, capfd: pytest.CaptureFixture[str]
) -> None:
    batches = [np.arange(0, 2), np.arange(2, 9), np.arange(9, 16)]

    def work(rows: np.ndarray) -> list[int]:
        card.use(len(rows))
        return rows.tolist()

    done = in_parts(batches, work)
    assert [row for part in done for row in part] == list(range(16))
    assert card.sizes == [2, 7, 3, 1, *[1] * 13] and card.emptied == 2
    assert capfd.readouterr().err.count("warning: out of device memory") == 2
    card.fits = 0
    with pytest.raises(DoesNotFit, match="one record") as refused:
        in_parts(batches, work)
    assert refused.value.exit_code == 3


def test_a_validation_that_does_not_fit_goes_on_in_smaller_batches(card: Card) -> None:
    def losses(module: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        card.use(len(batch[0]))
        return module(batch[0])[:, 0] ** 2  # type: ignore[no-any-return]

    torch.manual_seed(0)
    records = torch.randn(20, 3)
    model = nn.Sequential(nn.Linear(3, 1))
    learner = TensorLearner(model, losses, train=[records], validation=[records], modules=["0"], micro_batch=16)
    card.sizes.clear()
    found = learner.validate(model)
    assert card.sizes == [16, 8, 4, *[2] * 10]
    card.fits = 16
    whole = learner.validate(model)
    # A matrix of another height is multiplied in another order.
    assert np.allclose(found.outputs["loss"], whole.outputs["loss"], rtol=1e-5)


class Validated(Line):
    """A learner whose validation ends as it is told to; it counts what is asked of it."""

    def __init__(self, error: BaseException | None):
        super().__init__()
        self.error, self.losses = error, 0

    def loss(self, *given: object, **named: object) -> object:  # type: ignore[override]
        self.losses += 1
        return super().loss(*given, **named)  # type: ignore[arg-type]

    def validate(self, module: nn.Module) -> Validation:
        if self.error is not None:
            raise self.error
        return super().validate(module)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (torch.OutOfMemoryError("planted"), DoesNotFit),
        (DoesNotFit("planted"), DoesNotFit),
        (OSError(5, "planted"), OSError),
        (IndexError("planted"), IndexError),
    ],
)
def test_a_failed_validation_loses_no_epoch(error: BaseException, raised: type[BaseException], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole, Line(), state_every_steps=0)
    with pytest.raises(raised):
        run(broken, Validated(error), state_every_steps=0)
    state = newest_state(broken / "states")
    assert state is not None
    assert (state.manifest.progress.epoch, state.manifest.progress.step_in_epoch) == (0, STEPS_PER_EPOCH)
    assert not read_events(broken / "events.jsonl", "epoch")
    again = Validated(None)
    run(broken, again, state_every_steps=0)
    # Straight to the validation: no step of the first epoch is done again, and the end is the unbroken run's.
    assert again.losses == STEPS_PER_EPOCH
    for item in sorted(item.relative_to(whole) for item in whole.rglob("*.safetensors")):
        assert (broken / item).read_bytes() == (whole / item).read_bytes()
    assert [event["val_loss"] for event in read_events(broken / "events.jsonl", "epoch")] == [0.0, 0.0]


@pytest.mark.parametrize("error", [Diverged("planted"), KeyboardInterrupt()])
def test_what_no_other_try_mends_writes_no_state(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        run(tmp_path, Validated(error), state_every_steps=0)
    assert newest_state(tmp_path / "states") is None


def test_out_of_memory_in_the_optimizer_or_at_the_start_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("planted")

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", fail)
        with pytest.raises(DoesNotFit, match=f"optimizer of step 1\n  got:      micro-batch {BATCH}"):
            run(tmp_path / "step", Line())
    monkeypatch.setattr(loop, "start_engine", fail)
    with pytest.raises(DoesNotFit, match="the start"):
        run(tmp_path / "start", Line())
