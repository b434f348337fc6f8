"""A crossover as a merge of mergekit's (https://github.com/arcee-ai/mergekit), for those who work with that.

`mergekit-pytorch` reads whole files of tensors by their names in the model, so each epoch that the crossover takes
something from is written as one such file, with the modules that are taken from it and no others.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from redheart.core.errors import BadInput
from redheart.core.files import read_sealed, shown, write_bytes, write_sealed
from redheart.core.folders import new_folder, refuse_foreign
from redheart.snapshots.blend import Blend
from redheart.snapshots.consolidate import Specs, checked_module
from redheart.snapshots.manifests import MANIFEST
from redheart.snapshots.module_snapshots import Snapshot
from redheart.snapshots.tensor_file import write_tensors
from redheart.snapshots.tensors import whole


class MergeFiles(msgspec.Struct, frozen=True):
    """What a folder beside a merge holds."""

    mergekit_files: dict[str, str]
    """SHA-256 by file name."""


def export_mergekit(path: Path, *, choice: Mapping[str, Blend], snapshots: Sequence[Snapshot], expected: Specs) -> None:
    """Write the merge as YAML to `path` and the tensors that it needs to a folder of the same name without suffix.

    `mergekit-pytorch --tensor-union FILE OUT` then makes the model. The files are named by absolute paths. No module's
    name may stand in another's tensors: mergekit asks whether a filter occurs anywhere in a tensor's name.

    Raises:
        BadInput: as `tensors_folder`.
        CorruptFile: a file of a snapshot does not match its digest, or holds other tensors than expected.
        DiskError: the files cannot be written.
    """
    folder = tensors_folder(path)
    epochs = sorted({epoch for blend in choice.values() for epoch in blend.epochs})
    by_epoch = {snapshot.epoch: snapshot for snapshot in snapshots}
    files = {}
    with new_folder(folder, _contents) as temporary:
        for epoch in epochs:
            taken = [name for name, blend in choice.items() if epoch in blend.epochs]
            parts = {name: checked_module(by_epoch[epoch], name, expected[name]) for name in taken}
            entry = write_tensors(temporary / f"epoch_{epoch:04d}.safetensors", whole(parts))
            files[entry.file] = entry.sha256
        write_sealed(temporary / MANIFEST, MergeFiles(files))
    lines = ["# Made by Red Heart. Run: mergekit-pytorch --tensor-union THIS_FILE OUT"]
    for name, blend in choice.items():
        digests = ", ".join(by_epoch[epoch].manifest.modules[name].content_sha256[:16] for epoch in blend.epochs)
        lines.append(f"# {name}: {blend} (SHA-256 {digests})")
    lines += ["merge_method: linear", "dtype: bfloat16", "parameters:", "  normalize: true", "models:"]
    for epoch in epochs:
        lines.append(f"  - model: {_quoted(str(folder / f'epoch_{epoch:04d}.safetensors'))}")
        lines += ["    parameters:", "      weight:"]
        for name, blend in choice.items():
            if epoch in blend.epochs:
                share = blend.weights[blend.epochs.index(epoch)]
                lines += [f"        - filter: {_quoted(f'{name}.')}", f"          value: {share!r}"]
        lines.append("        - value: 0.0")
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def _quoted(text: str) -> str:
    """As YAML reads it; beyond U+FFFF JSON's escapes are two halves, of which YAML makes two characters."""
    return json.dumps(text, ensure_ascii=False)


def tensors_folder(path: Path) -> Path:
    """The folder of tensors beside a merge, free to be written.

    Raises:
        BadInput: the path has no suffix or cannot stand in YAML, or another folder or file is in the way.
    """
    if not path.suffix:
        raise BadInput("a mergekit file needs a suffix", where=path, expected="a name such as merge.yaml")
    folder = path.with_suffix("").absolute()
    if shown(folder) != str(folder):
        raise BadInput("mergekit reads paths in UTF-8", where=path, got=shown(folder), hint="choose another folder")
    refuse_foreign(folder, _contents)
    return folder


def _contents(folder: Path) -> set[str]:
    return {MANIFEST, *read_sealed(folder / MANIFEST, MergeFiles).mergekit_files}
