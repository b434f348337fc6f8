"""Training and validation records of the kinds that people have, a batch of them at a time.

Columns in memory: a tensor, an array or a list with one entry a record, or several of them in a list or dict. Rows: a
list of dicts or tuples, a `torch.utils.data.Dataset`, a `datasets.Dataset`, or the dataset of a `DataLoader`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset, default_collate

from redheart.core.errors import BadInput, one_line

Batch = Any
"""A tuple or dict of tensors, records first, or what a collator makes."""
Collate = Callable[[list[Any]], Any]
Column = Tensor | list[Tensor]
"""One entry a record; a list where their first dimensions differ."""
IDS, LABELS, MASK = "input_ids", "labels", "attention_mask"
NO_LABEL = -100
"""What pads labels: transformers and `cross_entropy` leave it out."""
SCANNED_ROWS = 256
"""Rows of a dataset among which a plan looks for the longest."""


class Records:
    """Records by their numbers, of columns or rows, as the module says; a `DataLoader` brings a `collate` of its own.

    Raises:
        BadInput: they are of another kind, of no number, fewer than two, or cannot be put side by side.
    """

    def __init__(self, given: Any, *, where: str, collate: Collate | None = None) -> None:
        if isinstance(given, DataLoader):
            # Order and batches are the run's own, so that it can go on anywhere; what makes a batch is taken over.
            given, made_by = given.dataset, given.collate_fn
            # Columns are made of rows that have some, and padded.
            collate = collate or (None if made_by is default_collate and not _is_list_of_values(given) else made_by)
        self._columns: dict[Any, Column] | None = None
        self._rows: Any = given
        self._collate, self._where, self._is_named = collate, where, False
        self._padded: set[Any] = set()
        if isinstance(given, Tensor | np.ndarray):
            self._set_columns({0: given})
        elif isinstance(given, Mapping):
            self._set_columns(given)
        elif isinstance(given, list | tuple):
            # With a collator rows, whatever they are: they are made a batch of.
            if collate is None:
                rows_of_columns = given and not _is_list_of_values(given)
                self._set_columns(_transposed(given, where=where) if rows_of_columns else dict(enumerate(given)))
        elif isinstance(given, IterableDataset) or not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
            raise BadInput(
                "records must be there by their numbers",
                where=where,
                got=type(given).__name__,
                expected="tensors, arrays or lists, a dict of them, or a dataset with a length",
                hint="give list(...) of a generator or iterable",
            )
        if len(self) < 2:
            raise BadInput("too few records", where=where, got=len(self), expected="two or more")
        try:
            self.batch(np.arange(2))
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            raise BadInput(
                "records cannot be put side by side",
                where=where,
                got=one_line(error),
                hint="leave columns of text out, or give collate=, from a list of records to a dict of tensors",
            ) from error

    def __len__(self) -> int:
        return len(self._rows if self._columns is None else next(iter(self._columns.values())))

    def batch(self, rows: np.ndarray) -> Batch:
        """These records side by side, on the CPU: padded to the longest of them, with a mask.

        In a tuple the mask (bool) of every uneven column follows behind all columns. In a dict it is
        `attention_mask` for `input_ids`, whose labels are padded with -100, and NAME_mask otherwise.
        """
        if self._columns is not None:
            index = torch.from_numpy(rows)
            picked = {
                name: [column[row] for row in rows] if name in self._padded else column[index]
                for name, column in self._columns.items()
            }
            return _side_by_side(picked) if self._is_named else tuple(_side_by_side(picked).values())
        items = [self._rows[int(row)] for row in rows]
        if self._collate:
            made = self._collate(items)
        elif isinstance(items[0], Mapping) and IDS in items[0]:
            made = _side_by_side(
                {name: _of_one_type([torch.as_tensor(item[name]) for item in items]) for name in items[0]}
            )
        else:
            made = default_collate(items)
        made = dict(made) if isinstance(made, Mapping) else made
        return (made,) if isinstance(made, Tensor) else tuple(made) if isinstance(made, list) else made

    def longest(self) -> np.ndarray:
        """The numbers of the records that take the most room in some column, for a plan; of a dataset among its first.

        Every column is padded to its own longest, and these may be of different records.
        """
        if self._columns is not None:
            uneven = [column for column in self._columns.values() if isinstance(column, list)]
            return np.unique([int(np.argmax([len(item) for item in column])) for column in uneven] or [0])
        rows = [tree_leaves(self.batch(np.array([row]))) for row in range(min(len(self), SCANNED_ROWS))]
        sizes = [[item.numel() for item in leaves if isinstance(item, Tensor)] for leaves in rows]
        return np.unique([int(np.argmax(of_leaf)) for of_leaf in zip_longest(*sizes, fillvalue=0)])

    def digest(self) -> list[str]:
        """What identifies the records: names and contents of columns, contents of a list; of a dataset its fingerprint,
        or its class and length."""
        if self._columns is not None:
            return [_digest(name, column) for name, column in self._columns.items()]
        if _is_list_of_values(self._rows):
            leaves = [torch.as_tensor(x) if isinstance(x, np.ndarray) else x for x in tree_leaves(list(self._rows))]
            told = " ".join(tensor_digest(x) if isinstance(x, Tensor) else repr(x) for x in leaves)
            return [hashlib.sha256(told.encode()).hexdigest(), str(len(self))]
        return [str(getattr(self._rows, "_fingerprint", type(self._rows).__name__)), str(len(self))]

    def _set_columns(self, given: Mapping[Any, Any]) -> None:
        self._is_named = any(isinstance(name, str) for name in given)
        self._columns = {name: _column(values, where=self._where, name=name) for name, values in given.items()}
        self._padded = {name for name, column in self._columns.items() if isinstance(column, list)}
        if len({len(column) for column in self._columns.values()}) != 1:
            sizes = ", ".join(str(len(column)) for column in self._columns.values()) or "no tensor"
            raise BadInput(
                "tensors of the records",
                where=self._where,
                got=sizes,
                expected="as many in each, two or more",
                hint="several columns are given as a list; records of uneven length as one column: [records]",
            )


def pad_alike(first: Records, second: Records) -> None:
    """Let batches of both have a mask for every column that is uneven in one of them: a loss reads it or does not."""
    uneven = first._padded | second._padded
    for records in (first, second):
        records._padded = uneven & set(records._columns or ())


def _is_list_of_values(rows: Any) -> bool:
    """Whether something is a list, and not of rows that have columns."""
    return isinstance(rows, list | tuple) and not all(isinstance(item, Mapping | tuple) for item in rows)


def _transposed(rows: Sequence[Any], *, where: str) -> dict[Any, list[Any]]:
    """Rows as columns."""
    names = list(rows[0]) if isinstance(rows[0], Mapping) else range(len(rows[0]))
    for number, row in enumerate(rows):
        own = row if isinstance(row, Mapping) else range(len(row))
        if set(own) != set(names):
            raise BadInput("rows of other columns", where=f"{where}, row {number}", got=list(own), expected=list(names))
    return {name: [row[name] for row in rows] for name in names}


def _column(values: Any, *, where: str, name: object) -> Column:
    """A column as one tensor where its records are of one shape, else as a tensor a record; float64 becomes float32."""
    try:
        if isinstance(values, Tensor):
            return [item.clone() for item in values.unbind()] if values.is_nested else values.detach()
        if isinstance(values, np.ndarray) and values.dtype != object:
            return _tensor(values)
        items = _of_one_type([_tensor(item) for item in values])
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(
            "a column of the records is not made of numbers",
            where=f"{where}, column {name}",
            got=f"{type(values).__name__} ({one_line(error)})",
            expected="a tensor, an array, or a list of numbers, arrays or lists of numbers",
            hint="turn texts into token ids first; of several splits give one",
        ) from error
    if len({item.shape for item in items}) == 1:
        return torch.stack(items)
    if any(item.ndim == 0 or item.shape[1:] != items[0].shape[1:] for item in items):
        raise BadInput(
            "records of a column differ in more than their length",
            where=f"{where}, column {name}",
            got=", ".join(sorted({str(list(item.shape)) for item in items})[:4]),
            expected="shapes that differ in the first dimension alone",
        )
    return items


def _of_one_type(items: list[Tensor]) -> list[Tensor]:
    """In the type that holds all of them; an empty list says nothing of its own."""
    if not items:
        return items
    kind = reduce(torch.promote_types, {item.dtype for item in items if item.numel()} or {items[0].dtype})
    return [item.to(kind) for item in items]


def _tensor(value: Any) -> Tensor:
    tensor = torch.as_tensor(value)
    return tensor.float() if tensor.dtype == torch.float64 and not isinstance(value, Tensor) else tensor


def _side_by_side(columns: Mapping[Any, Column]) -> dict[Any, Tensor]:
    """Columns of a batch as tensors, those in lists padded; masks behind them."""
    made: dict[Any, Tensor] = {}
    masks: dict[Any, Tensor] = {}
    for name, column in columns.items():
        if isinstance(column, Tensor):
            made[name] = column
            continue
        if column[0].ndim == 0:
            made[name] = torch.stack(column)
            continue
        padding = NO_LABEL if name == LABELS else 0
        made[name] = torch.nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=padding)
        lengths = torch.tensor([len(item) for item in column])
        mask = torch.arange(made[name].shape[1]) < lengths[:, None]
        if name == IDS:
            masks[MASK] = mask.long()
        elif IDS not in columns:
            masks[f"{name}_mask"] = mask
    return made | {name: mask for name, mask in masks.items() if name not in columns}


def _digest(name: object, column: Column) -> str:
    items = [column] if isinstance(column, Tensor) else column
    return hashlib.sha256(" ".join([str(name), *map(tensor_digest, items)]).encode()).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's type, shape and bytes."""
    values = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f"{values.dtype} {list(values.shape)}".encode())
    found.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
