"""From a file of records to a prepared folder: validated, without near-duplicates, split, with a manifest."""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from safetensors.numpy import load_file, save

from redheart.core.config import FeatureConfig, PrepareConfig, digest
from redheart.core.errors import BadInput, listed
from redheart.core.files import (
    check_digests,
    is_sealed,
    read_json,
    read_sealed,
    sha256_file,
    write_bytes,
    write_json,
    write_sealed,
)
from redheart.core.folders import new_folder, refuse_foreign
from redheart.data.generator import generate
from redheart.data.input_text import folded, input_text
from redheart.data.inventory import Inventory
from redheart.data.near_duplicates import near_duplicates
from redheart.data.records import Record, Row, read_rows
from redheart.data.schemas import class_names_path, parse_rows
from redheart.data.scripts import counted, foreign_script
from redheart.data.split import Split, split_rows

MIN_LABELLED = 2
"""Records with a target that every part of the split needs: models are compared on two or more."""


class Source(msgspec.Struct, frozen=True):
    """Where the records came from."""

    path: str
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a prepared folder holds and how it was made."""

    schema: str
    source: Source
    read: int
    invalid: int
    duplicates: int
    train: int
    val_select: int
    val_confirm: int
    test: int
    best_reachable: float | None
    """Lowest emotion cross-entropy that any model can reach, in nats; known for generated records only."""
    seed: int
    key: str
    """Digest of everything that decides the content."""
    inventory: Inventory
    files: dict[str, str]
    """SHA-256 by file name."""
    scripts: dict[str, int] | None = None
    """Records by script, of those that are not in Latin letters; None in a folder of before this was counted."""

    @property
    def num_records(self) -> int:
        """Of all parts of the split."""
        return self.train + self.val_select + self.val_confirm + self.test

    @property
    def text(self) -> str:
        """What became of the records, in a line."""
        invalid = f"{self.invalid:,} malformed, " if self.invalid else ""
        return (
            f"{self.read:,} read, {invalid}{self.duplicates:,} near-duplicates; train {self.train:,}, "
            f"val {self.val_select:,} + {self.val_confirm:,}, test {self.test:,}"
        )


@dataclass(frozen=True)
class Prepared:
    """A prepared data set in memory. N records, T target columns."""

    folder: Path
    manifest: Manifest
    inventory: Inventory
    records: list[Record]
    values_NT: np.ndarray
    """float32, 0 where absent."""
    mask_NT: np.ndarray
    """bool, True where present."""
    split: Split
    """Rows by part; the test part is closed."""


def prepare(
    source: Path | None,
    *,
    out: Path,
    config: PrepareConfig,
    seed: int,
    text_chars: int = FeatureConfig.text_chars,
    replace: bool = True,
) -> Manifest:
    """Prepare a file of records, or generated ones where `source` is None, into the folder `out`.

    A folder that was made from the same content with the same settings is kept as it is; one of other content is
    replaced, unless `replace` is False. Then what an older version made of the same file is kept too, so that a run
    that was started with it goes on with its own split; and what is prepared stands for a file that is gone.

    Near-duplicates are judged on the `text_chars` characters of a text that the encoder reads.

    Raises:
        BadInput: the file or its records are malformed; all problems are listed. Or the folder holds other content
            and must not be replaced, or what this program did not write there.
        DiskError: the folder cannot be written; nothing is left of it.
    """
    manifest = read_sealed(out / "manifest.json", Manifest) if is_sealed(out / "manifest.json") else None
    if manifest is None:
        refuse_foreign(out, contents)
    elif not replace and source is not None and not source.exists():
        return load_prepared(out).manifest
    best_reachable = None
    if source is None:
        raw, best_reachable = generate(config.num_generated, seed=seed)
        rows, kind = [Row(f"record {index}", row) for index, row in enumerate(raw)], "json"
        origin = Source("generated", digest(raw))
    else:
        kind, rows = read_rows(source)
        origin = Source(str(source), sha256_file(source))
    labels = class_names_path(source) if source and kind == "tsv" else None
    keys = _keys(origin, labels, config=config, seed=seed, text_chars=text_chars)
    if manifest:
        if manifest.key == keys[0] or (manifest.key in keys and not replace):
            return load_prepared(out).manifest
        if not replace:
            hint = "restore the file, or choose another --out for the changed one"
            if labels and manifest.source.sha256 == origin.sha256:
                classes = ", ".join(manifest.inventory.task("emotion").targets)
                what = "the class names are not those that this run was started with"
                raise BadInput(what, where=labels, expected=classes, hint=hint)
            raise BadInput(
                "the records are not those that this run was started with",
                where=source or "generated records",
                got=f"SHA-256 {origin.sha256}",
                expected=manifest.source.sha256,
                hint=hint,
            )
        refuse_foreign(out, contents)
    parsed = parse_rows(source or Path("generated.json"), kind, rows)
    if parsed.problems and not config.skip_invalid:
        raise BadInput(
            f"{len(parsed.problems)} problems in {parsed.num_invalid} records{listed(parsed.problems)}",
            where=source,
            hint="correct the records, or drop them with --prepare.skip-invalid: invalid.jsonl keeps what is wrong",
        )
    if not parsed.records:
        raise BadInput("no record is left", where=source, got=f"{parsed.num_invalid} malformed records")

    records = sorted(parsed.records, key=lambda record: record.id)
    # Judged on what the encoder reads of them.
    texts = [folded(input_text(record, text_chars=text_chars)) for record in records]
    alike = near_duplicates(texts, similarity=config.duplicate_similarity)
    kept_N = np.ones(len(records), dtype=bool) if config.keep_duplicates else alike.kept_N
    members: dict[int, list[str]] = {}
    for record, cluster in zip(records, alike.clusters_N, strict=True):
        members.setdefault(int(cluster), []).append(record.id)
    records = [record for record, kept in zip(records, kept_N, strict=True) if kept]
    values_NT, mask_NT = target_arrays(records, parsed.inventory)
    split = split_rows(emotion_classes(values_NT, mask_NT, parsed.inventory), alike.clusters_N[kept_N], seed=seed)
    labelled = {part: int(mask_NT[rows_of_part].any(1).sum()) for part, rows_of_part in split.items()}
    if min(labelled.values()) < MIN_LABELLED:
        raise BadInput(
            "too few records to split",
            where=source,
            got=f"{len(records)} records; with a target: "
            + ", ".join(f"{n} in {part}" for part, n in labelled.items()),
            expected=f"{MIN_LABELLED} with a target in every part, which takes at least 40 records",
            hint="give more records, or label more of them",
        )

    with new_folder(out, contents) as folder:
        lines = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
        write_bytes(folder / "records.jsonl.gz", gzip.compress(lines, mtime=0))
        tensors = {"values_NT": values_NT, "mask_NT": mask_NT.astype(np.uint8)}
        write_bytes(folder / "targets.safetensors", save(tensors))
        write_json(folder / "split.json", {part: rows_of_part.tolist() for part, rows_of_part in split.items()})
        write_json(folder / "clusters.json", [ids for ids in members.values() if len(ids) > 1])
        if parsed.problems:
            text = b"".join(msgspec.json.encode(problem) + b"\n" for problem in parsed.problems)
            write_bytes(folder / "invalid.jsonl", text)
        manifest = Manifest(
            schema=parsed.schema,
            source=origin,
            read=len(rows),
            invalid=parsed.num_invalid,
            duplicates=int((~kept_N).sum()),
            **{part: len(rows_of_part) for part, rows_of_part in split.items()},
            best_reachable=best_reachable,
            seed=seed,
            key=keys[0],
            inventory=parsed.inventory,
            files={item.name: sha256_file(item) for item in sorted(folder.iterdir())},
            scripts=counted(foreign_script(input_text(record, text_chars=text_chars)) for record in records),
        )
        write_sealed(folder / "manifest.json", manifest)
    return manifest


def contents(folder: Path) -> set[str]:
    """Names of the files of a prepared folder, by its manifest.

    Raises:
        BadInput: there is no manifest of a prepared folder.
        CorruptFile: it was changed.
    """
    return {"manifest.json", *read_sealed(folder / "manifest.json", Manifest).files}


def load_prepared(folder: Path) -> Prepared:
    """Read a prepared folder and check every file against its digest.

    Raises:
        BadInput: there is no prepared folder.
        CorruptFile: a file does not match the manifest.
    """
    manifest = read_sealed(folder / "manifest.json", Manifest)
    hint = "remove the folder and run `redheart prepare` again"
    check_digests(folder, manifest.files, what="a prepared file is damaged", hint=hint)
    lines = gzip.decompress((folder / "records.jsonl.gz").read_bytes()).split(b"\n")[:-1]
    tensors = load_file(folder / "targets.safetensors")
    split = read_json(folder / "split.json", dict[str, list[int]])
    return Prepared(
        folder=folder,
        manifest=manifest,
        inventory=manifest.inventory,
        records=[msgspec.json.decode(line, type=Record) for line in lines],
        values_NT=tensors["values_NT"],
        mask_NT=tensors["mask_NT"].astype(bool),
        split=Split({part: np.array(rows, dtype=np.int64) for part, rows in split.items()}),
    )


def target_arrays(records: Sequence[Record], inventory: Inventory) -> tuple[np.ndarray, np.ndarray]:
    """Targets (N, T) float32, 0 where absent, and their mask (N, T) bool."""
    flat = [[value for task in inventory.tasks for value in record.targets[task.name]] for record in records]
    mask_NT = np.array([[value is not None for value in row] for row in flat], dtype=bool)
    values_NT = np.array([[value or 0.0 for value in row] for row in flat], dtype=np.float32)
    return values_NT, mask_NT


def emotion_classes(values_NT: np.ndarray, mask_NT: np.ndarray, inventory: Inventory) -> np.ndarray:
    """Arg-max emotion of every record (the first of a tie), -1 where it has none, (N,) int64."""
    columns = inventory.columns("emotion")
    return np.where(mask_NT[:, columns].any(1), values_NT[:, columns].argmax(1), -1)


def _keys(origin: Source, labels: Path | None, *, config: PrepareConfig, seed: int, text_chars: int) -> tuple[str, ...]:
    """Digest of everything that decides the content, and behind it what older versions called the same."""
    fingerprint = {"source": origin.sha256, "config": config, "seed": seed}
    classes = sha256_file(labels) if labels and labels.is_file() else None
    return (
        digest({"version": 2, **fingerprint, "classes": classes, "text_chars": text_chars}),
        # Near-duplicates were judged on the text alone, as it stood.
        digest({"version": 1, **fingerprint}),
    )


def near_duplicate_groups(prepared: Prepared) -> np.ndarray:
    """A number for every record that its near-duplicates have too, and no other record, (N,)."""
    group_of = {
        record_id: index
        for index, ids in enumerate(read_json(prepared.folder / "clusters.json", list[list[str]]))
        for record_id in ids
    }
    alone = len(group_of)
    return np.array([group_of.get(record.id, alone + row) for row, record in enumerate(prepared.records)])
