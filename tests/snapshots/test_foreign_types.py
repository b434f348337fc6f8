"""Tensors of every type arrive bit for bit, or are refused in one message with their name and type."""

import json
import struct
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from redheart.cli import main
from redheart.core.errors import BadInput, CorruptFile, RedHeartError
from redheart.snapshots.consolidate import write_model
from redheart.snapshots.foreign import open_foreign, problems_against
from redheart.snapshots.tensor_file import DTYPE_NAMES, TensorReader

BYTES = torch.arange(96, dtype=torch.uint8)


def with_bits(dtype: torch.dtype) -> Tensor:
    """Not every bit pattern is a truth value."""
    return BYTES.remainder(2).bool() if dtype == torch.bool else BYTES.view(dtype)


def imported(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """What the format's own library reads after an import of a file of torch.save."""
    torch.save(tensors, folder / "model.pt")
    found = open_foreign(folder / "model.pt")
    out = folder / "out.safetensors"
    write_model(out, found.tensors, source=folder, provenance={})
    with safe_open(out, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat = [item.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8) for item in (one, other)]
    return torch.equal(*flat)


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_every_type_of_the_format_arrives_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {
        "layer.weight": with_bits(dtype).reshape(2, -1),
        "layer.one": with_bits(dtype)[3],
        "layer.none": with_bits(dtype)[:0],
    }
    found = imported(tensors, tmp_path)
    assert set(found) == set(tensors) and all(same_bits(found[name], tensor) for name, tensor in tensors.items())
    again = open_foreign(tmp_path / "out.safetensors").tensors
    assert all(same_bits(again[name], tensor) for name, tensor in tensors.items())


def test_views_and_wrappers_arrive_as_what_they_show(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    pair = torch.arange(6.0).reshape(3, 2)
    turned, other = torch.view_as_complex(pair).conj(), torch.view_as_complex(pair.clone()).conj()
    tensors = {
        "a.tied": base,
        "a.same": base,
        "a.part": base[1:3, ::2],
        "a.turned": base.T,
        "a.expanded": torch.ones(1).expand(5, 3),
        "a.conjugate": turned,
        "a.negative": other.imag,
        "a.parameter": nn.Parameter(base + 1),
        "a.buffer": nn.Buffer(base + 2),
        "a.number": torch.tensor(3),
    }
    found = imported(tensors, tmp_path)
    assert set(found) == set(tensors) and all(same_bits(found[name], tensor) for name, tensor in tensors.items())


def refused() -> dict[str, Tensor]:
    """Tensors of kinds that are refused, by a part of what is said of them."""
    layouts = {"sparse_coo": torch.sparse_coo, "sparse_csr": torch.sparse_csr, "sparse_bsr": torch.sparse_bsr}
    with warnings.catch_warnings():
        # Half of these are called experimental by torch, the others deprecated.
        warnings.simplefilter("ignore")
        return {
            "complex128 [2]: torch.view_as_real": torch.ones(2, dtype=torch.complex128),
            "complex32 [2]: torch.view_as_real": torch.ones(2, dtype=torch.complex64).to(torch.complex32),
            "float4_e2m1fn_x2 [2]: tensor.view(torch.uint8)": torch.empty(2, dtype=torch.float4_e2m1fn_x2),
            "bits8 [2]: tensor.view(torch.uint8)": torch.empty(2, dtype=torch.bits8),
            "qint8 [3], quantised: tensor.dequantize()": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            **{
                f"float32 [4, 4] in the layout {name}: tensor.to_dense()": torch.eye(4).to_sparse(
                    layout=layout, **({"blocksize": (2, 2)} if "bsr" in name else {})
                )
                for name, layout in layouts.items()
            },
            "float16 [3] on the device `meta`": torch.ones(3, dtype=torch.float16, device="meta"),
            "nested float32 tensor: torch.nested.to_padded": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "float32 [100000, 100000], which repeats": torch.ones(1).expand(100_000, 100_000),
        }


REFUSED = refused()


def test_all_that_cannot_be_written_is_named_in_one_message(tmp_path: Path) -> None:
    tensors = {f"layer.{index}": tensor for index, tensor in enumerate(REFUSED.values())}
    torch.save({"layer.weight": torch.ones(2), **tensors}, tmp_path / "model.pt")
    with pytest.raises(BadInput) as refusal:
        open_foreign(tmp_path / "model.pt")
    said = str(refusal.value).splitlines()
    assert said[0].startswith(f"{len(REFUSED)} tensors ")
    for line, (name, expected) in zip(said[1:], zip(tensors, REFUSED, strict=True), strict=False):
        assert line.strip().startswith(f"{name}: ") and expected in line


@pytest.mark.parametrize("problem", REFUSED)
def test_what_is_left_out_may_be_of_any_type(problem: str, tmp_path: Path) -> None:
    torch.save(
        {"model": {"layer.weight": torch.ones(2)}, "kept": [REFUSED[problem]], "epoch": 3}, tmp_path / "model.pt"
    )
    found = open_foreign(tmp_path / "model.pt")
    assert list(found.tensors.specs) == ["layer.weight"] and found.ignored == ["kept"]


def raw_file(path: Path, header: dict[str, object], size: int) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "I4", "C128", "made up", ""])
def test_a_sound_file_of_an_unknown_type_is_called_sound(dtype: str, tmp_path: Path) -> None:
    entry = {"dtype": dtype, "shape": [4, 2], "data_offsets": [4, 8]}
    known = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    path = raw_file(tmp_path / "model.safetensors", {"w": known, "first": entry, "second": entry}, 8)
    with pytest.raises(BadInput, match="of a type that is not known") as refusal:
        open_foreign(path)
    assert refusal.value.got == f"first: {dtype} [4, 2]; second: {dtype} [4, 2]"


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F8_E5M2", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "U16", "shape": [2], "data_offsets": [6, 10]},
        {"dtype": "C64", "shape": [1 << 40, 1 << 40, 0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [0, 1 << 63], "data_offsets": [0, 0]},
    ],
)
def test_a_header_that_lies_is_a_damaged_file_in_words(entry: dict[str, object], tmp_path: Path) -> None:
    path = raw_file(tmp_path / "model.safetensors", {"layer": entry}, 8)
    with pytest.raises(CorruptFile) as refusal:
        TensorReader(path)
    assert "_Slice" not in str(refusal.value) and "layer" in str(refusal.value)


@pytest.mark.parametrize(
    ("first", "second", "size"), [((0, 8), (0, 8), 16), ((0, 8), (8, 16), 20), ((0, 8), (9, 17), 17)]
)
def test_tensors_that_overlap_and_bytes_of_none_are_a_damaged_file(
    first: tuple[int, int], second: tuple[int, int], size: int, tmp_path: Path
) -> None:
    a, b = ({"dtype": "F32", "shape": [2], "data_offsets": place} for place in (first, second))
    path = raw_file(tmp_path / "model.safetensors", {"a": a, "b": b}, size)
    with pytest.raises(CorruptFile, match="overlap"):
        TensorReader(path)
    with pytest.raises(SafetensorError, match="header"):
        load_file(path)


@settings(max_examples=200)
@given(
    dtype=st.sampled_from([*DTYPE_NAMES.values(), "F4", "F128", "\0"]),
    shape=st.lists(st.integers(-2, 9) | st.integers(2**31, 2**64), max_size=4),
    offsets=st.tuples(st.integers(-3, 20), st.integers(-3, 20)),
)
def test_any_entry_of_a_header_is_read_or_refused(
    dtype: str, shape: list[int], offsets: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    path = raw_file(tmp_path_factory.mktemp("header") / "model.safetensors", {"layer": entry}, 16)
    try:
        reader = TensorReader(path)
    except RedHeartError as refusal:
        assert "_Slice" not in str(refusal)
        return
    assert list(reader["layer"].shape) == shape


def test_weights_of_eight_bits_stand_beside_others_and_are_not_converted_without_their_scale(tmp_path: Path) -> None:
    eight = torch.tensor([0.5, 448.0]).to(torch.float8_e4m3fn)
    save_file({"a.weight": torch.ones(2), "b.weight": eight}, tmp_path / "plain.safetensors")
    plain = open_foreign(tmp_path / "plain.safetensors").tensors
    assert problems_against(plain, None, dtype=None) == [] == problems_against(plain, None, dtype=torch.float32)
    scaled = {"a.weight": torch.ones(2), "b.weight": eight, "b.weight_scale_inv": torch.ones(1)}
    save_file(scaled, tmp_path / "scaled.safetensors")
    found = open_foreign(tmp_path / "scaled.safetensors").tensors
    assert problems_against(found, None, dtype=None) == []
    assert problems_against(found, None, dtype=torch.float32) == [
        "b.weight: float8_e4m3fn [2] is a weight only once b.weight_scale_inv is applied, which --dtype does not do"
    ]


def test_the_command_refuses_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save({"layer.mask": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name, said in (("module", "wants to run code"), ("sparse", "layer.mask"), ("old", "torch 1.6")):
        with pytest.raises(SystemExit) as ended:
            main(["snapshots", "import", str(tmp_path / f"{name}.pt"), "--out", str(tmp_path / "out.safetensors")])
        assert ended.value.code == 2 and said in capsys.readouterr().err
