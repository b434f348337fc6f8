"""One optimizer step with the optimizer on the host, as a pipeline: who does what after whom.

Gradients leave while the backward pass goes on. Each takes a slot of page-locked memory, a ring counted in bytes; where
the ring is full the one that has waited longest is drained into ordinary memory, as are those of all micro-batches but
one. The norm of all gradients is taken on the card, or, where several were summed, of the sums on the host. Updates
come in the order in which the next forward pass needs the weights, the reverse of that in which gradients came: each
turns its gradient's slot into new weights, which return while the next one is computed, and a module of the next
forward pass waits for its own buckets alone.

Source: Ren et al. 2021 (ZeRO-Offload), without its delayed update: the update is the exact one.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any

from redheart.pipeline.bucket import Bucket
from redheart.pipeline.lanes import Event, Lane, Lanes, Task, Wait

_NORM_BYTES = 8


class OffloadStep:
    """The pipeline of a run: told of passes and gradients as they come, it keeps the lanes busy.

    What its tasks do to real memory is for a subclass to say; here they are only ordered.

    Args:
        buckets: in the order of the forward pass.
        lanes: where the work is done.
        ring_bytes: page-locked memory for slots; at least one of them there is.
        accumulates: whether several micro-batches are known to come, so that no gradient waits in its slot.
        norm_on_host: whether the norm is never taken on the card.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        lanes: Lanes,
        *,
        ring_bytes: int,
        accumulates: bool = False,
        norm_on_host: bool = False,
    ):
        self._buckets, self._lanes = list(buckets), lanes
        self._accumulates, self._norm_on_host = accumulates, norm_on_host or accumulates
        self._of: dict[str, list[Bucket]] = defaultdict(list)
        for bucket in buckets:
            self._of[bucket.module].append(bucket)
        largest_bytes = max(bucket.wire_bytes for bucket in buckets)
        self.num_slots = min(len(self._buckets), max(1, ring_bytes // largest_bytes))
        self._free: deque[tuple[int, Event]] = deque((number, None) for number in range(self.num_slots))
        self._held: dict[int, tuple[int, Event]] = {}
        self._num_gradients: dict[int, int] = {}
        self._summed: set[int] = set()
        self._left: dict[int, Event] = {}
        self._returned: dict[int, tuple[Event, Event]] = {}
        self._commands = (f"command {number}" for number in count(1))

    def use(self, buckets: Sequence[Bucket]) -> None:
        """Let what is launched from now on find the new weights of these buckets."""
        if any(self.is_returning(bucket) for bucket in buckets):
            self.forward("", 0.0, buckets=buckets)

    def is_returning(self, bucket: Bucket) -> bool:
        """Whether new weights are on their way for which no forward pass has waited."""
        return bucket.index in self._returned

    def forward(
        self, module: str, seconds: float, *, launch_s: float = 0.0, buckets: Sequence[Bucket] | None = None
    ) -> None:
        """A module's forward pass, once the weights of its buckets, or of those that are given, are there."""
        buckets = self._of[module] if buckets is None else buckets
        returning = [bucket for bucket in buckets if self.is_returning(bucket)]
        # Waited for once, they are there for all that the lane does later.
        ends = [self._returned.pop(bucket.index) for bucket in returning]
        # A stream can only be told to wait for a copy that is queued, which the host does behind the update.
        queued = tuple(f"queued {bucket.index}" for bucket in returning)
        command = next(self._commands)
        launch = Task("launch", module, launch_s, reads=queued, writes=(command,))
        launched = self._lanes.submit(Lane.LAUNCH, launch, [Wait(updated, "weights queued") for updated, _ in ends])
        reads, writes = (command, *_weights(buckets)), (f"activations {module}",)
        waits = [Wait(launched, "launched"), *(Wait(arrived, "weights arrived") for _, arrived in ends)]
        self._lanes.submit(Lane.COMPUTE, Task("forward", module, seconds, reads, writes), waits)

    def backward(self, module: str, seconds: float, *, launch_s: float = 0.0) -> None:
        """A module's backward pass, and its gradients on their way."""
        buckets, command = self._of[module], next(self._commands)
        launched = self._lanes.submit(Lane.LAUNCH, Task("launch", module, launch_s, writes=(command,)))
        reads = (command, f"activations {module}", *_weights(buckets))
        writes = tuple(f"gradient {bucket.index}" for bucket in buckets)
        waits = [Wait(launched, "launched")]
        # Another micro-batch's gradients take the same memory.
        waits += [Wait(self._left[bucket.index], "gradient left") for bucket in buckets if bucket.index in self._left]
        self._lanes.submit(Lane.COMPUTE, Task("backward", module, seconds, reads, writes), waits)
        for bucket in reversed(buckets):
            self.gradient_ready(bucket)

    def reuse_gradients(self) -> None:
        """Before a backward pass whose gradients take the memory of those of the one before."""
        waits = [Wait(left, "gradient left") for left in self._left.values()]
        if waits:
            self._lanes.submit(Lane.COMPUTE, Task("backward", "", 0.0), waits)

    def gradient_ready(self, bucket: Bucket, gradient: Any = None) -> None:
        """A bucket's gradient is complete on the card: its squares are summed there, and it leaves."""
        index = bucket.index
        if index in self._held:
            # An earlier micro-batch's.
            self._drain(index)
        self._num_gradients[index] = self._num_gradients.get(index, 0) + 1
        name = f"gradient {index}"
        run = None if self._norm_on_host else partial(self.add_squares, bucket, gradient)
        square = Task("square", name, 0.0, (name, "squares"), ("squares",), run)
        squared = self._lanes.submit(Lane.COMPUTE, square)
        slot, was_used = self._slot()
        run = partial(self.copy_out, bucket, gradient, slot)
        copy = Task("copy out", name, bucket.wire_bytes, (name,), (f"slot {slot}",), run)
        waits = [Wait(squared, "gradient computed"), *_after(was_used)]
        copied = self._left[index] = self._lanes.submit(Lane.OUT, copy, waits)
        self._held[index] = (slot, copied)
        if self._accumulates or index in self._summed:
            self._drain(index)

    def has_gradient(self, bucket: Bucket) -> bool:
        """Whether one has come since the last step."""
        return bucket.index in self._num_gradients

    def forget(self) -> None:
        """Drop all gradients that have come since the last step; what is on its way lands and is overwritten.

        Slots of a step that an error has ended are free again.
        """
        self._free.extend(self._held.values())
        lost = set(range(self.num_slots)) - {slot for slot, _ in self._free}
        self._free.extend((slot, None) for slot in sorted(lost))
        for of_this_step in (self._held, self._num_gradients, self._summed, self._left):
            of_this_step.clear()

    def step(self, settings: Any = None) -> Event:
        """After the last backward pass: the norm, whose end is given, all updates, and the weights on their way back.

        Every bucket must have had a gradient. The settings are handed to `clip`.
        """
        on_host = self._norm_on_host or max(self._num_gradients.values()) > 1
        waits = self._squares_on_host() if on_host else self._squares_on_card()
        norm = Task("norm", "", 0.0, ("host norm",), ("scale",), partial(self.clip, settings, on_host=on_host))
        normed = self._lanes.submit(Lane.HOST, norm, waits)
        for index in reversed(self._num_gradients):
            bucket = self._buckets[index]
            slot, was_used = (self._held.pop(index)[0], None) if index in self._held else self._slot()
            from_sum = index in self._summed
            source = f"sum {index}" if from_sum else f"slot {slot}"
            run = partial(self.update, bucket, slot, from_sum=from_sum)
            writes = (f"master {index}", f"slot {slot}", f"queued {index}")
            update = Task("update", str(index), bucket.elements, ("scale", source), writes, run)
            updated = self._lanes.submit(Lane.HOST, update, _after(was_used))
            run = partial(self.copy_in, bucket, slot)
            copy = Task("copy in", str(index), bucket.wire_bytes, (f"slot {slot}",), (f"weights {index}",), run)
            arrived = self._lanes.submit(Lane.IN, copy, [Wait(updated, "updated")])
            self._free.append((slot, arrived))
            self._returned[index] = (updated, arrived)
        for of_this_step in (self._num_gradients, self._summed, self._left):
            of_this_step.clear()
        return normed

    def _squares_on_card(self) -> list[Wait]:
        norm = Task("norm", "", 0.0, ("squares",), ("norm",), self.sum_squares)
        normed = self._lanes.submit(Lane.COMPUTE, norm)
        # Behind all gradients on their lane: who has waited for the norm has waited for them.
        copy = Task("norm", "", _NORM_BYTES, ("norm",), ("host norm",), self.copy_norm)
        known = self._lanes.submit(Lane.OUT, copy, [Wait(normed, "norm computed")])
        return [Wait(known, "norm and gradients copied")]

    def _squares_on_host(self) -> list[Wait]:
        for bucket in self._buckets:
            slot, copied = self._held.get(bucket.index, (None, None))
            of = f"sum {bucket.index}" if slot is None else f"slot {slot}"
            run = partial(self.add_squares_on_host, bucket, slot)
            task = Task("square", of, bucket.elements, (of,), ("host norm",), run)
            self._lanes.submit(Lane.HOST, task, [] if slot is None else [Wait(copied, "gradient copied")])
        # Before all updates on their lane.
        return []

    def _slot(self) -> tuple[int, Event]:
        """A free slot and the end of what last used it; the gradient that is held longest makes room."""
        if not self._free:
            self._drain(next(iter(self._held)))
        return self._free.popleft()

    def _drain(self, index: int) -> None:
        slot, copied = self._held.pop(index)
        bucket, total = self._buckets[index], f"sum {index}"
        run = partial(self.drain, bucket, slot, begins=index not in self._summed)
        task = Task("drain", str(index), bucket.elements, (f"slot {slot}", total), (total,), run)
        drained = self._lanes.submit(Lane.HOST, task, [Wait(copied, "gradient copied")])
        self._free.append((slot, drained))
        self._summed.add(index)

    # What is done when a lane comes to it; a slot is known by its number. Gradients and settings are handed on as they
    # were at submission, since a lane may come to its work much later.

    def add_squares(self, bucket: Bucket, gradient: Any) -> None: ...  # note a gradient's sum of squares on the card
    def copy_out(self, bucket: Bucket, gradient: Any, slot: int) -> None: ...  # from the card into a slot
    def drain(self, bucket: Bucket, slot: int, *, begins: bool) -> None: ...  # into the bucket's sum on the host
    def sum_squares(self) -> None: ...  # add up on the card what was noted there
    def copy_norm(self) -> None: ...  # the card's sum of squares to the host
    def add_squares_on_host(self, bucket: Bucket, slot: int | None) -> None: ...  # of a slot, or of the bucket's sum
    def clip(self, settings: Any, *, on_host: bool) -> None: ...  # all squares are there: the scale of the updates
    def update(self, bucket: Bucket, slot: int, *, from_sum: bool) -> None: ...  # new weights into the slot
    def copy_in(self, bucket: Bucket, slot: int) -> None: ...  # from a slot to the card


def _weights(buckets: Sequence[Bucket]) -> tuple[str, ...]:
    return tuple(f"weights {bucket.index}" for bucket in buckets)


def _after(was_used: Event) -> list[Wait]:
    return [] if was_used is None else [Wait(was_used, "slot read")]
