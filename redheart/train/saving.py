"""Saving beside training, on copies, where there is memory for them, in line where there is not; and going on."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace
from torch import Tensor, nn

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput, RedHeartError
from redheart.core.folders import remove_leftovers
from redheart.core.progress import note, warn
from redheart.memory.host import host_memory
from redheart.snapshots.compress import compress_snapshots
from redheart.snapshots.manifests import Progress, snapshot_folders
from redheart.snapshots.module_snapshots import check_modules, open_snapshot
from redheart.snapshots.states import newest_state, remove_newer, write_state
from redheart.train.counting import AT_START
from redheart.train.device.compute_type import NAMES
from redheart.train.engine import Engine
from redheart.train.log.events import Event, EventLog, events_behind, events_up_to

ROOM_FOR_COPIES = 3
"""Saving goes on beside training where this many times the copies' size is free, so that it never takes the last of a
machine's memory; what was planned for the run is held by then."""


class BackgroundWriter:
    """Runs writes in a thread, in the order in which they came; behind one that failed none is begun.

    So what a later write counts on is there when it is. An error of a write is raised by the next `wait` or `is_idle`,
    or at the end of the block; where the block ends with an error of its own, a warning tells of the write's.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._pending: deque[tuple[Future[object], bool]] = deque()
        self._has_failed = False

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._thread.shutdown(wait=True)
        try:
            self.wait()
        except RedHeartError as failed:
            if error is None:
                raise
            warn(str(failed))

    def submit(self, write: Callable[[], object], *, holds_copies: bool = True) -> None:
        """Write behind what was submitted before, without waiting for it."""
        self._pending.append((self._thread.submit(self._run, write), holds_copies))

    def is_idle(self) -> bool:
        while self._pending and self._pending[0][0].done():
            self._pending.popleft()[0].result()
        return not self._pending

    def num_copies(self) -> int:
        """Writes with copies that have not ended."""
        return sum(holds_copies and not future.done() for future, holds_copies in self._pending)

    def wait(self, *, copies: int | None = None) -> None:
        """Return when everything is written, or when no more than so many copies are held.

        Raises:
            DiskError: a write failed.
        """
        while self._pending and (copies is None or self.num_copies() > copies):
            self._pending.popleft()[0].result()

    def _run(self, write: Callable[[], object]) -> None:
        if self._has_failed:
            return
        try:
            write()
        except BaseException:
            self._has_failed = True
            raise


class Saver:
    """Writes what a run keeps, beside its steps where there is memory for copies, and knows when a state is due."""

    def __init__(
        self,
        engine: Engine,
        writer: BackgroundWriter,
        *,
        folder: Path,
        train: TrainConfig,
        clock_s: Callable[[], float] = time.monotonic,
    ):
        self._engine, self._writer, self._folder = engine, writer, folder
        self._every_steps, self._every_s = train.state_every_steps, 60 * train.state_every_minutes
        self._clock_s = clock_s
        self._saved_s = clock_s()

    def is_due(self, step: int) -> bool:
        """Whether a state is to be written behind this step: by its number, or by the first rank's clock.

        By the clock it is put off while something is being written, but not for longer than it was waited for.

        Raises:
            DiskError: a write has failed.
        """
        is_idle = self._writer.is_idle()
        if self._every_steps and step % self._every_steps == 0:
            return True
        if not self._every_s or self._engine.rank != 0:
            return False
        waited_s = self._clock_s() - self._saved_s
        return waited_s >= (self._every_s if is_idle else 2 * self._every_s)

    def save_state(self, progress: Progress, *, run_key: str, log: EventLog) -> None:
        """Write a resume state; all ranks together. What was submitted before it is there when the state is."""
        engine, tensors = self._engine, dict(self._engine.state_tensors())
        # Ranks wait for each other while they write, which a thread must not do while another trains.
        is_beside = engine.world_size == 1 and self._has_room(tensors)
        if is_beside:
            tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        progress = replace(progress, events_bytes=log.length_bytes)

        def write() -> None:
            log.to_disk()
            write_state(
                self._folder / "states",
                tensors=tensors,
                progress=progress,
                run_key=run_key,
                rank=engine.rank,
                world_size=engine.world_size,
                barrier=engine.barrier,
                parameters=engine.places,
            )

        self._saved_s = self._clock_s()
        self._write(write, is_beside=is_beside)

    def save_snapshot(self, model: nn.Module, snapshot: Callable[[], Callable[[], object]], *, compress: bool) -> None:
        """Write the snapshot of an epoch: `snapshot` copies the model and gives the write; then compress the others.

        Where another one is still being written it waits behind it; a third waits for the first.
        """
        is_beside = self._has_room(dict(model.named_parameters()))
        self._write(snapshot(), is_beside=is_beside)
        if compress:
            self._writer.submit(lambda: compress_or_warn(self._folder / "snapshots"), holds_copies=False)

    def _has_room(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether there is memory to copy these, once there is no more than one copy that waits to be written."""
        self._writer.wait(copies=1)
        if not copies_fit(tensors):
            self._writer.wait()
        return copies_fit(tensors)

    def _write(self, write: Callable[[], object], *, is_beside: bool) -> None:
        if is_beside:
            self._writer.submit(write)
        else:
            self._writer.wait()
            write()


def resume(engine: Engine, *, root: Path, run_key: str, modules: Sequence[str]) -> tuple[Progress, list[Event]]:
    """Load the newest state below `root` into the engine; how far it had come, and on the first rank its events.

    Newer states that are damaged are removed once this one is loaded, and so is what a killed run left unfinished.

    Raises:
        BadInput: it belongs to another run, or the snapshots beside it are of other modules.
        CorruptFile: there are states, and none can be read; or what it knows of the event log was changed.
        DiskError: the folder cannot be written to.
    """
    if engine.rank == 0:
        remove_leftovers(root)
    engine.barrier()
    state = newest_state(root)
    if state is None:
        if engine.rank == 0 and snapshot_folders(root.parent / "snapshots"):
            # Of a run that was killed before its first state: a choice would read them beside this one's.
            keys = [event.get("key") for event in events_behind(root.parent / "events.jsonl") if "key" in event]
            if keys and keys[-1] != run_key:
                raise _another_run(root.parent, keys[-1], run_key)
            _check_modules(root.parent / "snapshots", modules)
        return AT_START, []
    manifest = state.manifest
    if manifest.run_key != run_key:
        raise _another_run(state.folder, manifest.run_key, run_key)
    events: list[Event] = []
    if engine.rank == 0:
        for error in state.refused:
            warn(
                f"a damaged resume state is passed over; going on from {state.folder.name}, which leads to the same "
                f"result\n  {error}"
            )
        _check_modules(root.parent / "snapshots", modules)
        events = events_up_to(root.parent / "events.jsonl", manifest.progress.events_bytes)
        _say_if_type_changed(engine, events)
    engine.load_state_tensors(state.ranks)
    # Then every rank has read what is removed below.
    engine.barrier()
    if engine.rank == 0:
        # They know of a longer log than this state, and the log is about to be cut.
        remove_newer(state.folder)
    return manifest.progress, events


def _check_modules(snapshots: Path, modules: Sequence[str]) -> None:
    newest = None
    # A broken manifest of old must not end a run.
    with suppress(RedHeartError):
        newest = next((open_snapshot(folder) for folder in reversed(snapshot_folders(snapshots))), None)
    if newest:
        check_modules(newest, modules)


def _another_run(where: Path, got: object, expected: str) -> BadInput:
    return BadInput(
        "the folder holds another run",
        where=where,
        got=f"run {got}",
        expected=f"run {expected}",
        hint="choose another folder (--out), or go on with the data, weights and settings that it was started with",
    )


def _say_if_type_changed(engine: Engine, events: Sequence[Event]) -> None:
    """A state holds the same tensors whatever a run computes in, so that any machine may go on with it."""
    # Logs of old do not name the type.
    types = [event["compute_type"] for event in events if event["event"] == "start" and "compute_type" in event]
    now = NAMES[engine.dtype]
    if types and types[-1] != now:
        note(f"started in {types[-1]}, going on in {now}: the bits of an unbroken run are not promised")


def asked_for(train: TrainConfig) -> dict[str, object]:
    """The settings that decide what a micro-batch takes, as an event of running out of memory has them."""
    return {"configured": train.micro_batch, "checkpointing": train.checkpointing}


def halved_before(events: Sequence[Event], train: TrainConfig) -> int:
    """The micro-batch of a run, or the smaller one that memory had left it, with these settings, in these events."""
    halved = [
        event["micro_batch"]
        for event in events
        if event["event"] == "out_of_memory" and asked_for(train).items() <= event.items()
    ]
    if halved:
        note(f"memory had left this run a micro-batch of {halved[-1]}; another --train.micro-batch is tried anew")
    return halved[-1] if halved else train.micro_batch


def compress_or_warn(snapshots: Path) -> None:
    """Make differences of a run's snapshots. It saves space and nothing else; a run is not ended for it."""
    try:
        compress_snapshots(snapshots, wait=True)
    except (RedHeartError, OSError) as error:
        warn(f"snapshots stay uncompressed: {error}")


def copies_fit(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there is memory to copy these tensors and let training go on."""
    return ROOM_FOR_COPIES * sum(tensor.nbytes for tensor in tensors.values()) < host_memory().available_bytes
