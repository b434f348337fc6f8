"""A training step replayed on a caching allocator: initialisation, micro-batches, step, validation, save.

The pass comes from a trace, the buffers from the ledger; what is replayed is their order.
"""

from collections.abc import Callable, Sequence

import msgspec

from redheart.memory.allocator import CachingAllocator
from redheart.memory.ledger import Entry, ModelSizes, StrategySizes
from redheart.memory.trace import Event, Trace

Held = tuple[int, int, str]
"""What the card was asked for: a handle, bytes, a category."""


class Moment(msgspec.Struct):
    """One moment of a run on the device, without context and workspaces."""

    reserved_bytes: int = 0
    allocated_bytes: int = -1
    parts: dict[str, int] = {}
    """By category what was held when the moment's peak was reached."""


class Replay:
    """A card under the requests of a run: what it held at every moment, and over the requests of one step."""

    def __init__(self, model: ModelSizes, strategy: StrategySizes, entries: Sequence[Entry]):
        self.model, self.strategy = model, strategy
        self.entries = [entry for entry in entries if entry.where == "device"]
        self.allocator = CachingAllocator()
        self.moments: dict[str, Moment] = {}
        """Initialisation, forward, backward, step, validation, save: in the order of a run."""
        self.curve: list[tuple[str, dict[str, int]]] = []
        """(moment, bytes by category) after every request of the last step."""
        self.moment = "initialisation"
        self.is_recording = False
        self.held: dict[str, int] = {}

    def of(self, life: str, per: str | None = None) -> list[Entry]:
        return [entry for entry in self.entries if entry.life == life and per in (entry.per, None)]

    def take(self, size: int, category: str) -> Held:
        handle = self.allocator.malloc(size)
        self.held[category] = self.held.get(category, 0) + size
        self.look()
        return handle, size, category

    def take_all(self, entries: Sequence[Entry]) -> list[Held]:
        return [self.take(size, entry.name) for entry in entries for size in entry.each_bytes if size]

    def give(self, *items: Held) -> None:
        for handle, size, category in items:
            self.allocator.free(handle)
            self.held[category] -= size
            self._record()

    def look(self) -> None:
        """Count what is held, at a moment that requests nothing too."""
        peak, now = self.moments.setdefault(self.moment, Moment()), self.allocator.allocated_bytes
        if now > peak.allocated_bytes:
            peak.allocated_bytes, peak.parts = now, {name: size for name, size in self.held.items() if size}
        peak.reserved_bytes = max(peak.reserved_bytes, self.allocator.reserved_bytes)
        self._record()

    def _record(self) -> None:
        if self.is_recording:
            self.curve.append((self.moment, dict(self.held)))


def replay_step(
    training: Trace,
    validation: Trace | None,
    batch_bytes: tuple[int, int],
    *,
    model: ModelSizes,
    strategy: StrategySizes,
    entries: Sequence[Entry],
    micro_batches: int,
) -> Replay:
    """Replay initialisation, a step, a validation, another step, and a save.

    The traces are of one micro-batch, as are `batch_bytes`, its inputs in training and in validation. For a quick look
    there is no trace of validation, and no curve then. More than two micro-batches behave as two do.
    """
    card = Replay(model, strategy, entries)
    _initialise(card)
    for number in range(2):
        card.is_recording = number == 1 and validation is not None
        gradients: list[Held] = []
        parts = min(micro_batches, 2)
        for part in range(parts):
            _micro_batch(card, training, batch_bytes[0], gradients, is_last=part == parts - 1)
        _step(card)
        card.give(*gradients)
        card.is_recording = False
        if validation is not None:
            card.moment = "validation"
            batch = card.take(batch_bytes[1], "batch")
            card.give(*_play(card, validation.events), batch)
    card.moment = "save"
    # A snapshot copies the weights tensor by tensor to the host; on the device it takes nothing.
    card.look()
    return card


def _initialise(card: Replay) -> None:
    card.take_all(card.of("always", "parameter"))
    if not card.strategy.kind.is_zero:
        return
    # The module arrives in bf16, parameter by parameter; each group is then flattened and its parts dropped.
    module = {name: card.take(2 * count, "weights before flattening") for name, count in card.model.parameters.items()}
    for index, names in enumerate(card.model.groups):
        # DeepSpeed empties the cache before it flattens a group.
        card.allocator.empty_cache()
        # Only what is named for the group itself: the states come with the first step.
        for entry in card.of("always", "group"):
            if entry.attribute != "state":
                card.take(entry.each_bytes[index], entry.name)
            if entry.attribute == "bit16_groups_flat":
                for name in names:
                    card.give(module.pop(name))
        card.give(*[card.take(entry.each_bytes[index], entry.name) for entry in card.of("init", "group")])
    card.take_all(card.of("always", "once"))
    card.give(*card.take_all(card.of("init_all", "group")))
    card.take_all([entry for entry in card.of("always", "group") if entry.attribute == "state"])


def _micro_batch(card: Replay, trace: Trace, batch_bytes: int, gradients: list[Held], *, is_last: bool) -> None:
    model, strategy = card.model, card.strategy
    card.moment = "forward"
    batch = card.take(batch_bytes, "batch")
    held: list[Held] = []
    waiting: list[str] = []
    position = {name: index for index, name in enumerate(model.parameters)}
    boundary = card.of("boundary") if is_last else []

    def flush() -> None:
        for name in waiting:
            for entry in boundary:
                size = entry.each_bytes[position[name]]
                card.give(*[card.take(size, entry.name)] if size else [])
        waiting.clear()

    def gradient(name: str) -> None:
        if not held:
            held.extend(card.take_all(card.of("backward")))
        if not gradients:
            gradients.extend(card.take_all(card.of("accumulation")))
        if sum(model.parameters[item] for item in waiting) + model.parameters[name] > strategy.bucket_elements:
            flush()
        waiting.append(name)

    live = _play(card, trace.events, on_gradient=gradient if strategy.kind.is_zero else None)
    if not strategy.kind.is_zero and not gradients:
        # What is left of the pass are the gradients; later micro-batches add into them.
        gradients.extend(live)
    else:
        card.give(*live)
    flush()
    card.give(*held, batch)


def _step(card: Replay) -> None:
    card.moment = "step"
    # The last step counts, which is the one that is drawn.
    card.moments["step"] = Moment()
    card.look()
    card.give(*card.take_all(card.of("step_all", "parameter")))
    stepped = card.of("step", "group")
    for index in range(max((len(entry.each_bytes) for entry in stepped), default=0)):
        card.give(*[card.take(entry.each_bytes[index], entry.name) for entry in stepped])


def _play(card: Replay, events: Sequence[Event], on_gradient: Callable[[str], None] | None = None) -> list[Held]:
    """Replay a pass; what is still there at its end is returned."""
    live: dict[int, Held] = {}
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
