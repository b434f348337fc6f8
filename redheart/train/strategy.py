"""Training strategies by name: a DeepSpeed configuration and the number format of the optimizer's states."""

from dataclasses import dataclass, replace
from pathlib import Path

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput
from redheart.core.files import read_json

FOLDER = Path(__file__).parents[1] / "ds_configs"
PLAIN = "plain"


@dataclass(frozen=True)
class Strategy:
    """What an engine needs to know to be built."""

    name: str
    state_bits: int
    """8 or 32 bits per optimizer moment."""
    deepspeed: dict[str, object] | None
    """A DeepSpeed configuration without any "auto"; None runs without DeepSpeed."""

    @property
    def offloads(self) -> bool:
        """Whether the optimizer runs on the host while the weights are on a device."""
        zero = (self.deepspeed or {}).get("zero_optimization")
        return isinstance(zero, dict) and "offload_optimizer" in zero

    @property
    def stage(self) -> int:
        """ZeRO's stage; at 0 nothing of DeepSpeed's is needed, and the plain engine runs it."""
        zero = (self.deepspeed or {}).get("zero_optimization")
        return int(zero.get("stage", 0)) if isinstance(zero, dict) else 0


def load_strategy(config: TrainConfig) -> Strategy:
    """The strategy that a configuration names, with its batch size and clipping norm filled in.

    Raises:
        BadInput: there is no strategy of that name.
    """
    name = config.strategy
    if name == PLAIN:
        return Strategy(PLAIN, 32, None)
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        known = ", ".join([*sorted(item.stem for item in FOLDER.glob("*.json")), PLAIN])
        raise BadInput("unknown strategy", where="--train.strategy", got=name, expected=known)
    deepspeed = read_json(path, dict[str, object])
    deepspeed["train_micro_batch_size_per_gpu"] = config.micro_batch
    deepspeed["gradient_clipping"] = config.clip_norm
    return Strategy(name, 8 if "8bit" in name else 32, deepspeed)


def in_float32(strategy: Strategy) -> Strategy:
    """A strategy with its weights, activations and gradients in float32 instead of bf16."""
    return replace(strategy, deepspeed={**(strategy.deepspeed or {}), "bf16": {"enabled": False}})
