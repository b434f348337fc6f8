"""Every kind of data that people have becomes a batch, or is refused at once with what to do."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput
from redheart.custom import TensorLearner, plan
from redheart.custom.records import Records

UNEVEN = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
PADDED = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0], [6, 7, 8, 9]])
MASK = PADDED > 0
EVEN = torch.arange(6).reshape(3, 2)


class Rows(Dataset):  # type: ignore[type-arg]
    """A dataset of rows as they are given."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Any:
        return self._rows[number]


def lengths(rows: list[list[int]]) -> dict[str, Tensor]:
    return {"n": torch.tensor([len(row) for row in rows])}


TENSORS = [torch.tensor(ids) for ids in UNEVEN]
TEXTS = [{"input_ids": ids, "labels": ids} for ids in UNEVEN]
NAMED = {"input_ids": PADDED, "labels": PADDED.masked_fill(~MASK, -100), "attention_mask": MASK.long()}
TAKEN: dict[str, tuple[Any, Any]] = {
    "a bare tensor": (EVEN, (EVEN,)),
    "a bare array": (EVEN.numpy(), (EVEN,)),
    "tensors": ([EVEN, EVEN + 1], (EVEN, EVEN + 1)),
    "an array of float64": ([np.ones((3, 2))], (torch.ones(3, 2),)),
    "numbers": ([[0.5, 1.0, 2.0]], (torch.tensor([0.5, 1.0, 2.0]),)),
    "lists of tokens": ([UNEVEN], (PADDED, MASK)),
    "lists of tensors and a label": ([TENSORS, [0, 1, 2]], (PADDED, torch.arange(3), MASK)),
    "a nested tensor": (torch.nested.nested_tensor(TENSORS), (PADDED, MASK)),
    "a dict of tensors": ({"x": EVEN, "y": EVEN}, {"x": EVEN, "y": EVEN}),
    "a dict of lists": ({"input_ids": UNEVEN, "labels": UNEVEN}, NAMED),
    "another uneven column": ({"x": UNEVEN}, {"x": PADDED, "x_mask": MASK}),
    "rows of texts": (TEXTS, NAMED),
    "rows of pairs": ([(row, index) for index, row in enumerate(EVEN)], (EVEN, torch.arange(3))),
    "a dataset of texts": (Rows(TEXTS), NAMED),
    "a dataset of tensors": (TensorDataset(EVEN, EVEN), (EVEN, EVEN)),
    "a loader": (DataLoader(TensorDataset(EVEN), batch_size=2), (EVEN,)),
    "a loader of a list": (DataLoader(list(EVEN)), (EVEN,)),  # type: ignore[arg-type]
    "a loader of a list with a collator": (DataLoader(UNEVEN, collate_fn=lengths), {"n": torch.tensor([3, 2, 4])}),  # type: ignore[arg-type]
    "a loader with a collator": (DataLoader(Rows(UNEVEN), collate_fn=lengths), {"n": torch.tensor([3, 2, 4])}),
}


def generator() -> Iterator[list[int]]:
    yield from UNEVEN


REFUSED: dict[str, tuple[Any, str]] = {
    "a generator": (generator(), "by their numbers"),
    "texts": ([["a", "b"]], "token ids"),
    "texts in rows": (Rows([{"input_ids": [1], "text": "a"}] * 2), "columns of text"),
    "lists as several columns": (UNEVEN, "one column"),
    "columns of other lengths": ([torch.ones(3, 8), torch.ones(4)], "as many in each"),
    "one record": ([torch.ones(1, 8)], "two or more"),
    "none": ([], "no tensor"),
    "rows of other columns": ([{"x": 1}, {"y": 1}], "row 1"),
    "images of other sizes": ([[torch.ones(3, 4), torch.ones(3, 5)]], "first dimension"),
    "uneven rows of a dataset": (Rows([torch.ones(2), torch.ones(3)]), "collate="),
}


@pytest.mark.parametrize("what", TAKEN)
def test_data_becomes_a_batch(what: str) -> None:
    given, expected = TAKEN[what]
    found = Records(given, where="train").batch(np.arange(3))
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = tuple(found.values()), tuple(expected.values())
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_taken_is_refused_at_once_with_a_hint(what: str) -> None:
    given, says = REFUSED[what]
    with pytest.raises(BadInput) as refusal:
        Records(given, where="train")
    assert says in str(refusal.value) and "train" in str(refusal.value)


def test_a_batch_is_padded_to_its_own_longest_record_and_a_plan_takes_the_longest_of_all() -> None:
    records = Records({"input_ids": UNEVEN}, where="train")
    assert records.batch(np.array([0, 1]))["input_ids"].shape == (2, 3)
    assert records.longest().tolist() == Records(Rows(TEXTS), where="train").longest().tolist() == [2]


def test_a_plan_takes_the_longest_of_every_column() -> None:
    records = Records({"inputs": [[1] * 9, [1]], "answers": [[1], [1] * 8]}, where="train")
    assert [item.shape[1] for item in (records.batch(records.longest())[name] for name in ("inputs", "answers"))] == [
        records.batch(np.array([0, 1]))[name].shape[1] for name in ("inputs", "answers")
    ]


@pytest.mark.parametrize(
    "given",
    [[[[1, 2], [0.5, 0.7, 0.1], [3, 4, 5]]], [{"input_ids": row} for row in ([1, 2], [0.5, 0.7, 0.1], [3, 4, 5])]],
)
def test_whole_and_broken_numbers_of_a_column_stay_what_they_are(given: Any) -> None:
    batch = Records(given, where="train").batch(np.array([0, 1]))
    values = batch["input_ids"] if isinstance(batch, dict) else batch[0]
    assert values.tolist() == pytest.approx(np.array([[1, 2, 0], [0.5, 0.7, 0.1]]))


def test_validation_batches_have_the_masks_that_training_batches_have() -> None:
    def masked(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (module(batch["input_ids"].float()[:, :1]) * batch["attention_mask"][:, :1]).squeeze(1)

    for train, validation in (
        ({"input_ids": UNEVEN}, {"input_ids": EVEN}),
        ({"input_ids": EVEN}, {"input_ids": UNEVEN}),
    ):
        learner = TensorLearner(nn.Linear(1, 1), masked, train=train, validation=validation)
        for records in (learner.train, learner.validation):
            assert list(records.batch(np.arange(2))) == ["input_ids", "attention_mask"]
    assert learner.train.digest() == Records({"input_ids": EVEN}, where="train").digest()


def test_a_validation_that_the_loss_cannot_take_apart_is_refused_before_an_epoch_is_trained() -> None:
    def first(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return module(batch["x"]).squeeze(1)

    with pytest.raises(BadInput, match="take a batch apart"):
        TensorLearner(nn.Linear(2, 1), first, train={"x": EVEN.float()}, validation={"y": EVEN.float()})


def test_an_empty_record_says_nothing_of_the_others_type() -> None:
    batch = Records({"input_ids": [[], [1, 2]]}, where="train").batch(np.array([0, 1]))
    assert batch["input_ids"].tolist() == [[0, 0], [1, 2]] and batch["input_ids"].dtype == torch.int64


def test_an_error_without_a_text_is_told_too() -> None:
    def fail(_: object) -> None:
        raise ValueError

    with pytest.raises(BadInput, match=r"got: +ValueError\n"):
        Records([{"x": 1}, {"x": 2}], where="train", collate=fail)


def test_other_data_have_another_digest() -> None:
    columns = {"x": EVEN, "y": EVEN + 1}
    others: list[Any] = [EVEN, EVEN + 1, EVEN.view(torch.float64), EVEN[..., None]]
    others += [[UNEVEN], [[*UNEVEN[1:], UNEVEN[0]]], columns, {"y": columns["x"], "x": columns["y"]}]
    digests = [Records(given, where="train").digest() for given in others]
    assert len({tuple(item) for item in digests}) == len(others)


def test_entries_of_a_list_have_a_digest_of_their_contents() -> None:
    entries: list[list[Any]] = [["a", "b"], ["b", "a"], TENSORS, TENSORS[::-1], [EVEN.numpy(), 1]]
    digests = [Records(given, where="train", collate=lambda items: EVEN).digest() for given in entries]
    assert len({tuple(item) for item in digests}) == len(entries)


def squares(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    (inputs,) = batch
    return module(inputs).square()  # (B, 1), not (B,)


def made(model: nn.Module, train: Any = None, **more: Any) -> TensorLearner:
    train = EVEN.float() if train is None else train
    return TensorLearner(model, squares, train=train, validation=train, **more)


def test_a_loss_that_is_not_one_number_a_record_is_refused() -> None:
    with pytest.raises(BadInput, match=r"shape \[2, 1\]") as refusal:
        made(nn.Linear(2, 1)).loss(nn.Linear(2, 1), np.arange(2), step_rows=np.arange(2))
    assert 'reduction="none"' in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "NoneType"),
        (0.5, "float"),
        ([torch.ones(2)] * 2, "list"),
        ((torch.ones(2), 1), r"a tensor of shape \[2\], int"),
        ((), ""),
    ],
)
def test_a_loss_that_gives_no_tensors_is_refused(given: Any, says: str) -> None:
    learner = made(nn.Linear(2, 1))
    learner.record_losses = lambda module, batch: given
    with pytest.raises(BadInput, match=rf"a number for every record\n +got: +{says}"):
        learner.validation_losses(learner.model, np.arange(2))
    with pytest.raises(BadInput, match="a number for every record"):
        plan(learner, TrainConfig(effective_batch=2), vram_bytes=1 << 30)


def test_a_loss_without_a_gradient_is_refused_where_there_should_be_one() -> None:
    learner, rows = made(nn.Linear(2, 1)), np.arange(2)
    learner.record_losses = lambda module, batch: module(*batch).squeeze(1).detach()
    with pytest.raises(BadInput, match="without a gradient"):
        learner.loss(learner.model, rows, step_rows=rows)
    learner.validation_losses(learner.model, rows)


class Scored(nn.Module):
    """Counts its passes and holds running statistics, and is called by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.map = nn.BatchNorm1d(2), nn.Linear(2, 1)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes = self.passes + 1
        return self.map(self.norm(inputs)).squeeze(1)


@pytest.mark.parametrize("call", [Scored.forward, nn.Module.__call__])
def test_a_model_is_tried_without_a_trace_whatever_way_its_loss_calls_it(call: Any) -> None:
    model = Scored()
    before = copy.deepcopy(model.state_dict())
    TensorLearner(model, lambda module, batch: call(module, *batch), train=EVEN.float(), validation=EVEN.float())
    assert all(torch.equal(item, before[name]) for name, item in model.state_dict().items())


class OwnState(nn.Linear):
    def get_extra_state(self) -> Tensor:
        return torch.zeros(())


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Flatten(), "no parameters"),
        (nn.Sequential(nn.LazyLinear(1)), "0.weight, 0.bias"),
        (nn.Sequential(nn.Linear(2, 1), nn.LazyBatchNorm1d()), "1.weight, 1.bias, 1.running_mean"),
        (nn.Sequential(OwnState(2, 1)), "get_extra_state"),
    ],
)
def test_a_model_that_would_not_be_trained_or_found_again_is_refused_by_name(model: nn.Module, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        made(model)


def test_a_loss_that_cannot_take_a_batch_apart_is_told_at_once_what_it_is_given() -> None:
    with pytest.raises(BadInput, match="unpack") as refusal:
        made(nn.Linear(2, 1), [EVEN.float(), EVEN])
    assert "torch.int64 [2, 2]" in str(refusal.value)


def test_the_loss_is_tried_without_the_model_and_without_a_draw() -> None:
    def noisy(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return module(batch[0] + torch.randn_like(batch[0]))

    class Counting(nn.Linear):
        calls = 0

        def forward(self, input: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(input)

    model, before = Counting(2, 1), torch.get_rng_state()
    TensorLearner(model, noisy, train=[EVEN.float()], validation=[EVEN.float()])
    assert model.calls == 0 and torch.equal(torch.get_rng_state(), before) and not model._forward_pre_hooks


def test_a_wrong_name_and_sparse_gradients_are_refused_with_a_hint() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with pytest.raises(BadInput, match="no such submodule") as refusal:
        made(model, modules=["0", "l"])
    assert "leave `modules` out" in str(refusal.value)
    with pytest.raises(BadInput, match="sparse"):
        made(nn.Sequential(nn.Embedding(4, 2, sparse=True)))
    # A module may be called so.
    made(nn.Sequential(OrderedDict(sparse=nn.Linear(2, 1))))
