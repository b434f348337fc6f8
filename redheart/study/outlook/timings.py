"""How long a step takes on this machine: kept from runs, so that a plan can say hours that were measured.

The figures lie in one file of the user's cache, or where `REDHEART_STEP_TIMES` says, and beside it what the host was
measured to do. Nothing here is extrapolated to another device, preset or strategy.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import msgspec

from redheart.core.cache import cache_folder
from redheart.core.config import StudyConfig
from redheart.core.errors import BadInput, DiskError
from redheart.core.files import read_json, write_json
from redheart.memory.cards import Card, known
from redheart.memory.step_time import HostSpeed
from redheart.train.device.compute_type import type_name
from redheart.train.log.pace import CHECK_STEPS, Expected
from redheart.train.settings import Chosen

T = TypeVar("T")
HOST_FILE = "host_speed.json"
CORES = " cores"
"""How the name of a processor ends, and no card's."""
MIN_STEPS = 3
"""Steps that a figure needs; the first one of a run is never counted, it warms up caches and compiles."""


class MeasuredStep(msgspec.Struct, frozen=True):
    """A measured optimizer step, taken apart into what grows with the batch and what does not."""

    device: str
    preset: str
    strategy: str
    compute_type: str
    checkpointing: bool
    seq_len_tokens: int
    ranks: int
    micro_batch: int
    pass_s_per_record: float
    """Forward and backward, seconds a record of `seq_len_tokens` tokens over all ranks."""
    update_s: float
    """Clipping, optimizer and the weights' way back."""
    epoch_end_s_per_record: float | None = None
    """Validation, snapshot and state at the end of an epoch, seconds a validation record; None where unknown."""
    card_share: float = 0.0
    pipeline: bool = False
    graphs: bool = False

    @property
    def setting(self) -> tuple[object, ...]:
        """All but length and micro-batch that a figure is of, on its device."""
        names = ("preset", "strategy", "checkpointing", "ranks", "card_share", "pipeline", "graphs")
        return tuple(getattr(self, name) for name in names)

    def step_s(self, *, effective_batch: int, seq_len_tokens: int) -> float:
        """Seconds of a step; the pass is taken as proportional to the number of tokens."""
        return self.pass_s_per_record * effective_batch * seq_len_tokens / self.seq_len_tokens + self.update_s


def this_device() -> str:
    """The name under which this machine's figures are kept: the card's, or the processor's with its cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'CPU'}, {os.cpu_count()}{CORES}"


def measured_step(
    config: StudyConfig,
    steps: Sequence[Mapping[str, object]],
    *,
    ranks: int,
    epoch_end_s: float | None = None,
    num_validation: int = 1,
) -> MeasuredStep | None:
    """The median step of a run's `step` events, None where there are too few.

    `epoch_end_s` is what the end of an epoch took, with that many validation records.
    """
    warm = steps[1:]
    if len(warm) < MIN_STEPS:
        return None
    passes = [float(str(event["forward_backward_s"])) for event in warm]
    updates = [float(str(event["step_s"])) - passing for event, passing in zip(warm, passes, strict=True)]
    return MeasuredStep(
        this_device(),
        config.preset,
        config.train.strategy,
        type_name(config.train),
        config.train.checkpointing,
        config.features.seq_len_tokens,
        ranks,
        config.train.micro_batch,
        median(passes) / config.train.effective_batch,
        median(updates),
        None if epoch_end_s is None else epoch_end_s / num_validation,
        config.train.card_share,
        config.train.pipeline,
        config.train.graphs,
    )


def remember(found: MeasuredStep) -> None:
    """Keep a figure in place of an older one of the same setting.

    A cache that cannot be written leaves times unknown and nothing else.
    """

    def place(item: MeasuredStep) -> tuple[object, ...]:
        return item.device, item.compute_type, item.seq_len_tokens, item.micro_batch, *item.setting

    kept = [item for item in _kept() if place(item) != place(found)]
    if path := _path():
        with suppress(BadInput, DiskError):
            write_json(path, [*kept, found])


class Remembering:
    """A sink that keeps a run's step time after `CHECK_STEPS` steps, since it may be killed, and at its end."""

    wants_past = False

    def __init__(self, config: StudyConfig, *, ranks: int, num_validation: int):
        self._config, self._ranks, self._num_validation = config, ranks, num_validation
        self._steps: list[Mapping[str, object]] = []
        self._has_halved = False

    def write(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "out_of_memory" or (
            event["event"] == "start" and event["micro_batch"] != self._config.train.micro_batch
        ):
            # From here on, or since before a resume, it is no longer this configuration's micro-batch.
            self._has_halved = True
        elif event["event"] == "step":
            self._steps.append(event)
        is_enough = event["event"] == "step" and len(self._steps) == 1 + CHECK_STEPS
        if not self._has_halved and (is_enough or event["event"] == "end"):
            found = measured_step(
                self._config,
                self._steps,
                ranks=self._ranks,
                epoch_end_s=event.get("epoch_end_s"),
                num_validation=self._num_validation,
            )
            if found:
                remember(found)

    def close(self, *, exit_code: int) -> None:
        """Nothing is open."""


def recall(config: StudyConfig, *, ranks: int, card: Card | None = None) -> MeasuredStep | None:
    """The figure nearest in micro-batch and length, for exactly this preset, strategy, type and switches.

    It is of this machine, or of a card by its name in the table. A card's is of this micro-batch: what it waits for
    comes with every one, whatever its size.
    """
    train, length = config.train, config.features.seq_len_tokens
    switches = train.card_share, train.pipeline, train.graphs
    wanted = (config.preset, train.strategy, train.checkpointing, ranks, *switches)
    same = [item for item in _kept() if item.setting == wanted]
    if card:
        # A card computes in the strategy's type.
        same = [i for i in same if known(i.device) == card]
    else:
        same = [i for i in same if (i.device, i.compute_type) == (this_device(), type_name(train))]
    same = [i for i in same if i.device.endswith(CORES) or i.micro_batch == train.micro_batch]
    return min(
        same, key=lambda i: (abs(i.micro_batch - train.micro_batch), abs(i.seq_len_tokens - length)), default=None
    )


def expected(config: StudyConfig, chosen: Chosen | None, *, ranks: int, num_validation: int) -> Expected | None:
    """What a run is expected to take: by earlier runs here, else by the simulation of the card that is here."""
    found = recall(config, ranks=ranks)
    if found is None:
        if chosen is None or chosen.predicted_step_s is None:
            return None
        return Expected(chosen.predicted_step_s, None, f"simulated, {chosen.constants}")
    step_s = found.step_s(effective_batch=config.train.effective_batch, seq_len_tokens=config.features.seq_len_tokens)
    end_s = None if found.epoch_end_s_per_record is None else found.epoch_end_s_per_record * num_validation
    return Expected(step_s, end_s, "measured on this machine before")


def remember_host(found: HostSpeed) -> Path | None:
    """Keep what this host was measured to do; where, None where nothing can be kept. Raises as `write_json`."""
    path = _path(HOST_FILE)
    if path:
        write_json(path, found)
    return path


def recall_host() -> HostSpeed | None:
    """What this host was measured to do."""
    return _read(_path(HOST_FILE), HostSpeed)


def _path(beside: str = "") -> Path | None:
    """The file of the figures, or one beside it; None where this user has neither a cache nor a home."""
    named, folder = os.environ.get("REDHEART_STEP_TIMES"), cache_folder()
    path = Path(named) if named else folder and folder / "step_times.json"
    return path.with_name(beside) if path and beside else path


def _kept() -> list[MeasuredStep]:
    return _read(_path(), list[MeasuredStep]) or []


def _read(path: Path | None, kind: type[T]) -> T | None:
    try:
        return read_json(path, kind) if path else None
    except BadInput:
        # Not there, not readable, or written by another version: what is measured next is written anew.
        return None
