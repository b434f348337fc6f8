"""The training loop: epochs of optimizer steps, validation, snapshots and states, from wherever it stopped."""

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from redheart.core.errors import BadInput, Diverged, DoesNotFit, Interrupted, RedHeartError
from redheart.data.loader import effective_batches, micro_batches, split
from redheart.snapshots.compress import compress_snapshots
from redheart.snapshots.module_snapshots import write_snapshot
from redheart.snapshots.states import Progress, newest_state
from redheart.train.background import BackgroundWriter
from redheart.train.engine import Engine, start_engine
from redheart.train.events import EventLog, EventSink
from redheart.train.interrupt import StopRequest
from redheart.train.learner import Learner, Validation
from redheart.train.pace import Pace
from redheart.train.progress import ProgressDisplay
from redheart.train.samples import sampling
from redheart.train.saving import module_copies, save_state
from redheart.train.schedule import cycle_position, learning_rate, ramped_rate
from redheart.train.settings import RunSettings

MAX_BAD_STEPS = 3


def train(
    learner: Learner,
    settings: RunSettings,
    *,
    folder: Path,
    sinks: Sequence[EventSink] = (),
    show_progress: bool = False,
) -> None:
    """Train to the end, or from the newest state in `folder` to the end.

    Writes `folder/events.jsonl`, `folder/samples.jsonl`, `folder/states/` and `folder/snapshots/`; `sinks` are told
    every event.

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
        run = _Run(learner, settings, engine, folder, writer, sinks)
        if run.is_done():
            run.compress_rest()
            run.log.close()
            return
        with (
            run.log,
            sampling(
                folder / "samples.jsonl",
                every_s=settings.train.sample_every_s if engine.rank == 0 else 0.0,
                step=lambda: run.step,
            ),
        ):
            run.log_start()
            run.announce(display)
            while not run.is_done():
                steps = run.epoch_steps()
                display.start_epoch(run.epoch + 1, settings.epochs, len(steps), done=run.step_in_epoch)
                for step_rows in steps[run.step_in_epoch :]:
                    loss = run.optimizer_step(step_rows)
                    run.announce(display)
                    display.step(loss, left_s=run.left_s())
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
            run.compress_rest()
            run.log_end(display)


class _Run:
    """Where a run stands: counters, the running sums of the epoch, the engine and the log."""

    def __init__(
        self,
        learner: Learner,
        settings: RunSettings,
        engine: Engine,
        folder: Path,
        writer: BackgroundWriter,
        sinks: Sequence[EventSink],
    ):
        self.learner, self.settings, self.engine = learner, settings, engine
        self.folder, self.writer = folder, writer
        self.epoch = self.step_in_epoch = self.step = self.bad_steps = 0
        self.micro_batch = settings.train.micro_batch
        self.sums: dict[str, float] = {}
        self.counts: dict[str, float] = {}
        self._grad_norm: float | None = None
        self._steps_per_epoch = len(self.epoch_steps())
        events_bytes = self._resume()
        self.log = EventLog(
            folder / "events.jsonl" if engine.rank == 0 else None,
            length_bytes=events_bytes,
            keeps_rest=self.is_done(),
            sinks=sinks,
        )
        self.pace = Pace(expected=settings.expected)
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

    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.epoch >= self.settings.epochs or self.is_at_step_limit()

    def log_start(self) -> None:
        """Note what this process is about to do."""
        self.log.write(
            "start",
            step=self.step,
            epochs=self.settings.epochs,
            steps_per_epoch=self._steps_per_epoch,
            key=self.settings.key,
            peak_learning_rate=self.settings.peak_learning_rate,
            strategy=self.settings.train.strategy,
            effective_batch=self.settings.train.effective_batch,
            micro_batch=self.micro_batch,
            ranks=self.engine.world_size,
            device=str(self.engine.device),
        )

    def log_end(self, display: ProgressDisplay) -> None:
        """Note how long it took, and how far the estimate was off."""
        outcome = self.pace.outcome()
        self.log.write("end", step=self.step, **asdict(outcome))
        display.note("time", str(outcome))

    def announce(self, display: ProgressDisplay) -> None:
        """Say how long the run will take, as soon as it is known."""
        estimate = self.pace.news(**self._remaining())
        if estimate:
            self.log.write("estimate", step=self.step, **asdict(estimate))
            display.note("time", str(estimate))

    def left_s(self) -> float | None:
        """Seconds that are left, None before that is known."""
        estimate = self.pace.estimate(**self._remaining())
        return round(estimate.seconds, 1) if estimate else None

    def _remaining(self) -> dict[str, int]:
        epochs = self.settings.epochs - self.epoch
        steps = epochs * self._steps_per_epoch - self.step_in_epoch
        if self.settings.max_steps is not None:
            steps = min(steps, self.settings.max_steps - self.step)
        return {"steps": steps, "epochs": epochs}

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
        self.pace.step_done()
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
        train, peak = self.settings.train, self.settings.peak_learning_rate
        if self.settings.ramp_from is not None and self.settings.max_steps is not None:
            return ramped_rate(step, low=self.settings.ramp_from, high=peak, steps=self.settings.max_steps)
        return learning_rate(
            step,
            peak=peak,
            eta_min=train.eta_min,
            first_cycle_steps=train.cycle_epochs * self._steps_per_epoch,
            growth=train.cycle_growth,
        )

    def end_epoch(self) -> Validation | None:
        """Validate, write the snapshot, the epoch's event and a state; count the epoch."""
        if not self.sums:
            raise self._diverged("no step of the epoch had a finite loss and gradient")
        seconds = time.perf_counter() - self._epoch_start_s
        rate = self._learning_rate(self.step - 1)
        self.epoch += 1
        self.step_in_epoch = 0
        position = cycle_position(
            self.step - 1,
            first_cycle_steps=self.settings.train.cycle_epochs * self._steps_per_epoch,
            growth=self.settings.train.cycle_growth,
        ).fraction
        validation = write_snapshot_first = None
        if self.engine.rank == 0:
            self.learner.model.eval()
            start_s = time.perf_counter()
            validation = self.learner.validate(self.learner.model)
            validation_s = time.perf_counter() - start_s
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
                validation_s=round(validation_s, 2),
                time_left_s=self.left_s(),
                host_rss_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                device_peak_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            )
        self.sums, self.counts = {}, {}
        self.save_state(first=write_snapshot_first)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.pace.epoch_end_done()
        self._epoch_start_s, self._epoch_records = time.perf_counter(), 0
        return validation

    def _snapshot(
        self, validation: Validation, position: float, train_module_losses: dict[str, float]
    ) -> Callable[[], object]:
        """The write of the epoch's snapshot, on copies that training does not change."""
        return partial(
            write_snapshot,
            self.folder / "snapshots",
            modules=module_copies(self.learner.model, self.learner.modules()),
            outputs={name: torch.from_numpy(values) for name, values in validation.outputs.items()},
            epoch=self.epoch,
            step=self.step,
            cycle_position=position,
            val_loss=validation.loss,
            val_module_loss=validation.module_losses,
            train_module_loss=train_module_losses,
        )

    def save_state(self, *, first: Callable[[], object] | None = None) -> None:
        """Write a resume state, beside the next steps where there is memory for a copy; all ranks together.

        `first` is written before it: a state that counts an epoch must not be there without the epoch's snapshot.
        """

        def write_first() -> None:
            if first:
                first()
            self.log.to_disk()

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
        save_state(
            self.engine,
            self.writer,
            root=self.folder / "states",
            progress=progress,
            run_key=self.settings.key,
            first=write_first,
        )
        if first and self.settings.train.compress_snapshots:
            self.writer.add(self.compress_rest)

    def compress_rest(self) -> None:
        """Make differences of the snapshots, if that is wanted: also those that a kill after the last state left."""
        if self.settings.snapshots and self.settings.train.compress_snapshots and self.engine.rank == 0:
            try:
                compress_snapshots(self.folder / "snapshots", wait=True)
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
