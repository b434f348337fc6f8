"""Being asked to stop, before and inside of training."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import line
import pytest

from redheart.core.errors import Interrupted
from redheart.train import interrupt
from redheart.train.interrupt import StopRequest, raise_interrupt
from redheart.train.log.events import all_events


def test_a_signal_that_a_library_swallows_is_met_by_the_next_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "_raised", [])
    before = signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        with StopRequest() as stop:
            assert not stop.pending
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        with StopRequest() as stop:
            assert stop.pending
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_the_parent_ignores_stays_ignored_and_other_threads_have_none() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.pending
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.pending and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(_asked_to_stop).result() is False
    finally:
        signal.signal(signal.SIGINT, before)


def _asked_to_stop() -> bool:
    with StopRequest() as stop:
        return stop.pending


@pytest.mark.parametrize("moment", ["validate", "epoch_rows"])
def test_a_request_behind_the_last_step_is_for_what_comes_after_the_training(moment: str, tmp_path: Path) -> None:
    """It comes in the last validation, or when a complete run is started again."""
    learner = line.Line()
    if moment == "epoch_rows":
        line.run(tmp_path, learner, epochs=1)
    inner = getattr(learner, moment)

    def asked(argument: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return inner(argument)

    setattr(learner, moment, asked)
    with pytest.raises(Interrupted, match="the training is complete"):
        line.run(tmp_path, learner, epochs=1)
    setattr(learner, moment, inner)
    assert len(line.run(tmp_path, learner, epochs=1)) == line.STEPS_PER_EPOCH
    assert [event["event"] for event in all_events(tmp_path / "events.jsonl")][-1] == "end"
