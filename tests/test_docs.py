"""The site: every command, option and page is on it, and it is built without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from redheart.cli import COMMANDS
from redheart.cli.snapshots import SUBCOMMANDS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import site_pages  # noqa: E402


def test_every_command_and_every_flag_is_in_the_reference() -> None:
    page = site_pages.commands_page()
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, flags=re.M | re.S))
    assert set(sections) == {*COMMANDS, *(f"snapshots {name}" for name in SUBCOMMANDS), "Settings of a study"} - {
        "snapshots"
    }
    golden = re.findall(r"^(\S.*)\n((?:  --.*\n)*)", (ROOT / "tests" / "golden" / "cli_flags.txt").read_text(), re.M)
    for command, flags in golden:
        if command != "snapshots":
            text = sections[command]
            if "(#settings-of-a-study)" in text:
                text += sections["Settings of a study"]
            missing = [flag for flag in flags.split() if not re.search(rf"{re.escape(flag)}(?![\w.-])", text)]
            assert not missing, (command, missing)


def test_every_option_has_its_default_and_no_table_is_torn() -> None:
    tables = [line for line in site_pages.commands_page().splitlines() if line.startswith("| `--")]
    assert tables
    for line in tables:
        cells = re.sub(r"`[^`]*`|\\\|", "code", line).split("|")[1:-1]
        assert len(cells) == 4 and cells[2].strip(), line


def test_no_page_is_missing_from_the_navigation_or_leads_nowhere() -> None:
    def named(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        entries = entry.values() if isinstance(entry, dict) else entry
        return [name for item in entries for name in named(item)]  # type: ignore[attr-defined]

    navigation = named(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    there = [path.name for path in (ROOT / "docs").glob("*.md")] + list(site_pages.pages())
    assert sorted(navigation) == sorted(there)


def test_every_result_is_on_the_page_of_what_was_measured() -> None:
    page = site_pages.measured_page()
    for path in [*site_pages.RESULTS.glob("*.json"), *site_pages.RESULTS.glob("study/*.json")]:
        assert f"({path.relative_to(ROOT)})" in page


def test_links_of_the_repository_become_links_of_the_site() -> None:
    assert site_pages.for_site("[a](docs/vram.md#b) [c](#d)", "README.md") == "[a](vram.md#b) [c](#d)"
    assert site_pages.for_site("[a](../README.md)", "docs/house.md") == "[a](index.md)"


def test_links_lead_to_files_of_the_repository() -> None:
    for page in [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), ROOT / "ds_configs" / "README.md"]:
        for target in re.findall(r"\]\(([\w./-]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


@pytest.mark.long
def test_it_is_built_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="installed by `make docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for path in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?(?:https?:)?//[^\s>]+", path.read_text())
        assert not loaded, (path, loaded)
