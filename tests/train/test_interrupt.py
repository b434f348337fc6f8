"""Being asked to stop, before and inside of training."""

import os
import signal

import pytest

from redheart.train import interrupt
from redheart.train.interrupt import StopRequest, raise_interrupt


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
