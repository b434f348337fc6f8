"""The training loop: epochs of optimizer steps, validation, snapshots and states, from wherever it stopped."""

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput, Diverged, DoesNotFit, Interrupted, RedHeartError
from redheart.data.loader import effective_batches, micro_batches, split
from redheart.snapshots.compress import compress_snapshots
from redheart.snapshots.module_snapshots import write_snapshot
from redheart.snapshots.states import Progress, newest_state, write_state
from redheart.train.background import BackgroundWriter, copies_fit
from redheart.train.engine import Engine, start_engine
from redheart.train.events import EventLog
from redheart.train.interrupt import StopRequest
from redheart.train.learner import Learner, Validation
from redheart.train.progress import ProgressDisplay
from redheart.train.schedule import cycle_position, learning_rate

MAX_BAD_STEPS = 3


@dataclass(frozen=True)
class RunSettings:
    """What decides the result of one training run, beside its learner."""

    train: TrainConfig
    epochs: int
    peak_learning_rate: float
    key: str
    """Digest of the data, model and settings; a state of another key is refused."""
    snapshots: bool = True
    max_steps: int | None = None
    """Stop after this many optimizer steps; for measurements."""


def train(learner: Learner, settings: RunSettings, *, folder: Path, show_progress: bool = False) -> None:
    """Train to the end, or from the newest state in `folder` to the end.

    Writes `folder/events.jsonl`, `folder/states/` and `folder/snapshots/`.

    Raises:
        Diverged: the loss or gradient was not finite three steps in a row; the last state is intact.
        Interrupted: SIGTERM or Ctrl-C; the step was finished and a state written.
        DiskError: a state or snapshot could not be written; the older ones are intact.
    """
    engine = start_engine(learner.model, settings.train)
    with (
        StopRequest() as stop,
        ProgressDisplay(shown=show_progress and engine.rank == 0) as display,
        BackgroundWriter() as writer,
    ):
        run = _Run(learner, settings, engine, folder, writer)
        while run.epoch < settings.epochs and not run.is_at_step_limit():
            steps = run.epoch_steps()
            display.start_epoch(run.epoch + 1, settings.epochs, len(steps), done=run.step_in_epoch)
            for step_rows in steps[run.step_in_epoch :]:
                loss = run.optimizer_step(step_rows)
                display.step(loss)
                if run.is_on_any_rank(stop.pending):
                    run.save_state()
                    writer.wait()
                    raise Interrupted(
                        "stopped on request; nothing is lost",
                        where=f"step {run.step}, epoch {run.epoch + 1}",
                        mend="run the same command again to go on",
                    )
                if settings.train.state_every_steps and run.step % settings.train.state_every_steps == 0:
                    run.save_state()
                if run.is_at_step_limit():
                    break
            else:
                display.end_epoch(run.end_epoch())
        writer.wait()
        if settings.snapshots and settings.train.compress_snapshots and engine.rank == 0:
            # What a kill after the last state left to do.
            _compress(folder / "snapshots")
        run.log.close()


class _Run:
    """Where a run stands: counters, the running sums of the epoch, the engine and the log."""

    def __init__(self, learner: Learner, settings: RunSettings, engine: Engine, folder: Path, writer: BackgroundWriter):
        self.learner, self.settings, self.engine = learner, settings, engine
        self.folder, self.writer = folder, writer
        self.epoch = self.step_in_epoch = self.step = self.bad_steps = 0
        self.micro_batch = settings.train.micro_batch
        self.sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}
        self._grad_norm: float | None = None
        events_bytes = self._resume()
        self.log = EventLog(folder / "events.jsonl" if engine.rank == 0 else None, length_bytes=events_bytes)
        self._epoch_start_s = time.perf_counter()
        self._epoch_records = 0
        self._host_memory_logged = False

    def _resume(self) -> int:
        state = newest_state(self.folder / "states")
        if state is None:
            return 0
        manifest = state.manifest
        if self.engine.rank == 0:
            for error in state.refused:
                print(
                    f"warning: a damaged resume state is passed over; going on from {state.folder.name}, which leads "
                    f"to the same result\n  {error}",
                    file=sys.stderr,
                    flush=True,
                )
        if manifest.run_key != self.settings.key:
            raise BadInput(
                "the folder holds another run",
                where=state.folder,
                got=f"run {manifest.run_key}",
                expected=f"run {self.settings.key}",
                mend="choose another --out, or resume with the settings that the run was started with",
            )
        self.engine.load_state_tensors(state.ranks)
        progress = manifest.progress
        self.epoch, self.step_in_epoch, self.step = progress.epoch, progress.step_in_epoch, progress.step
        self.sums, self.counts, self.bad_steps = dict(progress.sums), dict(progress.counts), progress.bad_steps
        self._grad_norm = progress.grad_norm
        return progress.events_bytes

    def is_at_step_limit(self) -> bool:
        """Whether the number of steps asked for is reached."""
        return self.settings.max_steps is not None and self.step >= self.settings.max_steps

    def is_on_any_rank(self, wanted: bool) -> bool:
        """Whether any rank wants this: a signal reaches them in different steps, and they must stop in the same."""
        if self.engine.world_size == 1:
            return wanted
        return float(self.engine.sum_over_ranks(torch.tensor(float(wanted), dtype=torch.float64))) > 0

    def epoch_steps(self) -> list[np.ndarray]:
        """The rows of every optimizer step of the current epoch."""
        order = self.learner.epoch_rows(self.epoch)
        return effective_batches(order, effective_batch=self.settings.train.effective_batch)

    def optimizer_step(self, step_rows: np.ndarray) -> float:
        """One step on an effective batch; its loss."""
        start_s = time.perf_counter()
        engine = self.engine
        pending = micro_batches(step_rows, micro_batch=self.micro_batch, rank=engine.rank, world_size=engine.world_size)
        total = torch.zeros((), dtype=torch.float64)
        sums: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        self.learner.model.train()
        while pending:
            try:
                loss = self.learner.loss(engine.module, pending[0], step_rows=step_rows)
            except torch.OutOfMemoryError:
                self._halve_micro_batch()
                # What is accumulated stays: a forward pass that failed has added nothing.
                pending = split(pending, self.micro_batch)
                continue
            pending = pending[1:]
            self._backward(loss.total, last=not pending)
            total += loss.total.detach().double().cpu()
            _add(sums, loss.sums)
            _add(counts, loss.counts)
        forward_backward_s = time.perf_counter() - start_s
        rate = self._learning_rate(self.step)
        result = engine.step(rate)
        total = engine.sum_over_ranks(total)
        self._count(_over_ranks(engine, sums), _over_ranks(engine, counts), float(total), applied=result.applied)
        self.step += 1
        self.step_in_epoch += 1
        self._epoch_records += len(step_rows)
        self._grad_norm = _finite(result.grad_norm)
        self.log.write(
            "step",
            epoch=self.epoch + 1,
            step=self.step,
            loss=_finite(float(total)),
            grad_norm=self._grad_norm,
            learning_rate=rate,
            applied=result.applied,
            forward_backward_s=round(forward_backward_s, 4),
            step_s=round(time.perf_counter() - start_s, 4),
        )
        if not self._host_memory_logged:
            self._host_memory_logged = True
            self.log.write("host_memory", step=self.step, optimizer_bytes=engine.host_bytes())
        return float(total)

    def _backward(self, loss: Tensor, *, last: bool) -> None:
        try:
            self.engine.backward(loss, last=last)
        except torch.OutOfMemoryError as error:
            # Some gradients of this micro-batch are in the sum and some are not.
            raise self._out_of_memory("backward") from error

    def _halve_micro_batch(self) -> None:
        if self.micro_batch == 1 or self.engine.world_size > 1:
            # Ranks must take the same number of micro-batches.
            raise self._out_of_memory("forward")
        self.micro_batch //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.log.write("out_of_memory", step=self.step, micro_batch=self.micro_batch)
        print(
            f"warning: out of device memory; going on with micro-batch {self.micro_batch}, the effective batch stays",
            file=sys.stderr,
            flush=True,
        )

    def _out_of_memory(self, where: str) -> DoesNotFit:
        smaller = max(1, self.micro_batch // 2)
        return DoesNotFit(
            "out of device memory",
            where=f"{where} pass of step {self.step + 1}",
            got=f"micro-batch {self.micro_batch} on {self.engine.world_size} ranks",
            mend=f"run the same command again with --train.micro-batch {smaller} or --train.checkpointing True; "
            "it goes on from the last state",
        )

    def _count(self, sums: dict[str, float], counts: dict[str, float], loss: float, *, applied: bool) -> None:
        if applied and math.isfinite(loss):
            self.bad_steps = 0
            for name, value in sums.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0.0) + counts[name]
            return
        self.bad_steps += 1
        if self.bad_steps >= MAX_BAD_STEPS:
            raise self._diverged(f"the loss or its gradient was not finite {MAX_BAD_STEPS} steps in a row")

    def _diverged(self, what: str) -> Diverged:
        return Diverged(
            what,
            where=f"epoch {self.epoch + 1}, step {self.step + 1}",
            mend="lower --train.learning-rate; the states from before are intact",
        )

    def _learning_rate(self, step: int) -> float:
        train = self.settings.train
        return learning_rate(
            step,
            peak=self.settings.peak_learning_rate,
            eta_min=train.eta_min,
            first_cycle_steps=train.cycle_epochs * len(self.epoch_steps()),
            growth=train.cycle_growth,
        )

    def end_epoch(self) -> Validation | None:
        """Validate, write the snapshot, the epoch's event and a state; count the epoch."""
        if not self.sums:
            raise self._diverged("no step of the epoch had a finite loss and gradient")
        seconds = time.perf_counter() - self._epoch_start_s
        steps_per_epoch = len(self.epoch_steps())
        rate = self._learning_rate(self.step - 1)
        self.epoch += 1
        self.step_in_epoch = 0
        position = cycle_position(
            self.step - 1,
            first_cycle_steps=self.settings.train.cycle_epochs * steps_per_epoch,
            growth=self.settings.train.cycle_growth,
        ).fraction
        validation = write_snapshot_first = None
        if self.engine.rank == 0:
            self.learner.model.eval()
            validation = self.learner.validate(self.learner.model)
            if not math.isfinite(validation.loss):
                raise self._diverged(f"the validation loss is {validation.loss}")
            is_snapshot = self.settings.snapshots and (
                self.epoch % self.settings.train.snapshot_every == 0 or self.epoch == self.settings.epochs
            )
            train_loss, train_task_losses = self.learner.mean_losses(self.sums, self.counts)
            train_module_losses = {name: self.sums[name] / max(1.0, self.counts[name]) for name in self.sums}
            if is_snapshot:
                write_snapshot_first = self._snapshot(validation, position, train_module_losses)
            self.log.write(
                "epoch",
                epoch=self.epoch,
                step=self.step,
                train_loss=train_loss,
                val_loss=validation.loss,
                train_task_loss=train_task_losses,
                val_task_loss=validation.task_losses,
                train_module_loss=train_module_losses,
                val_module_loss=validation.module_losses,
                val_metrics=validation.metrics,
                grad_norm=self._grad_norm,
                learning_rate=rate,
                cycle_position=position,
                snapshot=is_snapshot,
                samples_per_s=round(self._epoch_records / seconds, 2),
                epoch_s=round(seconds, 2),
                host_rss_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                device_peak_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            )
        self.sums, self.counts = {}, {}
        self.save_state(after=write_snapshot_first)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._epoch_start_s, self._epoch_records = time.perf_counter(), 0
        return validation

    def _snapshot(
        self, validation: Validation, position: float, train_module_losses: dict[str, float]
    ) -> Callable[[], object]:
        """The write of the epoch's snapshot, on copies that training does not change."""
        weights = self.learner.model.state_dict()
        modules = {
            name: {
                key.removeprefix(f"{name}."): tensor.to("cpu", torch.bfloat16, copy=True)
                for key, tensor in weights.items()
                if key.startswith(f"{name}.")
            }
            for name in self.learner.modules()
        }
        return partial(
            write_snapshot,
            self.folder / "snapshots",
            modules=modules,
            outputs={name: torch.from_numpy(values) for name, values in validation.outputs.items()},
            epoch=self.epoch,
            step=self.step,
            cycle_position=position,
            val_loss=validation.loss,
            val_module_loss=validation.module_losses,
            train_module_loss=train_module_losses,
        )

    def save_state(self, *, after: Callable[[], object] | None = None) -> None:
        """Write a resume state, beside the next steps where there is memory for a copy; all ranks together.

        `after` is written before it: a state that counts an epoch must not be there without the epoch's snapshot.
        """
        self.writer.wait()
        tensors = dict(self.engine.state_tensors())
        # Ranks wait for each other while they write, which a thread must not do while another trains.
        is_beside = self.engine.world_size == 1 and copies_fit(tensors)
        if is_beside:
            tensors = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        progress = Progress(
            epoch=self.epoch,
            step_in_epoch=self.step_in_epoch,
            step=self.step,
            sums=dict(self.sums),
            counts=dict(self.counts),
            bad_steps=self.bad_steps,
            grad_norm=self._grad_norm,
            events_bytes=self.log.length_bytes,
        )

        def write() -> None:
            if after:
                after()
            self.log.to_disk()
            write_state(
                self.folder / "states",
                tensors=tensors,
                progress=progress,
                run_key=self.settings.key,
                rank=self.engine.rank,
                world_size=self.engine.world_size,
                barrier=self.engine.barrier,
                parameters=self.engine.places,
            )

        if is_beside:
            self.writer.submit(write)
        else:
            write()
        if after and self.settings.train.compress_snapshots:
            self.writer.add(partial(_compress, self.folder / "snapshots"))


def _compress(snapshots: Path) -> None:
    try:
        compress_snapshots(snapshots, wait=True)
    except RedHeartError as error:
        # It saves space and nothing else; a run is not ended for it.
        print(f"warning: snapshots stay uncompressed: {error}", file=sys.stderr, flush=True)


def _add(totals: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        totals[name] = totals[name] + value if name in totals else value


def _over_ranks(engine: Engine, values: dict[str, Tensor]) -> dict[str, float]:
    stacked = engine.sum_over_ranks(torch.stack(list(values.values())).double().cpu())
    return dict(zip(values, stacked.tolist(), strict=True))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
