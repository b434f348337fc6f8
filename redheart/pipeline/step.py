"""One optimizer step with the optimizer on the host, as a pipeline: who does what after whom.

Gradients leave while the backward pass goes on. Each takes a slot of page-locked memory, a ring counted in bytes; where
the ring is full the one that has waited longest is drained into ordinary memory. The norm of all gradients is taken on
the card, so that no update waits for more than eight bytes. Updates come in the order in which the next forward pass
needs the weights: each turns its gradient's slot into new weights, which return while the next one is computed, and a
module of the next forward pass waits for its own buckets alone.

Source: Ren et al. 2021 (ZeRO-Offload), without its delayed update: the update is the exact one.
"""

from collections import deque
from collections.abc import Sequence

from redheart.pipeline.bucket import Bucket, by_module
from redheart.pipeline.lanes import Event, Lane, Lanes, Task, Wait

_NORM_BYTES = 8


class OffloadStep:
    """The pipeline of a run: told of passes and gradients as they come, it keeps the lanes busy.

    Args:
        buckets: in the order of the forward pass.
        lanes: where the work is done.
        ring_bytes: page-locked memory for slots; at least one bucket.
        accumulates: whether gradients of several micro-batches are summed, which is done on the host.
    """

    def __init__(self, buckets: Sequence[Bucket], lanes: Lanes, *, ring_bytes: int, accumulates: bool = False):
        self._buckets, self._lanes, self._accumulates = list(buckets), lanes, accumulates
        self._of = by_module(buckets)
        largest = max(bucket.wire_bytes for bucket in buckets)
        # A slot holds any bucket.
        self._free = deque((f"slot {number}", None) for number in range(max(1, ring_bytes // largest)))
        self._held: dict[int, tuple[str, Event]] = {}
        self._returned: dict[int, tuple[Event, Event]] = {}
        self._left: dict[int, Event] = {}
        self._num_commands = 0

    def forward(self, module: str, seconds: float, *, launch_s: float = 0.0) -> None:
        """A module's forward pass, once its weights are there."""
        buckets = self._of.get(module, [])
        ends = [self._returned[bucket.index] for bucket in buckets if bucket.index in self._returned]
        # A stream can only be told to wait for a copy that is queued, which the host does behind the update.
        queued = tuple(f"queued {bucket.index}" for bucket in buckets if bucket.index in self._returned)
        command = self._command()
        launch = Task("launch", module, launch_s, reads=queued, writes=(command,))
        launched = self._lanes.submit(Lane.LAUNCH, launch, [Wait(updated, "weights queued") for updated, _ in ends])
        task = Task(
            "forward",
            module,
            seconds,
            reads=(command, *_weights(buckets)),
            writes=(f"activations {module}",),
        )
        waits = [Wait(launched, "launched"), *(Wait(arrived, "weights arrived") for _, arrived in ends)]
        self._lanes.submit(Lane.COMPUTE, task, waits)

    def backward(self, module: str, seconds: float, *, launch_s: float = 0.0) -> None:
        """A module's backward pass, and its gradients on their way."""
        buckets = self._of.get(module, [])
        command = self._command()
        launched = self._lanes.submit(Lane.LAUNCH, Task("launch", module, launch_s, writes=(command,)))
        task = Task(
            "backward",
            module,
            seconds,
            reads=(command, f"activations {module}", *_weights(buckets)),
            writes=tuple(f"gradient {bucket.index}" for bucket in buckets),
        )
        waits = [Wait(launched, "launched")]
        # Another micro-batch's gradients take the same memory.
        waits += [
            Wait(self._left.pop(bucket.index), "gradient left") for bucket in buckets if bucket.index in self._left
        ]
        self._lanes.submit(Lane.COMPUTE, task, waits)
        for bucket in reversed(buckets):
            self.gradient_ready(bucket)

    def gradient_ready(self, bucket: Bucket) -> None:
        """A bucket's gradient is complete on the card: its squares are summed there, and it leaves."""
        name = f"gradient {bucket.index}"
        square = Task("square", str(bucket.index), 0.0, reads=(name, "squares"), writes=("squares",))
        squared = self._lanes.submit(Lane.COMPUTE, square)
        slot, was_read = self._slot()
        waits = [Wait(squared, "gradient computed")]
        waits += [Wait(was_read, "slot read")] if was_read is not None else []
        copied = self._lanes.submit(
            Lane.OUT, Task("copy out", str(bucket.index), bucket.wire_bytes, reads=(name,), writes=(slot,)), waits
        )
        self._held[bucket.index] = (slot, copied)
        if self._accumulates:
            self._left[bucket.index] = copied
            self._drain(bucket.index)

    def step(self) -> None:
        """After the last backward pass: the norm, all updates, and the weights on their way back."""
        normed = self._lanes.submit(Lane.COMPUTE, Task("norm", "", 0.0, reads=("squares",), writes=("norm",)))
        # Behind all gradients on their lane: who has waited for the norm has waited for them.
        known = self._lanes.submit(
            Lane.OUT,
            Task("norm", "", _NORM_BYTES, reads=("norm",), writes=("host norm",)),
            [Wait(normed, "norm computed")],
        )
        self._left.clear()
        for bucket in self._buckets:
            index = bucket.index
            held = self._held.pop(index, None)
            slot, was_read = (held[0], None) if held else self._slot()
            source = slot if held else f"sum {index}"
            waits = [Wait(known, "norm and gradients copied")]
            waits += [Wait(was_read, "slot read")] if was_read is not None else []
            update = Task(
                "update",
                str(index),
                bucket.elements,
                reads=("host norm", source),
                writes=(f"master {index}", slot, f"queued {index}"),
            )
            updated = self._lanes.submit(Lane.HOST, update, waits)
            copy = Task("copy in", str(index), bucket.wire_bytes, reads=(slot,), writes=(f"weights {index}",))
            arrived = self._lanes.submit(Lane.IN, copy, [Wait(updated, "updated")])
            self._free.append((slot, arrived))
            self._returned[index] = (updated, arrived)

    def _command(self) -> str:
        self._num_commands += 1
        return f"command {self._num_commands}"

    def _slot(self) -> tuple[str, Event]:
        """A free slot and the end of what last used it; the gradient that is held longest makes room."""
        if not self._free:
            self._drain(next(iter(self._held)))
        return self._free.popleft()

    def _drain(self, index: int) -> None:
        slot, copied = self._held.pop(index)
        task = Task(
            "drain", str(index), self._buckets[index].elements, reads=(slot, f"sum {index}"), writes=(f"sum {index}",)
        )
        drained = self._lanes.submit(Lane.HOST, task, [Wait(copied, "gradient copied")])
        self._free.append((slot, drained))


def _weights(buckets: Sequence[Bucket]) -> tuple[str, ...]:
    return tuple(f"weights {bucket.index}" for bucket in buckets)
