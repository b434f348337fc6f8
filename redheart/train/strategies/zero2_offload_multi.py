"""`zero2_offload_multi`: `zero2_offload_adam32` over several devices, reduction overlapped with the backward pass."""

from dataclasses import replace

from redheart.memory.ledger import CONFIGURATIONS
from redheart.train.strategies import zero2_offload_adam32

STRATEGY = replace(
    zero2_offload_adam32.STRATEGY,
    name="zero2_offload_multi",
    configuration=CONFIGURATIONS / "zero2_offload_multi.json",
    is_offered=False,
)
