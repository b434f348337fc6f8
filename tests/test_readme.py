"""The README's figures are those of the committed results, and its commands exist."""

import re
import sys
from pathlib import Path

from redheart.cli import COMMANDS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))


def test_the_tables_of_figures_are_those_of_the_committed_results() -> None:
    import study_tables
    from readme_tables import blocks

    readme = (ROOT / "README.md").read_text()
    for block in blocks().values():
        assert block in readme, "run benchmarks/readme_tables.py --write"
    assert study_tables.PAGE.read_text() == study_tables.page(), "run benchmarks/study_tables.py --write"


def test_every_command_and_file_of_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"redheart ([a-z-]+)", text)) - {"run"}
    assert commands <= set(COMMANDS), commands - set(COMMANDS)
    for path in re.findall(r"`((?:benchmarks|redheart|launch|ds_configs)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
