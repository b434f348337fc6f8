"""A configuration file that is generated reads as the defaults, and every value knows where it came from."""

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from redheart.core.config import StudyConfig, load_toml, resolved
from redheart.core.errors import BadInput
from redheart.core.settings import default_toml, key_lines, origins, settings


def test_the_generated_file_is_the_defaults_and_explains_every_setting(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(default_toml())
    assert load_toml(path) == StudyConfig()
    lines = default_toml().splitlines()
    for setting in settings():
        assert setting.doc, f"{setting.name} has no docstring"
        assert setting.name.rpartition(".")[2] in default_toml()
        assert f"# {setting.doc.split()[0]}" in "\n".join(lines)


def test_settings_are_all_fields() -> None:
    def count(value: object) -> int:
        if not dataclasses.is_dataclass(value):
            return 1
        return sum(count(getattr(value, item.name)) for item in dataclasses.fields(value))

    assert len(settings()) == count(StudyConfig()) == len({setting.name for setting in settings()})


def test_origins_tell_file_command_line_and_default_apart(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('# a comment\nseed = 3\nsweep = { epochs = 2 }\n\n[train]\n"beta1" = 0.8\nlearning_rate = 1e-4\n')
    before = dataclasses.replace(load_toml(path), epochs=9)
    arguments = ["--epochs", "9", "--train.beta2=0.9", "--train.no-checkpointing"]
    found = {i.name: i.origin for i in origins(resolved(before), before=before, file=path, arguments=arguments)}
    assert found["seed"] == f"{path}:2" and found["sweep.epochs"] == f"{path}:3"
    assert found["train.beta1"] == f"{path}:6" and found["train.learning_rate"] == f"{path}:7"
    assert found["epochs"] == found["train.beta2"] == found["train.checkpointing"] == "command line"
    assert found["data"] == found["train.clip_norm"] == "default"
    assert found["train.micro_batch"] == "derived (default: 0)"


def test_a_key_in_the_wrong_section_is_sent_to_its_own(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text("learning_rate = 1e-4\n")
    with pytest.raises(BadInput, match=r"did you mean `\[train\] learning_rate`"):
        load_toml(path)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.integers(0, 9), min_size=1, max_size=5))
@hypothesis_settings(deadline=None)
def test_lines_of_keys_are_where_the_keys_stand(values: dict[str, int]) -> None:
    text = "# top = 1\n[table]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
    assert tomllib.loads(text)["table"] == values
    lines = key_lines(text)
    for key in values:
        assert text.splitlines()[lines[f"table.{key}"] - 1].startswith(f"{key} =")
