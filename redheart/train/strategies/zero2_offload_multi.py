"""`zero2_offload_multi`: `zero2_offload_adam32` over several devices, reduction overlapped with the backward pass."""

from dataclasses import replace

from redheart.memory.ledger import DS_CONFIGS
from redheart.train.strategies.zero2_offload_adam32 import STRATEGY as ONE

CONFIGURATION = DS_CONFIGS / "zero2_offload_multi.json"
STRATEGY = replace(ONE, name="zero2_offload_multi", configuration=CONFIGURATION, is_offered=False)
