"""What training says when it is over."""

from redheart.train.progress import best_epoch_text


def test_a_run_that_overfits_is_told_so() -> None:
    epochs = [{"epoch": n, "val_loss": loss} for n, loss in enumerate((0.60, 0.58, 0.59, 0.61), start=1)]
    assert best_epoch_text(epochs) == (
        "validation loss 0.5800 after epoch 2 of 4; +5.2% since then: it overfits, try a larger --train.weight-decay"
    )
    assert best_epoch_text(epochs[:2]) == "validation loss 0.5800 after epoch 2 of 2"
