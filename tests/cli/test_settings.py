"""A configuration file that is generated reads as the defaults, and every value knows where it came from."""

import dataclasses
import json
import os
import threading
from pathlib import Path

import pytest

from redheart.cli import main
from redheart.cli.settings import default_toml, origins, settings
from redheart.core.config import StudyConfig, load_toml, read_toml, resolved
from redheart.core.errors import BadInput


def test_the_generated_file_is_the_defaults_and_explains_every_setting(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(default_toml())
    assert load_toml(path) == StudyConfig()
    lines = default_toml().splitlines()
    for name, doc in settings().items():
        assert doc, f"{name} has no docstring"
        assert name.rpartition(".")[2] in default_toml()
        assert f"# {doc.split()[0]}" in "\n".join(lines)


def test_a_configuration_file_may_be_a_stream_and_nothing_else_that_is_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["init", "/dev/stdout"])
    told = capfd.readouterr()
    assert told.out == default_toml() and told.err == "/dev/stdout\n"
    (tmp_path / "study.toml").write_text("")
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path / "study.toml")])
    assert "there already" in capfd.readouterr().err


def test_settings_are_all_fields() -> None:
    def count(value: object) -> int:
        if not dataclasses.is_dataclass(value):
            return 1
        return sum(count(getattr(value, item.name)) for item in dataclasses.fields(value))

    assert len(settings()) == count(StudyConfig())


def test_origins_tell_file_command_line_and_default_apart(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('# a comment\nseed = 3\nsweep = { epochs = 2 }\n\n[train]\n"beta1" = 0.8\nlearning_rate = 1e-4\n')
    before = dataclasses.replace(load_toml(path), epochs=9)
    arguments = ["--out", "data", "--epochs", "9", "--train.beta2=0.9", "--train.no-checkpointing"]
    found = origins(resolved(before), before=before, file=path, tables=read_toml(path), arguments=arguments)
    for name in ("seed", "sweep.epochs", "train.beta1", "train.learning_rate"):
        assert found[name] == str(path)
    assert found["epochs"] == found["train.beta2"] == found["train.checkpointing"] == "command line"
    assert found["data"] == found["train.clip_norm"] == "default"
    assert found["train.micro_batch"] == "derived (default: 0)"


def test_a_configuration_may_come_through_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=('preset = "small"\nepochs = 9\n',))
    writer.start()
    main(["config", "--config", str(tmp_path / "pipe"), "--json"])
    writer.join()
    found = json.loads(capsys.readouterr().out)
    assert found["epochs"] == {"value": 9, "origin": str(tmp_path / "pipe")} and found["preset"]["value"] == "small"


def test_a_key_in_the_wrong_section_is_sent_to_its_own(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text("learning_rate = 1e-4\n")
    with pytest.raises(BadInput, match=r"did you mean `\[train\] learning_rate`"):
        load_toml(path)


def test_all_that_is_wrong_in_a_file_is_named_at_once_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(
        'epochs = 0\nout = 3\nfeatures = 1\n[train]\nbeta2 = 1.0\nclip_norm = nan\nwandb = "no"\nlearning_rat = 1e-4\n'
    )
    with pytest.raises(BadInput, match=r"study\.toml") as refused:
        load_toml(path)
    for said in ("epochs = 0, expected `int` >= 1", "out = 3", "features = 1", "train.beta2 = 1.0", "train.clip_norm"):
        assert said in str(refused.value)
    assert "train.wandb = 'no'" in str(refused.value) and "train.learning_rat," in str(refused.value)
