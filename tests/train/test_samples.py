"""Samples of memory and load beside a run, with NVML, without it, and with one that fails."""

import sys
import time
import types
from pathlib import Path

import pytest
import torch

from redheart.train.log.events import watched_events
from redheart.train.log.samples import device_probe, sampling


def test_a_sample_at_the_start_in_between_and_at_the_end(tmp_path: Path) -> None:
    path, steps = tmp_path / "samples.jsonl", [0]
    with sampling(path, every_s=0.02, step=lambda: steps[0]):
        deadline = time.monotonic() + 20
        while len(watched_events(path)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        steps[0] = 7
    samples = watched_events(path)
    assert len(samples) >= 4 and [samples[0]["step"], samples[-1]["step"]] == [0, 7]
    assert 1 << 20 < samples[-1]["host_rss_bytes"] < samples[-1]["host_available_bytes"] * 1000
    assert "device_used_bytes" not in samples[-1] or torch.cuda.is_available()


def test_none_are_taken_where_none_are_wanted_and_a_lost_folder_ends_nothing(tmp_path: Path) -> None:
    with sampling(tmp_path / "samples.jsonl", every_s=0.0, step=lambda: 0):
        pass
    assert not list(tmp_path.iterdir())
    with sampling(tmp_path / "none" / "samples.jsonl", every_s=1.0, step=lambda: 0):
        pass


class Nvml(types.ModuleType):
    """NVML as pynvml shows it."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, fails_at: str | None = None):
        super().__init__("pynvml")
        self.fails_at = fails_at
        self.asked: list[str] = []

    def _answer(self, name: str, value: object = None) -> object:
        self.asked.append(name)
        if name == self.fails_at:
            raise self.NVMLError(name)
        return value

    def nvmlInit(self) -> None:
        self._answer("init")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> object:
        return self._answer("handle", uuid)

    def nvmlDeviceGetMemoryInfo(self, card: str) -> object:
        return self._answer("memory", types.SimpleNamespace(used=5, total=8))

    def nvmlDeviceGetUtilizationRates(self, card: str) -> object:
        return self._answer("load", types.SimpleNamespace(gpu=97))


@pytest.fixture
def a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: types.SimpleNamespace(uuid="1-2"))


def test_a_card_is_asked_by_its_uuid(a_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    assert device_probe()() == {"device_used_bytes": 5, "device_total_bytes": 8, "device_busy_percent": 97}


@pytest.mark.parametrize("call", ["init", "handle", "memory", "load"])
def test_an_nvml_that_fails_costs_its_figures_and_nothing_else(
    call: str, a_card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(fails_at=call))
    assert device_probe()() == {}


def test_no_pynvml_no_figures(a_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert device_probe()() == {}


def test_the_real_nvml_does_not_know_a_made_up_card_and_says_so_quietly(a_card: None) -> None:
    assert device_probe()() == {}
