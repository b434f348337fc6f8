"""Strategies by name: those of `strategies.py`, and what a program registers."""

from typing import Any

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput
from redheart.core.files import read_json
from redheart.memory.ledger import Strategy, StrategySizes
from redheart.optim.offloaded import RING_BYTES
from redheart.train.device.graphs import MAX_SHAPES
from redheart.train.strategies import ALL

_DEFAULTS = TrainConfig()
_known = {strategy.name: strategy for strategy in ALL}


def register(strategy: Strategy) -> None:
    """Let a strategy be planned and trained with by its name.

    Raises:
        BadInput: there is another of that name.
    """
    if _known.setdefault(strategy.name, strategy) is not strategy:
        raise BadInput("there is a strategy of that name", got=strategy.name)


def all_strategies() -> list[Strategy]:
    """All of them by name, those without a DeepSpeed configuration last."""
    return sorted(_known.values(), key=lambda strategy: (strategy.configuration is None, strategy.name))


def strategy_named(name: str) -> Strategy:
    """The strategy that a configuration names.

    Raises:
        BadInput: there is no strategy of that name.
    """
    if name not in _known:
        names = ", ".join(strategy.name for strategy in all_strategies())
        raise BadInput("unknown strategy", where="--train.strategy", got=name, expected=names)
    return _known[name]


def check_switches(strategy: Strategy, config: TrainConfig, *, ranks: int) -> None:
    """Refuse what a run asks of a strategy that has no such thing.

    Raises:
        BadInput: several ranks, a share of the optimizer on the card, a pipeline or graphs.
    """
    if ranks > 1 and not strategy.is_zero:
        raise BadInput(f"strategy `{strategy.name}` is for one process", got=f"{ranks}", hint="use a zero2 strategy")
    if config.card_share and not strategy.takes_share:
        raise BadInput(
            "no part of this strategy's optimizer moves to the card",
            where="--train.card-share",
            got=f"{config.card_share} with {strategy.name}",
            hint="take --train.strategy zero2_offload_adam8bit, or no share",
        )
    if config.pipeline and (not strategy.takes_share or ranks > 1 or config.card_share):
        raise BadInput(
            "the step cannot be a pipeline",
            where="--train.pipeline",
            got=f"{strategy.name}, {ranks} ranks, a share of {config.card_share} on the card",
            expected="zero2_offload_adam8bit on one rank, all of its optimizer on the host",
        )
    if config.graphs and not strategy.is_zero:
        # Its gradients are summed where the next graph writes.
        raise BadInput("this strategy's passes cannot be graphs", where="--train.graphs", got=strategy.name)


def deepspeed_config(strategy: Strategy, config: TrainConfig) -> dict[str, object]:
    """The strategy's DeepSpeed configuration with a run's micro-batch and clipping norm; these alone if it has none."""
    own = {"train_micro_batch_size_per_gpu": config.micro_batch, "gradient_clipping": config.clip_norm}
    return (read_json(strategy.configuration, dict[str, object]) if strategy.configuration else {}) | own


def strategy_sizes(name: str, train: TrainConfig = _DEFAULTS, *, ranks: int = 1) -> StrategySizes:
    """A strategy with what the ledger depends on in its DeepSpeed configuration, and the switches that it takes.

    Raises as `strategy_named`.
    """
    kind = strategy_named(name)
    zero: Any = deepspeed_config(kind, _DEFAULTS).get("zero_optimization", {})
    bucket_elements, num_buckets = zero.get("reduce_bucket_size", 500_000_000), 2 if zero.get("overlap_comm") else 1
    return StrategySizes(
        kind,
        ranks,
        bucket_elements,
        num_buckets,
        weight_bytes=kind.card_dtype.itemsize,
        card_share=train.card_share if kind.takes_share else 0.0,
        graph_shapes=MAX_SHAPES if train.graphs and kind.is_zero else 0,
        ring_bytes=RING_BYTES if train.pipeline and kind.takes_share else 0,
    )
