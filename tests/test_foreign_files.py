"""Whatever command is run, however it ends: files that are not of this program stay, byte for byte."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redheart.cli import COMMANDS, main
from redheart.cli.snapshots import SUBCOMMANDS
from redheart.core import files
from redheart.data.generator import generate
from redheart.study.run_folder import RunFolder

TRAINING = [
    *("--prepare.num-generated", "160", "--features.encoder", "hash", "--features.seq-len-tokens", "8"),
    *("--train.strategy", "plain", "--epochs", "1", "--train.progress", "off", "--select.map-epochs", "0"),
    *("--sweep.epochs", "1", "--sweep.rates", "1e-3"),
]
RATE = ["--train.learning-rate", "1e-3"]
INTO_A_FOLDER: dict[str, Callable[[Path, Path, Path], list[str]]] = {
    # By the folder that holds the foreign files, a finished run, and a folder with inputs.
    "run": lambda out, run, given: ["run", *TRAINING, *RATE, "--out", str(out)],
    "train": lambda out, run, given: ["train", *TRAINING, *RATE, "--out", str(out)],
    "trial": lambda out, run, given: ["trial", *TRAINING, *RATE, "--out", str(out)],
    "sweep": lambda out, run, given: ["sweep", *TRAINING, "--out", str(out)],
    "prepare": lambda out, run, given: ["prepare", str(given / "records.json"), "--out", str(out)],
    "export": lambda out, run, given: ["export", str(run), "--out", str(out)],
    "init": lambda out, run, given: ["init", str(out / "study.toml")],
    "predict": lambda out, run, given: [
        *("predict", str(run), "--input", str(given / "texts.txt"), "--output", str(out / "new.jsonl"))
    ],
    "crossover": lambda out, run, given: ["crossover", str(run), "--mergekit", f"{out}.yaml"],
    "eeg": lambda out, run, given: ["eeg", str(given / "texts.txt"), "--out", str(out / "table.csv")],
    "snapshots consolidate": lambda out, run, given: [
        *("snapshots", "consolidate", str(run), "--out", str(out / "m.safetensors"))
    ],
    "snapshots import": lambda out, run, given: [
        *("snapshots", "import", str(given / "m.safetensors"), "--like", str(run), "--out", str(out))
    ],
}
INTO_A_RUN = {
    "sweet-spot": ["sweet-spot", "RUN", "--select.map-epochs", "0"],
    "crossover": ["crossover", "RUN"],
    "calibrate": ["calibrate", "RUN"],
    "evaluate": ["evaluate", "RUN"],
    "report": ["report", "RUN"],
    "train": ["train", "--run", "RUN", "--epochs", "5", "--train.state-every-steps", "1"],
    "snapshots compress": ["snapshots", "compress", "RUN"],
    "snapshots prune": ["snapshots", "prune", "RUN", "--keep-last", "1", "--yes"],
}
READ_ONLY = {"config", "model", "doctor", "status", "demo", "ratings", "snapshots list", "snapshots verify"}
NAMES = [
    *RunFolder(Path()).parts,
    *(f"{part}/{name}" for part in ("data", "train", "report", "features") for name in ("manifest.json", "notes")),
    *("records.json", "manifest.json", "events.jsonl", "samples.jsonl", "records.jsonl.gz", "split.json"),
    *("backbone.safetensors", "model.safetensors", "README.md", "study.yaml", "wandb/settings", "epoch_0001"),
    *(".download.partial", "x.partial", ".run.lock", ".data.lock", ".git/config", "train/events.jsonl", "sub/a/b"),
    *("train/states/step_00000001/manifest.json", "train/snapshots/epoch_0001/manifest.json", "report/report.md"),
]
BESIDE_OURS = ("notes.txt", ".manifest.json.swp", ".x.partial", "old.safetensors", "sub/deep.bin", "copy.jsonl")


@pytest.fixture(scope="module")
def inputs(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    files.write_json(folder / "records.json", generate(120, seed=3)[0])
    (folder / "texts.txt").write_text("one two three\nfour five six\n")
    main(["snapshots", "consolidate", str(finished_run), "--out", str(folder / "m.safetensors")])
    return folder


def ended(arguments: list[str]) -> int:
    """The exit code of a command in this process."""
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@contextmanager
def full_after(writes: int | None) -> Iterator[None]:
    """A disk that is full after some files have been flushed to it."""
    flush, left = os.fsync, writes

    def fsync(descriptor: int) -> None:
        nonlocal left
        if left is not None:
            if left == 0:
                raise OSError(errno.ENOSPC, "full")
            left -= 1
        flush(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


def test_every_command_is_here() -> None:
    written = {*INTO_A_FOLDER, *INTO_A_RUN, "plan"}
    commands = {*COMMANDS, *(f"snapshots {name}" for name in SUBCOMMANDS)} - {"snapshots"}
    assert written | READ_ONLY == commands and not written & READ_ONLY


@pytest.mark.parametrize("command", INTO_A_FOLDER)
@settings(
    # The same examples everywhere: a command is slow, and twelve of them are a sample.
    derandomize=True,
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn=st.data())
def test_a_folder_with_foreign_files_keeps_them(
    command: str, drawn: st.DataObject, finished_run: Path, inputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = drawn.draw(st.sets(st.sampled_from(NAMES), min_size=1, max_size=4), label="foreign files")
    content = drawn.draw(st.binary(max_size=40), label="content")
    fails_after = drawn.draw(st.none() | st.integers(0, 6), label="files until the disk is full")
    with tempfile.TemporaryDirectory() as root:
        out = Path(root) / "out"
        foreign = {}
        # A file cannot lie below another one.
        for name in sorted(names, reverse=True):
            path = out / name
            if not path.exists() and not any(parent.is_file() for parent in path.parents):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                foreign[path] = content
        arguments = INTO_A_FOLDER[command](out, _with_snapshots(finished_run, Path(root), command), inputs)
        with full_after(fails_after):
            code = ended(arguments)
        assert code in (0, 2, 74), capfd.readouterr().err
        assert {path: path.read_bytes() for path in foreign if path.is_file()} == foreign
        assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["texts.txt", "link.jsonl", "hard.jsonl"])
def test_predictions_do_not_take_the_place_of_their_texts(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("only copy\n")
    (tmp_path / "link.jsonl").symlink_to(texts)
    (tmp_path / "hard.jsonl").hardlink_to(texts)
    # There is no such run: nothing is opened before the names are looked at.
    assert ended(["predict", str(tmp_path / "run"), "--input", str(texts), "--output", str(tmp_path / name)]) == 2
    assert "the output is the input" in capsys.readouterr().err and texts.read_text() == "only copy\n"


def test_the_figure_of_a_plan_lies_beside_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(b"only copy")
    assert ended(["plan", "--preset", "tiny", "--micro-batch", "1", "--figure", str(tmp_path / "plan.png")]) == 0
    assert (tmp_path / "mine.png").read_bytes() == b"only copy"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["mine.png", "plan.png"]


def _with_snapshots(finished_run: Path, root: Path, command: str) -> Path:
    """The finished run, or a copy where a command writes into it too."""
    return shutil.copytree(finished_run, root / "run") if command == "crossover" else finished_run


@pytest.mark.parametrize("command", INTO_A_RUN)
def test_files_that_people_laid_into_a_run_stay(
    command: str, finished_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    foreign = {}
    for folder in [run, *(item for item in sorted(run.rglob("*")) if item.is_dir())]:
        for name in BESIDE_OURS:
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(str(path).encode())
            foreign[path] = str(path).encode()
    arguments = [str(run) if word == "RUN" else word for word in INTO_A_RUN[command]]
    assert ended(arguments) in (0, 2), capfd.readouterr().err
    assert {path: path.read_bytes() for path in foreign if path.is_file()} == foreign
