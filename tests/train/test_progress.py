"""What training says when it is over."""

import io

import pytest
from rich.console import Console

from redheart.train.learner import Validation
from redheart.train.log.progress import ProgressDisplay, overfit_text


def test_a_run_that_overfits_is_told_so() -> None:
    epochs = [{"epoch": n, "val_loss": loss} for n, loss in enumerate((0.60, 0.58, 0.59, 0.61), start=1)]
    assert overfit_text(epochs) == (
        "the validation loss was 0.5800 after epoch 2 of 4 and is 5.2% higher now; try a larger --train.weight-decay"
    )
    assert overfit_text(epochs[:2]) is None


@pytest.mark.parametrize("name", ["[/red]", "[bold]x[/]", ":smile:"])
def test_what_looks_like_markup_is_printed_as_it_is(name: str) -> None:
    display = ProgressDisplay(shown=True)
    assert display._progress is not None
    file = io.StringIO()
    display._progress.live.console = Console(file=file, width=120)
    display.note("wandb", f"offline in {name}")
    display.end_epoch(Validation(0.5, {}, {}, {name: 0.25}, {}))
    assert f"offline in {name}\n" in file.getvalue() and f"{name} 0.2500" in file.getvalue()
