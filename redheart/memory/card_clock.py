"""How long the steps of a workload take on a card that need not be here."""

from dataclasses import dataclass

from redheart.memory.cards import Card
from redheart.memory.ledger import StrategySizes
from redheart.memory.plan import Planner
from redheart.memory.step_time import HostSpeed, Range, StepTime, constants, step_time, typical_s
from redheart.pipeline.in_turn import PassWork


@dataclass(frozen=True)
class CardClock:
    """Steps of a planner's workload on a card."""

    card: Card
    planner: Planner
    host: HostSpeed | None
    """What this host was measured to do; None takes any host's."""
    has_dropout: bool = False
    """With it a pass that recomputes is not captured."""

    def time(self, strategy: StrategySizes, micro_batch: int, checkpointing: bool) -> StepTime:
        """Of a configuration."""
        return step_time(*self._asked(strategy, micro_batch, checkpointing))

    def cost(self, strategy: StrategySizes, micro_batch: int, checkpointing: bool) -> float:
        """Its seconds alone, to rank by."""
        return typical_s(*self._asked(strategy, micro_batch, checkpointing))

    def _asked(
        self, strategy: StrategySizes, micro_batch: int, checkpointing: bool
    ) -> tuple[int, StrategySizes, int, PassWork, dict[str, Range]]:
        workload = self.planner.workload
        steps = -(-workload.effective_batch // (micro_batch * strategy.ranks))
        work = self.planner.pass_work(micro_batch, checkpointing=checkpointing)
        is_replayed = strategy.graph_shapes > 0 and not (checkpointing and self.has_dropout)
        ranges = constants(self.card, strategy, self.host, is_replayed=is_replayed)
        return workload.sizes.trained, strategy, steps, work, ranges
