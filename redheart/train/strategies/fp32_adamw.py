"""`fp32_adamw`: the naive run, which the planner must refuse at 8 GiB: `plain` with a configuration."""

from dataclasses import replace

from redheart.memory.ledger import DS_CONFIGS
from redheart.train.strategies import plain

STRATEGY = replace(plain.STRATEGY, name="fp32_adamw", configuration=DS_CONFIGS / "fp32_adamw.json")
