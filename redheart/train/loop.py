"""The training loop: epochs of optimizer steps, validation, snapshots and states, from wherever it stopped."""

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from redheart.core.errors import Diverged, DoesNotFit, Interrupted
from redheart.data.loader import split
from redheart.train.counting import AT_START, after_epoch, after_step, finite
from redheart.train.device.compute_type import NAMES
from redheart.train.device.out_of_memory import no_second_try
from redheart.train.engine import Engine, start_engine
from redheart.train.epoch_end import TrainedEpoch, epoch_event, snapshot, validated
from redheart.train.interrupt import StopRequest
from redheart.train.learner import Learner, Validation
from redheart.train.log.events import EventLog, EventSink, closed_if_refused
from redheart.train.log.pace import Pace
from redheart.train.log.samples import sampling
from redheart.train.passes import Passes
from redheart.train.ranks.peers import together
from redheart.train.saving import BackgroundWriter, Saver, asked_for, compress_or_warn, halved_before, resume
from redheart.train.settings import RunSettings, position_of, rate_of

MAX_BAD_STEPS = 3


def train(
    learner: Learner,
    settings: RunSettings,
    *,
    folder: Path,
    sinks: Sequence[EventSink] = (),
) -> None:
    """Train to the end, or from the newest state in `folder` to the end.

    Writes `folder/events.jsonl`, `folder/samples.jsonl`, `folder/states/` and `folder/snapshots/`; `sinks` are told
    every event.

    Raises:
        Diverged: the loss or gradient was not finite three steps in a row; the last state is intact.
        Interrupted: SIGTERM or Ctrl-C; the step was finished and a state written.
        DoesNotFit: the device's memory is too small; what the newest state holds is not lost.
        DiskError: a state or snapshot could not be written; the older ones are intact.
        OtherRankFailed: another rank raised one of these, or was killed.
    """
    too_small = DoesNotFit("out of device memory", where="the start", hint="take a smaller model or another strategy")
    with closed_if_refused(sinks), no_second_try(too_small):
        engine = start_engine(learner.model, settings.train)
    with closing(engine), StopRequest() as stop:
        writer = BackgroundWriter()
        with closed_if_refused(sinks):
            run = _Run(learner, settings, engine, folder, writer, sinks)
        if run.is_done():
            run.log.close()
            run.compress_rest()
            _refuse_to_go_on(stop)
            return
        with (
            # Closed last: a state that waits to be written makes sure of the log first.
            run.log,
            writer,
            sampling(
                folder / "samples.jsonl",
                every_s=settings.train.sample_every_s if engine.rank == 0 else 0.0,
                step=lambda: run.at.step,
            ),
            together(),
        ):
            run.log_start()
            run.announce()
            while not run.is_done():
                for step_rows in run.epoch_steps()[run.at.step_in_epoch :]:
                    run.optimizer_step(step_rows)
                    run.announce()
                    must_stop, is_state_due = run.on_any_rank(stop.pending, run.saver.is_due(run.at.step))
                    if must_stop:
                        run.save_state()
                        writer.wait()
                        raise Interrupted(
                            "stopped on request; nothing is lost",
                            where=f"step {run.at.step}, epoch {run.at.epoch + 1}",
                            hint="run the same command again to go on",
                        )
                    if is_state_due:
                        run.save_state()
                    if run.is_at_step_limit():
                        break
                else:
                    run.end_epoch()
            engine.finish()
            writer.wait()
            run.compress_rest()
            run.log.write("end", step=run.at.step, **asdict(run.pace.outcome()))
        _refuse_to_go_on(stop)


def _refuse_to_go_on(stop: StopRequest) -> None:
    """A request that came when no step was left is for whatever comes behind the training."""
    if stop.pending:
        raise Interrupted("stopped on request; the training is complete", hint="run the same command again to go on")


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
        self.saver = Saver(engine, writer, folder=folder, train=settings.train)
        micro_batch = settings.train.micro_batch
        self.passes = Passes(learner, engine, micro_batch=micro_batch, on_halved=self._log_halved, draws=settings.key)
        self.at = AT_START
        self._steps_per_epoch = settings.steps_per_epoch or len(self.epoch_steps())
        self.at, past = resume(engine, root=folder / "states", run_key=settings.key, modules=learner.modules())
        if engine.world_size == 1:
            # Draws are named by the micro-batches of a step.
            self.passes.micro_batch = halved_before(past, settings.train)
        self.log = EventLog(
            folder / "events.jsonl" if engine.rank == 0 else None,
            length_bytes=self.at.events_bytes,
            keeps_rest=self.is_done(),
            sinks=sinks,
        )
        self.pace = Pace(expected=settings.expected)
        self._epoch_start_s, self._epoch_records = time.perf_counter(), 0
        self._host_memory_logged = False

    def is_done(self) -> bool:
        return self.at.epoch >= self.settings.epochs or self.is_at_step_limit()

    def log_start(self) -> None:
        self.log.write(
            "start",
            step=self.at.step,
            epochs=self.settings.epochs,
            steps_per_epoch=self._steps_per_epoch,
            steps=self.at.step + self._remaining()["steps"],
            key=self.settings.key,
            peak_learning_rate=self.settings.peak_learning_rate,
            strategy=self.settings.train.strategy,
            effective_batch=self.settings.train.effective_batch,
            micro_batch=self.passes.micro_batch,
            ranks=self.engine.world_size,
            device=str(self.engine.device),
            compute_type=NAMES[self.engine.dtype],
        )
        if self.settings.chosen:
            self.log.write("chosen", step=self.at.step, **asdict(self.settings.chosen))

    def announce(self) -> None:
        """Note how long the run will take, as soon as it is known."""
        estimate = self.pace.news(**self._remaining())
        if estimate:
            self.log.write("estimate", step=self.at.step, **asdict(estimate))
        check = self.pace.check()
        if check:
            self.log.write("estimate_check", step=self.at.step, **asdict(check))

    def _remaining(self) -> dict[str, int]:
        epochs = self.settings.epochs - self.at.epoch
        steps = epochs * self._steps_per_epoch - self.at.step_in_epoch
        if self.settings.num_steps:
            steps = min(steps, self.settings.num_steps - self.at.step)
        if self.settings.max_steps is not None:
            steps = min(steps, self.settings.max_steps - self.at.step)
            epochs = min(epochs, (self.at.step_in_epoch + steps) // self._steps_per_epoch)
        return {"steps": steps, "epochs": epochs}

    def is_at_step_limit(self) -> bool:
        return self.settings.max_steps is not None and self.at.step >= self.settings.max_steps

    def on_any_rank(self, *wanted: bool) -> list[bool]:
        """Whether any rank wants each of these: a signal reaches them in different steps, and one clock must do."""
        if self.engine.world_size == 1:
            return list(wanted)
        counts = self.engine.sum_over_ranks(torch.tensor(wanted, dtype=torch.float64))
        return [count > 0 for count in counts.tolist()]

    def epoch_steps(self) -> list[np.ndarray]:
        """The rows of every optimizer step of the current epoch."""
        order = self.learner.epoch_rows(self.at.epoch)
        self._steps = split([order], self.settings.train.effective_batch)
        return self._steps

    def optimizer_step(self, step_rows: np.ndarray) -> None:
        start_s, engine, number = time.perf_counter(), self.engine, self.at.step + 1
        following = self._steps[self.at.step_in_epoch + 1 :]
        losses = self.passes.step(number, step_rows, following=following[0] if following else step_rows[:0])
        forward_backward_s = time.perf_counter() - start_s
        rate = self._learning_rate(self.at.step)
        with no_second_try(self.passes.too_large("optimizer", number)):
            norm = engine.step(rate)
        if not math.isfinite(norm):
            self.passes.take_back_statistics()
        totals = losses.over_ranks(engine.sum_over_ranks)
        at = after_step(self.at, totals, grad_norm=norm)
        if at.bad_steps >= MAX_BAD_STEPS:
            raise self._diverged(f"the loss or its gradient was not finite {MAX_BAD_STEPS} steps in a row")
        self.at = at
        self._epoch_records += len(step_rows)
        self.pace.step_done()
        self.log.write(
            "step",
            epoch=self.at.epoch + 1,
            step=self.at.step,
            loss=finite(totals.loss),
            grad_norm=self.at.grad_norm,
            learning_rate=rate,
            applied=math.isfinite(norm),
            forward_backward_s=round(forward_backward_s, 4),
            step_s=round(time.perf_counter() - start_s, 4),
        )
        if not self._host_memory_logged:
            self._host_memory_logged = True
            self.log.write("host_memory", step=self.at.step, optimizer_bytes=engine.host_bytes())

    def _log_halved(self, micro_batch: int) -> None:
        self.log.write("out_of_memory", step=self.at.step, micro_batch=micro_batch, **asked_for(self.settings.train))

    def _diverged(self, what: str) -> Diverged:
        return Diverged(
            what,
            where=f"epoch {self.at.epoch + 1}, step {self.at.step + 1}",
            hint="lower --train.learning-rate; the states from before are intact",
        )

    def _learning_rate(self, step: int) -> float:
        return rate_of(step, self.settings, steps_per_epoch=self._steps_per_epoch)

    def end_epoch(self) -> None:
        """Validate, write the snapshot, the epoch's event and, at the run's end, a state; count the epoch."""
        if not self.at.sums:
            raise self._diverged("no step of the epoch had a finite loss and gradient")
        self.engine.finish()
        last = self.at.step - 1
        epoch = TrainedEpoch(
            self.at,
            learning_rate=self._learning_rate(last),
            cycle_position=position_of(last, self.settings, steps_per_epoch=self._steps_per_epoch),
            records=self._epoch_records,
            seconds=time.perf_counter() - self._epoch_start_s,
        )
        found = self._validated(epoch)
        self.at = after_epoch(self.at)
        if found:
            validation, validation_s = found
            is_due = self.at.epoch % self.settings.train.snapshot_every == 0 or self.at.epoch == self.settings.epochs
            takes_snapshot = self.settings.snapshots and is_due
            if takes_snapshot:
                self.saver.save_snapshot(
                    self.learner.model,
                    lambda: snapshot(self.folder / "snapshots", self.learner, epoch, validation),
                    compress=bool(self.settings.train.compress_snapshots),
                )
            event = epoch_event(self.learner, epoch, validation, validation_s=validation_s)
            estimate = self.pace.estimate(**self._remaining())
            left_s = round(estimate.seconds, 1) if estimate else None
            self.log.write("epoch", **event, snapshot=takes_snapshot, time_left_s=left_s)
        # The snapshot goes first: a state that counts an epoch must not be there without it.
        if not self.settings.train.state_every_minutes or self.is_done():
            self.save_state()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.pace.epoch_end_done()
        self._epoch_start_s, self._epoch_records = time.perf_counter(), 0

    def _validated(self, epoch: TrainedEpoch) -> tuple[Validation, float] | None:
        """The first rank's validation. Where it fails a state is written first: another try begins with it."""
        found = failure = None
        if self.engine.rank == 0:
            try:
                found = validated(self.learner, epoch)
            except (Diverged, KeyboardInterrupt):
                raise
            except BaseException as error:
                failure = error
        if self.on_any_rank(failure is not None)[0]:
            self.save_state()
            self.writer.wait()
            if failure:
                raise failure
            self.engine.barrier()  # which ends with the first rank's error
        return found

    def save_state(self) -> None:
        """Write a resume state of this point; all ranks together."""
        self.saver.save_state(self.at, run_key=self.settings.key, log=self.log)

    def compress_rest(self) -> None:
        """Make differences of the snapshots, if that is wanted: also those that a kill after the last state left."""
        if self.settings.snapshots and self.settings.train.compress_snapshots and self.engine.rank == 0:
            compress_or_warn(self.folder / "snapshots")
