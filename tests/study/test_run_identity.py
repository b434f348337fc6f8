"""What a run is told by: digests of what it was made from, and its settings; never where something lies."""

import dataclasses
import json
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from redheart.cli import main
from redheart.cli.study import _typed
from redheart.core.config import FeatureConfig, SelectConfig, StudyConfig, SweepConfig, TrainConfig, resolved
from redheart.core.errors import BadInput
from redheart.core.files import read_sealed, shown, write_sealed
from redheart.core.folders import folder_lock
from redheart.data.generator import generate
from redheart.report.report import make_report
from redheart.snapshots.manifests import MANIFEST, Progress, StateManifest
from redheart.study import run_folder
from redheart.study.phases import Study, open_study, run_settings


def test_a_run_of_before_the_learner_dropped_channels_has_the_same_key() -> None:
    prepared = SimpleNamespace(
        manifest=SimpleNamespace(key="records"), inventory=SimpleNamespace(outputs=(7, 10, 1, 4))
    )
    study = SimpleNamespace(config=StudyConfig(), prepared=prepared, features=SimpleNamespace(key="features"))
    # As commit 157ea2d gave it.
    assert run_settings(cast(Study, study), 1e-4, epochs=1).key == "dde4c2a2c74ee2c2"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with records; paths are typed relative to it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("r.json").write_text(json.dumps(generate(120, seed=0)[0]))
    return folder


def study(data: str = "r.json", out: Path | str = "run", **changes: object) -> StudyConfig:
    given = StudyConfig(
        data=data,
        out=Path(out),
        epochs=4,
        features=FeatureConfig(encoder="hash", seq_len_tokens=8),
        train=TrainConfig(strategy="plain", learning_rate=1e-3),
    )
    return resolved(dataclasses.replace(given, **changes))  # type: ignore[arg-type]


def begin(config: StudyConfig) -> str:
    """Start a run up to its records; their key."""
    return open_study(config, run_folder.start(config)).prepared.manifest.key


def test_a_run_goes_on_however_its_records_are_named_now(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = begin(study())
    (project / "link.json").symlink_to("r.json")
    (project / "copy.json").write_bytes((project / "r.json").read_bytes())
    for name in (str(project / "r.json"), "./r.json", "link.json", "copy.json"):
        assert begin(study(data=name)) == key
    # From another working folder, where the typed path leads nowhere.
    (project / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    folder, config = run_folder.load(Path("../run"))
    assert Path(config.data).samefile(project / "copy.json") and begin(config) == key
    assert str(project) not in folder.config.read_text()


def test_a_run_that_was_moved_with_its_records_finds_them(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = begin(study())
    moved = project.rename(project.with_name("moved"))
    monkeypatch.chdir("/")
    _, config = run_folder.load(moved / "run")
    assert Path(config.data) == moved / "r.json" and begin(config) == key


def test_prepared_records_need_no_source_and_another_one_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = begin(study())
    (project / "r.json").unlink()
    capsys.readouterr()
    assert begin(run_folder.load(Path("run"))[1]) == key
    assert "going on with the records that were prepared from it" in capsys.readouterr().out
    (project / "r.json").write_text(json.dumps(generate(120, seed=1)[0]))
    with pytest.raises(BadInput, match="not those that this run was started with"):
        begin(study())
    with pytest.raises(BadInput, match="not those that this run was started with"):
        begin(study(data="generated"))


def test_settings_that_decide_are_named_and_equal_ones_are_no_difference(project: Path) -> None:
    rates = SweepConfig(rates=(1e-4, 2e-4))
    run_folder.start(study(sweep=rates))
    run_folder.start(study(sweep=rates, epochs=9))
    with pytest.raises(BadInput) as caught:
        run_folder.check(study(sweep=rates, seed=3))
    assert "got:      seed was 0, is 3\n" in str(caught.value)
    with pytest.raises(BadInput, match=r"features\.encoder was hash, is minilm"):
        run_folder.check(study(sweep=rates, features=FeatureConfig(encoder="minilm", seq_len_tokens=8)))


@pytest.mark.parametrize("content", [b"{}", b'{"compilerOptions": {}}\n', b"", b"\xff"])
def test_another_programs_config_is_no_run(content: bytes, project: Path) -> None:
    (project / "config.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"config\.json"):
        run_folder.start(study(out="."))
    assert (project / "config.json").read_bytes() == content
    assert sorted(os.listdir(project)) == ["config.json", "r.json"]


@pytest.mark.parametrize("content", [None, b'{"model_type": "bert"}\n', b""])
def test_a_folder_without_a_run_s_configuration_is_no_damaged_run(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BadInput, match="there is no run in this folder") as refused:
        run_folder.load(tmp_path)
    assert ("another program's" in str(refused.value)) == (content is not None)


def test_nobody_takes_a_configuration_that_is_being_written_for_a_leftover(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(path: Path) -> None:
        if path.name.startswith(".config.json"):
            # As another trial's `open_study` would, before it removes leftovers.
            with pytest.raises(BadInput, match="another process"), folder_lock(path.parent, name="data", wait=False):
                pass
            seen.append(path)

    seen: list[Path] = []
    monkeypatch.setattr("redheart.core.files.fsync_path", fsync)
    run_folder.start(study())
    assert len(seen) == 1


def test_a_run_that_starts_leaves_a_report_alone_that_is_being_written(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> None:
        with run_folder.claimed(study()):
            pass

    def make(root: Path) -> Path:
        half.parent.mkdir()
        half.touch()
        starts.start()
        starts.join(0.3)
        assert half.exists()
        return root / "report" / "report.md"

    half = run_folder.start(study()).report / ".report.md.01234567.redheart-partial"
    starts = threading.Thread(target=start)
    monkeypatch.setattr("redheart.report.report.make_report", make)
    main(["report", "run"])
    starts.join()
    assert not half.exists()


def test_parts_of_a_run_may_be_links_to_a_larger_disk(project: Path, tmp_path: Path) -> None:
    Path("run").mkdir()
    for part in ("data", "features", "train"):
        (tmp_path / "disk" / part).mkdir(parents=True)
        Path("run", part).symlink_to(tmp_path / "disk" / part)
    key = begin(study())
    assert begin(study()) == key
    assert Path("run/data").is_symlink() and (tmp_path / "disk" / "data" / "manifest.json").is_file()
    assert list((tmp_path / "disk" / "features").glob("*/manifest.json"))


def test_a_shorter_run_than_was_trained_is_refused_before_anything_changes(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    _, config = run_folder.load(run)
    before = (run / "config.json").read_bytes()
    for epochs in (1, 3):
        with pytest.raises(BadInput, match="4 or more"):
            run_folder.start(dataclasses.replace(config, epochs=epochs), decides=["epochs"])
    assert (run / "config.json").read_bytes() == before
    for epochs in (4, 7):
        run_folder.start(dataclasses.replace(config, epochs=epochs), decides=["epochs"])


def test_a_run_in_a_folder_of_another_encoding_is_reported(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / os.fsdecode(b"caf\xe9 \xff"))
    folder, _ = run_folder.load(run)
    path = make_report(folder.root)
    assert shown(run.name) == "caf\\xe9 \\xff"
    # A backslash stands for itself in Markdown once it is escaped.
    assert path.read_text().splitlines()[0].replace("\\\\", "\\") == f"# Red Heart: {shown(run.name)}"


def test_a_run_from_before_words_were_read_goes_on_without(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    saved = read_sealed(run / "config.json", run_folder.SavedConfig)
    old = json.loads(json.dumps(saved.config))
    del old["features"]["words"]
    write_sealed(run / "config.json", msgspec.structs.replace(saved, config=old))
    _, config = run_folder.load(run)
    assert config.features.words is False
    run_folder.start(config)
    with pytest.raises(BadInput, match=r"features.words was False, is True"):
        run_folder.start(dataclasses.replace(config, features=dataclasses.replace(config.features, words=True)))


def test_a_run_from_before_a_setting_was_there_goes_on_with_its_default(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    _, config = run_folder.load(run)
    saved = read_sealed(run / "config.json", run_folder.SavedConfig)
    old = json.loads(json.dumps(saved.config))
    del old["device"], old["train"]["state_every_minutes"], old["train"]["value_weight"]
    write_sealed(run / "config.json", msgspec.structs.replace(saved, config=old))
    assert run_folder.load(run)[1] == config
    run_folder.start(config)
    assert read_sealed(run / "config.json", run_folder.SavedConfig).config == {**saved.config, "out": str(run)}
    with pytest.raises(BadInput, match=r"train.value_weight was 1.0, is 2.0"):
        run_folder.start(dataclasses.replace(config, train=dataclasses.replace(config.train, value_weight=2.0)))


def test_a_trial_keeps_what_the_run_decided_and_what_others_are_writing(project: Path) -> None:
    rates = SweepConfig(rates=(1e-4, 2e-4))
    with run_folder.claimed(study(sweep=rates, epochs=6, select=SelectConfig(strategy="window"))) as folder:
        half = folder.select / ".final.x.redheart-partial"
        half.mkdir(parents=True)
        run_folder.start(study(sweep=rates, epochs=60))
        assert half.is_dir()
    assert _typed(["--data", "x", "--sweep.epochs", "3", "--select.strategy=window"]) == ["select"]
    assert _typed(["--config", "f"]) == ["epochs", "select"] and _typed(["--epochs=3"]) == ["epochs"]
    with run_folder.claimed(study(sweep=rates, epochs=9), decides=("epochs",)):
        assert not half.exists()
    _, config = run_folder.load(project / "run")
    assert config.epochs == 9 and config.select.strategy == "window"


@pytest.mark.parametrize(
    ("state", "snapshots", "asked", "expected"),
    [
        # Snapshots lie behind the newest state, and before the first one.
        ((3, 0), (2, 4, 8), 3, 8),
        (None, (2, 4), 3, 4),
        # The state holds a part of the fourth epoch; or the end of the third, which was not the last and has none.
        ((3, 4), (2,), 3, 4),
        ((3, 0), (2,), 3, 4),
        # What was asked for before is what is asked for now, or its last epoch wants only its end.
        ((2, 5), (2,), 3, None),
        ((3, 0), (2, 3), 3, None),
        ((3, 0), (2,), 4, None),
    ],
)
def test_fewer_epochs_than_a_run_has_begun_are_refused(
    project: Path, state: tuple[int, int] | None, snapshots: tuple[int, ...], asked: int, expected: int | None
) -> None:
    folder = run_folder.start(study(epochs=60))
    for epoch in snapshots:
        (folder.snapshots / f"epoch_{epoch:04d}").mkdir(parents=True)
    if state:
        (folder.states / "step_00000001").mkdir(parents=True)
        progress = Progress(*state, 1, {}, {}, 0, None, 0)
        write_sealed(folder.states / "step_00000001" / MANIFEST, StateManifest(progress, "key", [], {}))
    if expected is None:
        run_folder.check(study(epochs=asked))
        return
    with pytest.raises(BadInput, match="more epochs already") as refusal:
        run_folder.check(study(epochs=asked))
    assert refusal.value.expected == f"{expected} or more"
