"""Differences give back every bit, whatever the two snapshots hold, and are refused when anything was changed."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from redheart.core.errors import CorruptFile
from redheart.snapshots.delta import read_delta, write_delta
from redheart.snapshots.manifests import Delta
from redheart.snapshots.tensor_file import content_sha256, verify, write_tensors
from redheart.snapshots.tensors import Tensors, spec_of

BASE = Delta(base="epoch_0002", base_sha256="b", content_sha256="c", content_bytes=1)
PATTERNS = hnp.arrays(np.uint16, st.integers(0, 300))


def from_bits(bits: np.ndarray) -> Tensor:
    return torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16)


def same_bits(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first.view(torch.int16), second.view(torch.int16))


@settings(max_examples=150)
@given(data=st.data(), new=PATTERNS)
def test_every_pattern_of_bits_comes_back(data: st.DataObject, new: np.ndarray, tmp_path_factory: object) -> None:
    folder: Path = tmp_path_factory.mktemp("delta")  # type: ignore[attr-defined]
    old = data.draw(hnp.arrays(np.uint16, len(new)))
    tensors = {"w": from_bits(new), "only_new": from_bits(new[::-1].copy())}
    base = {"w": from_bits(old), "only_old": from_bits(old)}
    entry = write_delta(folder / "m.delta", tensors, base, delta=BASE)
    found = read_delta(verify(folder, entry), base)
    assert list(found) == list(tensors) and entry.delta == BASE
    for name, tensor in tensors.items():
        assert same_bits(found[name], tensor)


def test_all_patterns_against_all_kinds_of_neighbours(tmp_path: Path) -> None:
    every = np.arange(65536, dtype=np.uint16)
    for number, old in enumerate((every, every[::-1].copy(), np.roll(every, 1), np.zeros_like(every), every ^ 0x8000)):
        path = tmp_path / f"{number}.delta"
        write_delta(path, {"w": from_bits(every)}, {"w": from_bits(old)}, delta=BASE)
        assert same_bits(read_delta(path, {"w": from_bits(old)})["w"], from_bits(every))


def test_close_weights_take_less_than_half_and_shapes_that_changed_are_kept_whole(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(64, 1024, generator=generator)
    new = old * (1 + 0.01 * torch.randn(64, 1024, generator=generator))
    tensors = {"w": new.bfloat16(), "reshaped": new.bfloat16()}
    base = {"w": old.bfloat16(), "reshaped": old.bfloat16().reshape(-1)}
    entry = write_delta(tmp_path / "m.delta", {"w": tensors["w"]}, base, delta=BASE)
    assert entry.bytes < 0.5 * tensors["w"].nbytes
    write_delta(tmp_path / "n.delta", tensors, base, delta=BASE)
    assert same_bits(read_delta(tmp_path / "n.delta", base)["reshaped"], tensors["reshaped"])


def test_a_tensor_of_the_base_is_read_once(tmp_path: Path) -> None:
    tensors = {"w": torch.ones(2, 3).bfloat16(), "new": torch.ones(2).bfloat16()}
    old, reads = {"w": tensors["w"]}, []

    def read(name: str) -> Tensor:
        found = old[name]
        reads.append(name)
        return found

    base = Tensors({"w": spec_of(tensors["w"])}, read)
    assert "w" in base and "new" not in base and reads == []
    write_delta(tmp_path / "m.delta", tensors, base, delta=BASE)
    assert reads == ["w"]


def test_a_broken_file_or_another_base_is_refused(tmp_path: Path) -> None:
    tensors, base = {"w": torch.randn(500).bfloat16()}, {"w": torch.randn(500).bfloat16()}
    path = tmp_path / "m.delta"
    entry = write_delta(path, tensors, base, delta=BASE)
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(CorruptFile, match=r"m\.delta"):
            verify(tmp_path, entry)
        # Without the digest in front: a tensor, or an error that names the file, but never another exception.
        with contextlib.suppress(CorruptFile, KeyError):
            read_delta(path, base)["w"]
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="does not fit its base"):
        read_delta(path, {"w": base["w"][:100]})["w"]
    with pytest.raises(CorruptFile, match="cannot be read"):
        read_delta(path, {})["w"]


def test_put_together_they_are_the_same_file(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(5, 3).bfloat16(), "a": torch.zeros(0, 2).bfloat16(), "c": torch.tensor(1.0).bfloat16()}
    original = write_tensors(tmp_path / "m.safetensors", tensors)
    write_delta(tmp_path / "m.delta", tensors, {"b": torch.randn(5, 3).bfloat16()}, delta=BASE)
    reader = read_delta(tmp_path / "m.delta", {"b": torch.randn(5, 3).bfloat16()})
    assert reader.specs == {name: spec_of(tensor) for name, tensor in tensors.items()}
    assert content_sha256(reader) != original.sha256
    write_delta(tmp_path / "m.delta", tensors, {}, delta=BASE)
    reader = read_delta(tmp_path / "m.delta", {})
    assert content_sha256(reader) == original.sha256
