"""The ledger equals what real engines hold on the CPU accelerator, by name and size."""

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from launching import launch
from torch import nn

from redheart.core.config import TrainConfig
from redheart.memory.ledger import SLOTS, ModelSizes, Strategy, held_bytes, ledger, model_sizes
from redheart.model.dims import scaled
from redheart.model.network import build
from redheart.optim.host_adamw8bit import HostAdamW8bit
from redheart.optim.offloaded import Flat, Offloaded
from redheart.pipeline.bucket import Bucket
from redheart.train.strategy import all_strategies, deepspeed_config, strategy_named, strategy_sizes
from redheart.train.zero.groups import parameter_groups

COMPILED = ("zero2_offload_adam32", "zero2_offload_multi")
CONFIGURED = [strategy.name for strategy in all_strategies() if strategy.configuration]
GRADIENTS = ("single_partition_of_fp32_groups.grad", "averaged_gradients", "parameters.grad")
SCRIPT = Path(__file__).with_name("engine_tensors.py")


def _marked(strategy: str) -> Any:
    # DeepSpeed compiles their optimizer for most of a minute on both cores, anew in every checkout.
    return pytest.param(strategy, marks=pytest.mark.long) if strategy in COMPILED else strategy


@cache
def engine_tensors(strategy: str, divisor: int, *ways: str) -> list[dict[str, Any]]:
    done = launch([sys.executable, str(SCRIPT)], strategy, divisor, *ways)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


def predicted(strategy: str, divisor: int, *, weight_bytes: int, card_share: float = 0.0) -> dict[str, int]:
    module = build(scaled(divisor), seed=0, device="meta")
    sizes = model_sizes(module, parameter_groups(module, weight_decay=0.01))
    numbers = replace(strategy_sizes(strategy, TrainConfig(card_share=card_share)), weight_bytes=weight_bytes)
    entries = ledger(sizes, numbers, accumulates=True)
    named = held_bytes(entries)
    # Alive in a backward pass only; its size is the configuration's own number.
    named.pop("ipg_buckets", None)
    return named


@pytest.mark.parametrize("strategy", [_marked(name) for name in CONFIGURED])
def test_ledger_equals_the_tensors_of_a_real_engine(strategy: str) -> None:
    for found, weight_bytes in zip(engine_tensors(strategy, 32, "bf16", "fp32"), (2, 4), strict=True):
        assert found["held"] == predicted(strategy, 32, weight_bytes=weight_bytes)
        # Nothing else is alive but the batch: a view of a tensor that was replaced would keep it.
        assert found["alive_bytes"] <= sum(found["held"].values()) + 100 * 1024


def test_ledger_equals_the_tensors_of_an_engine_with_a_share_on_the_card() -> None:
    name, shares = "zero2_offload_adam8bit", (0.05, 1.0)
    for found, share in zip(engine_tensors(name, 32, "bf16,0.05", "bf16,1"), shares, strict=True):
        assert found["held"] == predicted(name, 32, weight_bytes=2, card_share=share)
        assert found["alive_bytes"] <= sum(found["held"].values()) + 100 * 1024


@pytest.mark.parametrize("strategy", CONFIGURED)
def test_every_strategy_is_a_deepspeed_configuration_without_auto(strategy: str) -> None:
    deepspeed = deepspeed_config(strategy_named(strategy), TrainConfig(micro_batch=2))
    assert '"auto"' not in json.dumps(deepspeed)
    loaded = DeepSpeedConfig(deepspeed)
    assert loaded.train_micro_batch_size_per_gpu == 2 and loaded.gradient_clipping == 1.0
    assert loaded.zero_config.stage == (2 if strategy_named(strategy).is_zero else 0)


@pytest.mark.parametrize("strategy", all_strategies(), ids=lambda strategy: strategy.name)
def test_home_is_where_the_ledger_and_deepspeed_have_it(strategy: Strategy) -> None:
    sizes = ModelSizes({"weight": 8192}, (("weight",),), (8,))
    entries = ledger(sizes, strategy_sizes(strategy.name), accumulates=True)
    where = {entry.attribute: entry.where for entry in entries}
    masters = where.get("single_partition_of_fp32_groups") or where["parameters"]
    gradients = {name: where[name] for name in GRADIENTS if name in where}
    assert {masters, where["state"], *gradients.values()} == {strategy.home}
    zero: Any = deepspeed_config(strategy, TrainConfig()).get("zero_optimization", {})
    assert ("offload_optimizer" in zero) == (strategy.home == "host")


def test_graphs_hold_a_gradient_of_every_parameter_for_each_shape() -> None:
    sizes = ModelSizes({"one": 10, "two": 5}, (("one", "two"),), (8,))
    numbers = strategy_sizes("zero2_offload_adam8bit")
    without, of_two = (
        sum(entry.total_bytes for entry in ledger(sizes, numbers_of, accumulates=False) if entry.where == "device")
        for numbers_of in (numbers, replace(numbers, graph_shapes=2))
    )
    assert of_two - without == 2 * 2 * 15


@pytest.mark.parametrize("num_passes", [1, 2])
def test_a_pipeline_holds_its_ring_and_the_sums_that_are_planned(num_passes: int) -> None:
    counts = (1000, 600, 400)
    masters = [nn.Parameter(torch.zeros(count)) for count in counts]
    weights = [nn.Parameter(master.detach().bfloat16()) for master in masters]
    flats = [
        Flat(Bucket(index, f"group {index}", master.numel()), [weight], master, [weight.data])
        for index, (master, weight) in enumerate(zip(masters, weights, strict=True))
    ]
    host = HostAdamW8bit([{"params": [master], "state_bits": 32} for master in masters], lr=1e-3)
    # Room for two of the largest.
    work = Offloaded(flats, host, max_grad_norm=1.0, ring_bytes=4500, accumulates=num_passes > 1)
    for _ in range(num_passes):
        for weight in weights:
            work.arrived(weight, torch.ones_like(weight))
    work.step([{}] * 3)
    held = sum(tensor.nbytes for tensor in work.buffers())
    sizes = ModelSizes(dict(zip("abc", counts, strict=True)), (("a",), ("b",), ("c",)), (8, 8, 8))
    numbers = replace(strategy_sizes("zero2_offload_adam8bit"), ring_bytes=4500)
    entries = {entry.name: entry for entry in ledger(sizes, numbers, accumulates=num_passes > 1)}
    assert held == entries["ring of slots"].total_bytes + entries["sums of gradients"].total_bytes
    assert held == 2 * 2000 + (2 * 1000 if num_passes == 1 else 4 * 2000)
    assert "gradients" not in entries and SLOTS not in entries
