"""`snapshots consolidate` and `snapshots import`: whole models as safetensors."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from redheart.cli.options import Flag, RunOptions, answer, display_of, parse, refuse_among_own_files, refuse_own_input
from redheart.core.config import Preset
from redheart.core.errors import MAX_PROBLEMS, BadInput, RedHeartError, names_text
from redheart.core.units import MB

if TYPE_CHECKING:
    from redheart.model.network import RedHeart


@dataclass(frozen=True, kw_only=True)
class ConsolidateOptions(RunOptions):
    """Write a model of the run as one safetensors file, tensor by tensor."""

    out: Path
    """File to write; it appears whole or not at all."""
    epoch: int | None = None
    """Snapshot to take; empty takes the newest."""
    from_state: Flag = False
    """Take the float32 masters of the newest resume state instead."""
    dtype: Literal["fp32", "bf16"] | None = None
    """Empty keeps what the source holds: bf16 of a snapshot, fp32 of a state."""


@dataclass(frozen=True)
class ImportOptions:
    """Read a model of another tool without running anything that is in its files, and write it as safetensors."""

    source: Annotated[Path, tyro.conf.Positional]
    """A DeepSpeed ZeRO or accelerate folder, or a .pt, .bin or .safetensors file."""
    out: Path
    """A .safetensors file; or a folder, for a file per module of the preset."""
    preset: Preset | None = None
    """Hold names and shapes against this preset of the model."""
    like: Path | None = None
    """Hold names and shapes against the model of this run instead."""
    part: str = ""
    """Key of the model in a file that holds several, dots between keys: `ema` or `state.model`; empty looks for it."""
    dtype: Literal["fp32", "bf16"] | None = None
    """Convert floating-point tensors; empty keeps their type."""
    json: Flag = False


def consolidate(arguments: Sequence[str]) -> None:
    options = parse(ConsolidateOptions, arguments, "snapshots consolidate")

    from redheart.snapshots.consolidate import consolidated
    from redheart.snapshots.module_snapshots import Snapshot
    from redheart.snapshots.states import State, newest_state, open_masters
    from redheart.study import run_folder
    from redheart.study.selecting import open_snapshots

    run, _ = run_folder.load(options.run)
    refuse_among_own_files(options.out, run)
    states = run.states
    source: Snapshot | State | None
    with ExitStack() as reading:
        # Where no lock can be had nobody rewrites a snapshot either.
        with suppress(RedHeartError):
            reading.enter_context(run_folder.reading_snapshots(run))
        if options.from_state:
            if options.epoch is not None:
                raise BadInput("--epoch names a snapshot and --from-state a resume state", hint="give one of them")
            if (source := newest_state(states)) is None:
                raise BadInput(
                    "the run has no resume state",
                    where=states,
                    hint="train first: the first one is written after --train.state-every-minutes, or at the end",
                )
            size = sum(spec.bytes for spec in open_masters(source).specs.values())
        else:
            by_epoch = {item.epoch: item for item in open_snapshots(run)}
            epoch = max(by_epoch) if options.epoch is None else options.epoch
            if epoch not in by_epoch:
                expected = ", ".join(map(str, by_epoch))
                raise BadInput("there is no snapshot of that epoch", where="--epoch", got=epoch, expected=expected)
            source = by_epoch[epoch]
            size = sum(entry.content_bytes for entry in source.manifest.modules.values())
        with display_of(options.json).track("consolidate", size, unit="bytes") as advance:
            made = consolidated(source, options.out, dtype=options.dtype, on_tensor=advance)
    text = f"{made.file}: {made.num_tensors} tensors, {made.dtype}, {made.bytes / MB:.2f} MB, from {made.source}"
    answer(made, text, as_json=options.json)


def import_model(arguments: Sequence[str]) -> None:
    options = parse(ImportOptions, arguments, "snapshots import")

    from redheart.model.ledger import module_names
    from redheart.snapshots.consolidate import DTYPES, SUFFIX, in_type, write_model, write_modules
    from redheart.snapshots.foreign import files_read, open_foreign, problems_against, refuse_problems
    from redheart.snapshots.tensors import spec_of

    refuse_own_input(options.out, files_read(options.source))
    refuse_among_own_files(options.out)
    model = _expected_model(options)
    if model is None and options.out.suffix != SUFFIX:
        raise BadInput(
            "a file per module needs to know the modules",
            where="--out",
            got=options.out,
            expected=f"a name that ends in {SUFFIX}, or --preset or --like as well",
        )
    expected = None if model is None else {name: spec_of(tensor) for name, tensor in model.state_dict().items()}
    found = open_foreign(options.source, part=options.part, expected=expected or ())
    dtype = DTYPES[options.dtype] if options.dtype else None
    refuse_problems(problems_against(found.tensors, expected, dtype=dtype), options.source)
    specs = found.tensors.specs
    size = sum(spec.bytes for spec in specs.values())
    with display_of(options.json).track("import", size, unit="bytes") as advance:
        tensors = in_type(found.tensors, dtype, advance)
        if options.out.suffix == SUFFIX:
            write_model(options.out, tensors, source=options.source, provenance={"from": found.kind})
        elif model is not None:
            write_modules(options.out, tensors, module_names(model))
    made = {
        "kind": found.kind,
        "out": str(options.out),
        "num_tensors": len(specs),
        "num_elements": sum(spec.num_elements for spec in specs.values()),
        "ignored": found.ignored,
        "prefix": found.prefix,
        "together": found.together,
        "is_checked": expected is not None,
    }
    lines = [f"{options.out}: {made['num_tensors']} tensors, {made['num_elements']:,} elements, from a {found.kind}"]
    if found.prefix:
        lines.append(f"taken from before every name: {found.prefix}")
    if found.together:
        lines.append(f"taken together as parts of one model: {', '.join(found.together)}; --part takes one")
    if found.ignored:
        lines.append(f"left out: {names_text(found.ignored, shown=MAX_PROBLEMS)}")
    if expected is None:
        lines.append("names and shapes were held against nothing: --preset or --like does")
    answer(made, "\n".join(lines), as_json=options.json)


def _expected_model(options: ImportOptions) -> "RedHeart | None":
    """The model that an import is held against, on no device."""
    if options.preset and options.like:
        raise BadInput("--preset and --like both say what is expected", hint="give one of them")
    if not options.preset and not options.like:
        return None
    from redheart.model.dims import preset
    from redheart.model.network import build
    from redheart.study import run_folder
    from redheart.study.evaluating import inventory_of

    if options.preset:
        return build(preset(options.preset), seed=0, device="meta")
    assert options.like
    folder, config = run_folder.load(options.like)
    return build(preset(config.preset, outputs=inventory_of(folder).outputs), seed=0, device="meta")
