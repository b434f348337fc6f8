"""What training says when it is over."""

from redheart.train.progress import overfit_text


def test_a_run_that_overfits_is_told_so() -> None:
    epochs = [{"epoch": n, "val_loss": loss} for n, loss in enumerate((0.60, 0.58, 0.59, 0.61), start=1)]
    assert overfit_text(epochs) == (
        "the validation loss was 0.5800 after epoch 2 of 4 and is 5.2% higher now; try a larger --train.weight-decay"
    )
    assert overfit_text(epochs[:2]) is None
