"""Optimizers whose masters and states lie on the host; `OffloadAdamW8bit` is the one for any training loop."""

from redheart.optim.offload_adamw8bit import OffloadAdamW8bit

__all__ = ["OffloadAdamW8bit"]
