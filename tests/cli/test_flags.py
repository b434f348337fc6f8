"""The flags of every command are frozen: one that disappears or changes its name breaks somebody's script."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from redheart.cli import COMMANDS, main
from redheart.cli.snapshots import SUBCOMMANDS

GOLDEN = Path(__file__).parents[1] / "golden" / "cli_flags.txt"


def flags(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert not ended.value.code
    found = re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out))
    return sorted(set(found) - {"--help"})


def test_flags_are_those_of_the_golden_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    commands = [*COMMANDS, *(f"snapshots {name}" for name in SUBCOMMANDS)]
    text = "".join(f"{command}\n" + "".join(f"  {flag}\n" for flag in flags(command, capsys)) for command in commands)
    if os.environ.get("REDHEART_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "meant? then run this test once with REDHEART_UPDATE_GOLDEN=1"


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [(["config", "--train.learnin-rate", "1"], "--train.learning-rate"), (["trian"], "train")],
)
def test_a_misspelt_name_is_answered_with_the_nearest(
    arguments: list[str], nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert nearest in capsys.readouterr().err


def test_init_writes_once_and_config_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study.toml"
    main(["init", str(path)])
    before = path.read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["init", str(path)])
    assert ended.value.code == 2 and path.read_bytes() == before
    capsys.readouterr()
    main(["config", "--config", str(path), "--seed", "5"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["seed"].split()[1:] == ["5", "command", "line"]
    assert lines["epochs"].endswith(str(path))


def test_help_breaks_no_line_where_the_source_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "other ones at every reading" in line)
    assert "reading. A study" in line


def test_help_and_the_status_of_a_run_wait_for_no_heavy_library() -> None:
    commands = [[name, "--help"] for name in COMMANDS] + [["snapshots", name, "--help"] for name in SUBCOMMANDS]
    commands.append(["status", "no run"])
    code = f"""
import contextlib, sys
from redheart.cli import main
for command in {commands}:
    with contextlib.suppress(SystemExit):
        main(command)
    assert not {{"torch", "scipy", "sklearn", "matplotlib"}} & set(sys.modules), command
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "there is no run in this folder" in done.stderr
