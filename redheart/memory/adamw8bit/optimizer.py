"""The optimizer under its old name, for scripts that import it by it."""

from redheart.optim.host_adamw8bit import HostAdamW8bit, backend

__all__ = ["HostAdamW8bit", "backend"]
