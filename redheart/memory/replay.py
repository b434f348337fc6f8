"""A training step replayed on a caching allocator: initialisation, micro-batches, step, validation, save.

The pass comes from a trace, the buffers from the ledger; what is replayed is their order.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from redheart.memory.allocator import CachingAllocator
from redheart.memory.ledger import Entry, ModelSizes, StrategySizes
from redheart.memory.trace import Event, Trace

MOMENTS = ("initialisation", "forward", "backward", "step", "validation", "save")


@dataclass
class Replay:
    """What the card held at every moment, and over the requests of one step."""

    peak_reserved_bytes: dict[str, int] = field(default_factory=dict)
    peak_allocated_bytes: dict[str, int] = field(default_factory=dict)
    parts_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    """By moment, what was held by category when the moment's peak was reached."""
    curve: list[tuple[str, dict[str, int]]] = field(default_factory=list)
    """(moment, bytes by category) after every request of the last step."""


class _Card:
    def __init__(self) -> None:
        self.allocator = CachingAllocator()
        self.replay = Replay()
        self.moment = "initialisation"
        self.is_recording = False
        self.held: dict[str, int] = {}

    def take(self, size: int, category: str) -> tuple[int, int, str]:
        handle = self.allocator.malloc(size)
        self.held[category] = self.held.get(category, 0) + size
        now, replay = self.allocator.allocated_bytes, self.replay
        if now > replay.peak_allocated_bytes.get(self.moment, -1):
            replay.peak_allocated_bytes[self.moment] = now
            replay.parts_bytes[self.moment] = dict(self.held)
        replay.peak_reserved_bytes[self.moment] = max(
            replay.peak_reserved_bytes.get(self.moment, 0), self.allocator.reserved_bytes
        )
        self._record()
        return handle, size, category

    def give(self, item: tuple[int, int, str]) -> None:
        handle, size, category = item
        self.allocator.free(handle)
        self.held[category] -= size
        self._record()

    def brief(self, size: int, category: str) -> None:
        if size:
            self.give(self.take(size, category))

    def look(self) -> None:
        """Count what is held at a moment that requests nothing."""
        now, reserved = self.allocator.allocated_bytes, self.allocator.reserved_bytes
        self.replay.peak_allocated_bytes[self.moment] = now
        self.replay.peak_reserved_bytes[self.moment] = reserved
        self.replay.parts_bytes[self.moment] = dict(self.held)
        self._record()

    def _record(self) -> None:
        if self.is_recording:
            self.replay.curve.append((self.moment, dict(self.held)))


def replay_step(
    training: Trace,
    validation: Trace | None,
    batch_bytes: int,
    *,
    model: ModelSizes,
    strategy: StrategySizes,
    entries: Sequence[Entry],
    micro_batches: int,
) -> Replay:
    """Replay initialisation, a step, a validation, another step, and a save.

    Args:
        training: trace of one micro-batch with gradients; released as they are complete by ZeRO.
        validation: trace of one micro-batch without gradients; None leaves it and the curve out, for a quick look.
        batch_bytes: inputs of a micro-batch on the device.
        micro_batches: per step; more than two behave as two do.
    """
    card = _Card()
    device = [entry for entry in entries if entry.where == "device"]
    _initialise(card, device, model, strategy)
    for number in range(2):
        card.is_recording = number == 1 and validation is not None
        gradients: list[tuple[int, int, str]] = []
        parts = min(micro_batches, 2)
        for part in range(parts):
            _micro_batch(card, training, batch_bytes, device, model, strategy, gradients, is_last=part == parts - 1)
        _step(card, device)
        for item in gradients:
            card.give(item)
        card.is_recording = False
        if validation is not None:
            card.moment = "validation"
            batch = card.take(batch_bytes, "batch")
            for item in [*_play(card, validation.events), batch]:
                card.give(item)
    card.moment = "save"
    # A snapshot copies the weights tensor by tensor to the host; on the device it takes nothing.
    card.look()
    return card.replay


def _initialise(card: _Card, device: list[Entry], model: ModelSizes, strategy: StrategySizes) -> None:
    if not strategy.kind.is_zero:
        for entry in _of(device, "always", "parameter"):
            for size in entry.each_bytes:
                card.take(size, entry.name)
        return
    # The module arrives in bf16, parameter by parameter; each group is then flattened and its parts dropped.
    module = {name: card.take(2 * count, "weights before flattening") for name, count in model.parameters.items()}
    for index, names in enumerate(model.groups):
        # DeepSpeed empties the cache before it flattens a group.
        card.allocator.empty_cache()
        # Only what is named for the group itself: the states come with the first step.
        for entry in _of(device, "always", "group"):
            if entry.attribute != "state":
                card.take(entry.each_bytes[index], entry.name)
            if entry.attribute in ("bit16_groups_flat", "fp16_partitioned_groups_flat"):
                for name in names:
                    card.give(module.pop(name))
        brief = [card.take(entry.each_bytes[index], entry.name) for entry in _of(device, "init", "group")]
        for item in brief:
            card.give(item)
    for entry in _of(device, "always", "once"):
        card.take(entry.total_bytes, entry.name)
    whole = [card.take(size, entry.name) for entry in _of(device, "init_all", "group") for size in entry.each_bytes]
    for item in whole:
        card.give(item)
    for entry in _of(device, "always", "group"):
        if entry.attribute == "state":
            for size in entry.each_bytes:
                card.take(size, entry.name)


def _micro_batch(
    card: _Card,
    trace: Trace,
    batch_bytes: int,
    device: list[Entry],
    model: ModelSizes,
    strategy: StrategySizes,
    gradients: list[tuple[int, int, str]],
    *,
    is_last: bool,
) -> None:
    card.moment = "forward"
    batch = card.take(batch_bytes, "batch")
    held: list[tuple[int, int, str]] = []
    waiting: list[str] = []
    position = {name: index for index, name in enumerate(model.parameters)}
    boundary = _of(device, "boundary", "parameter")

    def flush() -> None:
        for name in waiting:
            for entry in boundary if is_last else ():
                card.brief(entry.each_bytes[position[name]], entry.name)
        waiting.clear()

    def gradient(name: str) -> None:
        if not held:
            for entry in device:
                if entry.life == "backward":
                    held.extend(card.take(size, entry.name) for size in entry.each_bytes if size)
        if not gradients:
            for entry in device:
                if entry.life == "accumulation":
                    gradients.extend(card.take(size, entry.name) for size in entry.each_bytes)
        if sum(model.parameters[item] for item in waiting) + model.parameters[name] > strategy.bucket_elements:
            flush()
        waiting.append(name)

    live = _play(card, trace.events, on_gradient=gradient if strategy.kind.is_zero else None)
    if not strategy.kind.is_zero and not gradients:
        # What is left of the pass are the gradients; later micro-batches add into them.
        gradients.extend(live)
    else:
        for item in live:
            card.give(item)
    flush()
    for item in held:
        card.give(item)
    card.give(batch)


def _step(card: _Card, device: list[Entry]) -> None:
    card.moment = "step"
    card.look()
    states = [entry for entry in device if entry.attribute == "state" and entry.per == "parameter"]
    for entry in states:
        for size in entry.each_bytes if entry.name not in card.held else ():
            card.take(size, entry.name)
    whole = [card.take(size, e.name) for e in device if e.life == "step_all" for size in e.each_bytes]
    for item in whole:
        card.give(item)
    stepped = _of(device, "step", "group")
    for index in range(max((len(entry.each_bytes) for entry in stepped), default=0)):
        for item in [card.take(entry.each_bytes[index], entry.name) for entry in stepped]:
            card.give(item)


def _play(
    card: _Card, events: Sequence[Event], on_gradient: Callable[[str], None] | None = None
) -> list[tuple[int, int, str]]:
    """Replay a pass; what is still there at its end is returned."""
    live: dict[int, tuple[int, int, str]] = {}
    is_training = card.moment != "validation"
    for event in events:
        if event.kind == "alloc":
            category = "activations" if card.moment in ("forward", "validation") else "gradients and temporaries"
            live[event.buffer] = card.take(event.size_bytes, category)
        elif event.kind == "free":
            card.give(live.pop(event.buffer))
        elif event.label == "backward" and is_training:
            card.moment = "backward"
        elif event.label.startswith("gradient:") and on_gradient:
            on_gradient(event.label.removeprefix("gradient:"))
    return list(live.values())


def _of(entries: Sequence[Entry], life: str, per: str) -> list[Entry]:
    return [entry for entry in entries if entry.life == life and entry.per == per]


def moments(replay: Replay) -> Iterator[tuple[str, int, int, dict[str, int]]]:
    """(moment, reserved bytes, allocated bytes, bytes by category) in the order of a run."""
    for moment in MOMENTS:
        if moment in replay.peak_reserved_bytes:
            yield (
                moment,
                replay.peak_reserved_bytes[moment],
                replay.peak_allocated_bytes[moment],
                {name: size for name, size in replay.parts_bytes[moment].items() if size},
            )
