"""The forward and backward passes of a step: its micro-batches, smaller ones where the device's memory runs out."""

from collections.abc import Callable
from functools import partial

import numpy as np
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from redheart.core.errors import DoesNotFit
from redheart.core.progress import warn
from redheart.data.loader import micro_batches, split
from redheart.train.counting import StepLosses
from redheart.train.device.out_of_memory import no_second_try, tried
from redheart.train.draws import drawn
from redheart.train.engine import Engine
from redheart.train.learner import Learner


class Passes:
    """Of a run; while a micro-batch is computed the learner may read the next.

    `micro_batch` is of the first pass, `on_halved` is told of every smaller one. `draws` names the random draws of the
    run, which it makes again when it goes on.
    """

    def __init__(
        self, learner: Learner, engine: Engine, *, micro_batch: int, on_halved: Callable[[int], None], draws: str
    ):
        self._learner, self._engine, self.micro_batch, self._on_halved = learner, engine, micro_batch, on_halved
        self._draws = draws
        self._modules = list(learner.model.modules())
        # The buffers in which norms keep what they have seen of batches.
        norms = [item for item in self._modules if isinstance(item, _NormBase)]
        self._statistics = [tensor for norm in norms for tensor in norm.buffers()]
        self._statistics_before: list[Tensor] = []

    def step(self, number: int, rows: np.ndarray, *, following: np.ndarray) -> StepLosses:
        """The gradients of an effective batch, and its losses; `following` are the next one's rows, empty if not known.

        Raises:
            DoesNotFit: the device's memory is too small for one record.
        """
        pending, losses = self._micro_batches(rows), StepLosses()
        self._statistics_before = [tensor.clone() for tensor in self._statistics]
        # Whoever is told of a step may have left some of them in evaluation; the call alone takes 4 ms of `small`.
        if not all(item.training for item in self._modules):
            self._learner.model.train()
        # What is pending counts down, but for a halving, behind which a number comes again.
        names: tuple[object, ...] = (self._draws, number, self._engine.rank)
        while pending:
            forward = partial(self._learner.loss, self._engine.module, pending[0], step_rows=rows)
            loss = tried(partial(drawn, forward, *names, len(pending)))
            if loss is None:
                self._halve(number)
                names = (*names, self.micro_batch)
                # What is accumulated stays: a forward pass that failed has added nothing.
                pending = split(pending, self.micro_batch)
                continue
            pending = pending[1:]
            self._learner.read_ahead((pending or self._micro_batches(following) or [following])[0])
            # Some gradients of a micro-batch may be in the sum and some not.
            with no_second_try(self.too_large("backward pass", number)):
                self._engine.backward(loss.total, last=not pending)
            losses.add(loss)
        return losses

    def take_back_statistics(self) -> None:
        """Let the passes of the last step have changed nothing: one value that is not finite would stay in a mean."""
        for tensor, before in zip(self._statistics, self._statistics_before, strict=True):
            tensor.copy_(before)

    def too_large(self, part: str, number: int) -> DoesNotFit:
        """The error of a part of a step that cannot be tried again."""
        return DoesNotFit(
            "out of device memory",
            where=f"{part} of step {number}",
            got=f"micro-batch {self.micro_batch} on {self._engine.world_size} ranks",
            hint=f"run the same command again with --train.micro-batch {max(1, self.micro_batch // 2)} or "
            "--train.checkpointing True; it goes on from the last state",
        )

    def _micro_batches(self, rows: np.ndarray) -> list[np.ndarray]:
        engine = self._engine
        return micro_batches(rows, micro_batch=self.micro_batch, rank=engine.rank, world_size=engine.world_size)

    def _halve(self, number: int) -> None:
        if self.micro_batch == 1 or self._engine.world_size > 1:
            # Ranks must take the same number of micro-batches.
            raise self.too_large("forward pass", number)
        self.micro_batch //= 2
        self._on_halved(self.micro_batch)
        warn(f"out of device memory; going on with micro-batch {self.micro_batch}, the effective batch stays")
