"""A training strategy's buffers beside activations, as data: what, where, how large, how long, from which code.

The tables lie beside the strategies in `ds_configs/ledgers/`; a size is an arithmetic formula over the model's and
the strategy's numbers. Here they are read and evaluated.
"""

import ast
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from redheart.core.errors import BadInput
from redheart.core.files import read_json

FOLDER = Path(__file__).parents[1] / "ds_configs" / "ledgers"

Where = Literal["device", "host"]
Per = Literal["once", "group", "parameter"]
Life = Literal["always", "init", "init_all", "backward", "boundary", "accumulation", "step", "step_all"]


class Rule(msgspec.Struct, frozen=True):
    """One line of a table.

    Lives: `always`; `init`, `step`: while one group is initialised or stepped; `init_all`, `step_all`: for all groups
    together; `backward`: from the first gradient of a backward pass to its end; `boundary`: while one parameter of the
    last micro-batch leaves the bucket; `accumulation`: from the first gradient of a step to its end.
    """

    name: str
    where: Where
    per: Per
    life: Life
    bytes: str
    source: str
    attribute: str | None = None
    """Where an engine holds it; None for what lives too briefly to be held."""


class StateRule(msgspec.Struct, frozen=True):
    """Where the optimizer's states lie, and what they follow."""

    where: Where
    per: Per


class Table(msgspec.Struct, frozen=True):
    """All lines of a kind of strategy."""

    variables: str
    entries: list[Rule]
    states: StateRule


@dataclass(frozen=True)
class ModelSizes:
    """What the ledger needs to know of a model and its parameter groups."""

    parameters: dict[str, int]
    """Elements by name."""
    groups: tuple[tuple[str, ...], ...]
    """Names of the parameters of every optimizer group."""
    group_state_bits: tuple[int, ...]
    """Bits of a moment that every group asks for."""

    @property
    def total(self) -> int:
        """Elements of the whole model."""
        return sum(self.parameters.values())


@dataclass(frozen=True)
class StrategySizes:
    """What the ledger needs to know of a strategy."""

    name: str
    table: str
    """Name of a file in `ds_configs/ledgers/`."""
    state_bits: int
    bucket_elements: int
    overlap: bool
    ranks: int
    weight_bytes: int = 2
    """Of a parameter as the pass reads it: 2 in bf16, 4 in float32."""


@dataclass(frozen=True)
class Entry:
    """A line of the ledger with its figures."""

    name: str
    where: Where
    per: Per
    life: Life
    each_bytes: tuple[int, ...]
    """One figure per group or parameter, in the model's order, or one in all."""
    formula: str
    source: str
    attribute: str | None

    @property
    def total_bytes(self) -> int:
        """All of them together."""
        return sum(self.each_bytes)


FUSED = "zero2_offload_fused"
_STATE_FORMULA_8 = "8*n if n < 4096 else 2*n + 8*ceil(n/256)"
"""A code a moment and a float per block of 256; 32-bit moments below 4,096 elements."""


def _state_formula(strategy: StrategySizes) -> tuple[str, str]:
    """Bytes of a group's states, and where that is from."""
    if strategy.state_bits == 32:
        return "8*n", "torch/optim/adamw.py, _init_group"
    if strategy.table == FUSED:
        source = "redheart/memory/adamw8bit/optimizer.py, HostAdamW8bit._start"
        return f"8*n if b > 8 else ({_STATE_FORMULA_8})", source
    return _STATE_FORMULA_8, "bitsandbytes/optim/optimizer.py, Optimizer2State.init_state"


def strategy_sizes(name: str, deepspeed: Mapping[str, object] | None, *, state_bits: int, ranks: int) -> StrategySizes:
    """Read from a DeepSpeed configuration what the ledger depends on."""
    zero = dict((deepspeed or {}).get("zero_optimization", {}))  # type: ignore[call-overload]
    stage = int(zero.get("stage", 0))
    if stage == 0:
        return StrategySizes(name, "plain", state_bits, 0, False, ranks, weight_bytes=4)
    offloaded = FUSED if state_bits == 8 else "zero2_offload"
    table = offloaded if "offload_optimizer" in zero else "zero2_device"
    return StrategySizes(
        name,
        table,
        state_bits,
        int(zero.get("reduce_bucket_size", 500_000_000)),
        bool(zero.get("overlap_comm", False)),
        ranks,
    )


def ledger(model: ModelSizes, strategy: StrategySizes, *, accumulates: bool) -> list[Entry]:
    """Every buffer of a strategy for a model.

    Raises:
        BadInput: the strategy's table is missing or holds something that is no formula.
    """
    table = _table(strategy.table)
    rules = [*table.entries, _state_rule(table.states, strategy)]
    common = {
        "E": max(model.parameters.values(), default=0),
        "P": model.total,
        "B": strategy.bucket_elements,
        "K": 2 if strategy.overlap else 1,
        "N": strategy.ranks,
        "A": int(accumulates),
        "S": strategy.state_bits,
        "W": strategy.weight_bytes,
    }
    return [
        Entry(
            rule.name,
            rule.where,
            rule.per,
            rule.life,
            tuple(
                evaluate(rule.bytes, {**common, "n": n, "m": -(-n // strategy.ranks), "b": bits})
                for n, bits in _elements(rule, model, strategy)
            ),
            rule.bytes,
            rule.source,
            rule.attribute,
        )
        for rule in rules
    ]


def padded_groups(model: ModelSizes, ranks: int) -> list[int]:
    """Elements of every flattened group: ZeRO pads to a multiple of twice the number of ranks."""
    alignment = 2 * ranks
    return [-(-sum(model.parameters[name] for name in group) // alignment) * alignment for group in model.groups]


def _state_rule(states: StateRule, strategy: StrategySizes) -> Rule:
    formula, source = _state_formula(strategy)
    if states.per == "group":
        formula = formula.replace("n", "m")  # A rank keeps the states of its own partition.
    return Rule("optimizer states", states.where, states.per, "always", formula, source, "state")


def _elements(rule: Rule, model: ModelSizes, strategy: StrategySizes) -> Sequence[tuple[int, int]]:
    """Elements and state bits of everything that a rule counts."""
    if rule.per == "once":
        return [(0, 0)]
    if rule.per == "group":
        return list(zip(padded_groups(model, strategy.ranks), model.group_state_bits, strict=True))
    return [(elements, 8) for elements in model.parameters.values()]


@cache
def _table(name: str) -> Table:
    return read_json(FOLDER / f"{name}.json", Table)


_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_COMPARISONS = {ast.Lt: operator.lt, ast.Gt: operator.gt}
_FUNCTIONS = {"ceil": math.ceil, "min": min, "max": max}


def evaluate(formula: str, values: Mapping[str, int]) -> int:
    """The value of a formula of `+ - * /`, `ceil`, `min`, `max` and `a if x < y else b`; nothing else is run.

    Raises:
        BadInput: the formula holds anything else, or an unknown name.
    """
    return math.ceil(_value(_parsed(formula).body, values, formula))


@cache
def _parsed(formula: str) -> ast.Expression:
    return ast.parse(formula, mode="eval")


def _value(node: ast.expr, values: Mapping[str, int], formula: str) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, values, formula), _value(right, values, formula))  # type: ignore[no-any-return]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(item, values, formula) for item in arguments))  # type: ignore[operator,no-any-return]
        case ast.IfExp(test=ast.Compare(left=left, ops=[op], comparators=[right])) if type(op) in _COMPARISONS:
            chosen = _COMPARISONS[type(op)](_value(left, values, formula), _value(right, values, formula))
            return _value(node.body if chosen else node.orelse, values, formula)
    raise BadInput("not a formula of the ledger", where=formula, got=ast.unparse(node))
