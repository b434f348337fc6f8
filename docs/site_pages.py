"""The pages of the site that nobody writes by hand; mkdocs calls `on_files` and `on_page_markdown`: see `make docs`."""

import argparse
import ast
import json
import posixpath
import re
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

COPIED = {
    "index.md": "README.md",
    "ko.md": "README.ko.md",
    "ds_configs.md": "ds_configs/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages that lie outside of docs/, by their place on the site."""


def pages() -> dict[str, str]:
    """All pages that do not lie in docs/, as Markdown."""
    copied = {place: (ROOT / source).read_text() for place, source in COPIED.items()}
    return copied | {"commands.md": commands_page(), "api.md": api_page(), "measured.md": measured_page()}


# --- every command and option ---


class _Asked(Exception):
    """Carries what a command asked of its parser; no command goes on after it."""


def _asked(kind: type, **options: Any) -> NoReturn:
    raise _Asked(kind, options)


def parsers() -> dict[str, tuple[type, str, argparse.ArgumentParser]]:
    """The type of options, the description and the parser of every command, by name, as the command makes it."""
    import tyro

    from redheart.cli import COMMANDS
    from redheart.cli.snapshots import SUBCOMMANDS

    names = [name for name in COMMANDS if name != "snapshots"] + [f"snapshots {name}" for name in SUBCOMMANDS]
    found = {}
    for name in names:
        command, *rest = name.split()
        function = getattr(import_module(f"redheart.cli.{COMMANDS[command][0]}"), command.replace("-", "_"))
        with mock.patch.object(tyro, "cli", _asked):
            try:
                function(rest)
            except _Asked as asked:
                kind, options = asked.args
        with warnings.catch_warnings():
            # Deprecated for parsing; nothing else gives the options of a command as data.
            warnings.simplefilter("ignore", DeprecationWarning)
            parser = tyro.extras.get_parser(kind, **{key: options[key] for key in options if key != "args"})
        found[name] = (kind, options["description"] or kind.__doc__, parser)
    return found


def commands_page() -> str:
    """The reference of the command line."""
    from redheart.cli import COMMANDS
    from redheart.cli.snapshots import SUBCOMMANDS
    from redheart.core.config import StudyConfig

    summaries = {name: summary for name, (_, summary) in COMMANDS.items()}
    summaries |= {f"snapshots {name}": summary for name, (_, summary) in SUBCOMMANDS.items()}
    made = parsers()
    parts = ["# Commands", "Made from the parsers of the commands themselves: `redheart COMMAND --help` says the same."]
    rows = [[f"[`{name}`](#{name.replace(' ', '-')})", summaries[name]] for name in made]
    parts.append(_table(["command", "what it does"], rows))
    for name, (kind, description, parser) in made.items():
        parts += [f"## {name}", f"`redheart {name}`: {summaries[name]}."]
        first, _, also = (description or "").partition("Also: ")
        if kind is StudyConfig:
            parts.append("Takes the [settings of a study](#settings-of-a-study).")
        else:
            parts.append(_code_names(first.strip()))
        if also:
            parts.append("Also:\n\n" + "\n".join(f"- {_option_first(item)}" for item in also.rstrip(".").split("; ")))
        if kind is not StudyConfig:
            parts += _options(parser)
    settings = next(parser for kind, _, parser in made.values() if kind is StudyConfig)
    parts += ["## Settings of a study", "The same names stand in the TOML file of `--config`.", *_options(settings)]
    return "\n\n".join(parts) + "\n"


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table for every group of options, the group's purpose before it."""
    for group in parser._action_groups:
        rows = [_row(action) for action in group._group_actions if action.dest != "help"]
        if rows:
            if group.title not in ("options", "positional arguments"):
                yield f"**{group.title}.** {_code_names(group.description or '')}".strip()
            yield _table(["option", "value", "default", "what it does"], rows)


def _row(action: argparse.Action) -> list[str]:
    text, _, default = (action.help or "").replace("%%", "%").rpartition("(")
    default = default.removesuffix(")").removeprefix("default: ").strip()
    names = ", ".join(f"`{name}`" for name in action.option_strings or [action.dest.upper()])
    value = f"`{action.metavar}`" if action.metavar else ""
    shown = default if default == "required" else f"`{default}`" if default else "none"
    return [names, value, shown, _code_names(" ".join(text.split()))]


def _option_first(item: str) -> str:
    name, comma, rest = item.partition(", ")
    if rest.startswith("--"):
        return ", ".join(f"`{part}`" for part in item.split(", "))
    return f"`{name}`{comma}{rest}"


def _code_names(text: str) -> str:
    """Options in running text as code, so that no typography touches them."""
    return _outside_code(text, r"(?<![\w-])--[a-z][\w.-]*\w", r"`\g<0>`")


def _outside_code(text: str, pattern: str, replacement: str) -> str:
    """A replacement that leaves what stands in backticks: a backslash would be seen there."""
    parts = text.split("`")
    parts[::2] = [re.sub(pattern, replacement, part) for part in parts[::2]]
    return "`".join(parts)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *[[_outside_code(cell, "[|]", r"\\|") for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- the public interface in Python ---


def api_names() -> dict[str, list[str]]:
    """Dotted names by module: what `redheart.custom` and `redheart.predict` offer, and what the pages of use name."""
    text = "".join((ROOT / "docs" / page).read_text() for page in ("own-model.md", "your-loop.md"))
    found: dict[str, list[str]] = {}
    for module in ("redheart.custom", "redheart.predict"):
        found[module] = [f"{module}.{name}" for name in import_module(module).__all__]
    named = re.findall(r"^from (redheart[\w.]*) import (.+)$", text, flags=re.M)
    dotted = [f"{module}.{name}" for module, names in named for name in names.split(", ")]
    for name in [*dotted, *re.findall(r"`(redheart(?:\.\w+)+)", text)]:
        module = name.rpartition(".")[0]
        if name not in found.setdefault(module, []):
            found[module].append(name)
    return found


def api_page() -> str:
    """The reference of the interface, filled in by mkdocstrings."""
    parts = ["# In Python", "What [your own model](own-model.md), [your loop](your-loop.md) and an exported one use."]
    for module, names in api_names().items():
        parts += [f"## {module}", *[f"::: {name}" for name in names]]
    return "\n\n".join(parts) + "\n"


# --- what was measured ---


def measured_page() -> str:
    """Every committed result, with its machine, date and commit, and the command that measures it again."""
    by_source: dict[Path, list[Path]] = {}
    for path in [*sorted(RESULTS.glob("*.json")), *sorted(RESULTS.glob("study/*.json"))]:
        by_source.setdefault(source_of(path), []).append(path)
    heads = ["result", "measured on", "date", "commit"]
    rows, sections = [], []
    for source, results in by_source.items():
        documented = ast.get_docstring(ast.parse(source.read_text())) or ""
        name = source.stem
        rows += [[f"[{path.stem}](#{name})", *_origin(path), f"`{usage(source)}`"] for path in results]
        text = re.sub(r"\n*^Usage: .+?(\n\n|\Z)", r"\n\n", documented, flags=re.M | re.S).strip()
        sections += [f"## {name}", text, *[f"- {line}" for line in _figures(source)]]
        own = [[f"[{path.name}]({path.relative_to(ROOT)})", *_origin(path), _settings(path)] for path in results]
        sections += [f"```text\n{usage(source)}\n```", _table([*heads, "settings"], own)]
    start = [
        "# What we measured, and how to repeat it",
        "Every figure in these pages is in one of these files, which carry the machine, the versions and the commit. "
        "A command below measures it again; with `--write` it replaces the committed result. A star at a commit: the "
        "checkout held changes beside it.",
        "The study over three seeds is `benchmarks/three_seeds.sh DATA`; the tables of the [home page](index.md) are "
        "written by `benchmarks/readme_tables.py --write`.",
    ]
    return "\n\n".join([*start, _table([*heads, "command"], rows), *sections]) + "\n"


def source_of(result: Path) -> Path:
    """The script that writes a result: the one with the longest name that the result's begins with."""
    if result.stem == "faults":
        return ROOT / "tests" / "faults" / "test_kills.py"
    name = "study" if result.parent.name == "study" else result.stem
    fitting = [path for path in (ROOT / "benchmarks").glob("*.py") if name.startswith(path.stem)]
    return max(fitting, key=lambda path: len(path.stem))


def usage(source: Path) -> str:
    """The command line from a script's docstring, or from the options that it defines where that has none."""
    if source.name == "test_kills.py":
        return "pytest tests/faults -m long --kills N"
    tree = ast.parse(source.read_text())
    told = re.search(r"^Usage: (.+?)(\n\n|\Z)", ast.get_docstring(tree) or "", flags=re.M | re.S)
    if told:
        return " ".join(told[1].split())
    words = [f"python benchmarks/{source.name}"]
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            given = {item.arg: ast.unparse(item.value) for item in call.keywords}
            option = ast.literal_eval(call.args[0])
            value = "" if "action" in given else f" {option.removeprefix('--').upper().replace('-', '_')}"
            if "required" in given:
                words.insert(1, option + value)
            elif given.get("help") != "argparse.SUPPRESS":
                words.append(f"[{option}{value}]")
    return " ".join(words)


def _origin(path: Path) -> list[str]:
    """Machine or card, date and commit of a result."""
    record = json.loads(path.read_text())
    machine = record["machine"]
    card, _, _ = (machine["gpu"] or "").partition(",")
    held = f" held to {record['settings']['cap']}" if (record["settings"] or {}).get("cap") else ""
    commit = f"`{record['commit'][:7]}`" + ("*" if record["modified"] else "")
    return [card + held or f"{machine['cpu_usable_cores']} cores of {machine['cpu']}", record["taken_utc"][:10], commit]


def _settings(path: Path) -> str:
    """What a benchmark was called with, without what only says where its answer goes."""
    settings = json.loads(path.read_text())["settings"] or {}
    said = {key: value for key, value in settings.items() if key not in ("json", "write", "one", "name", "command")}
    told = [
        f"{key.replace('_', ' ')} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in said.items()
        if value is not None and not isinstance(value, dict)
    ]
    return f"`{', '.join(told)}`" if told else ""


def _figures(source: Path) -> Iterator[str]:
    """What the README says that a script measured."""
    for line in (ROOT / "README.md").read_text().splitlines():
        cells = line.strip("| ").split(" | ")
        command = cells[-1].strip("`").removeprefix("pytest ").split()
        if len(cells) == 3 and command and (ROOT / command[0]) in (source, source.parent):
            yield f"{cells[0]}: **{cells[1]}**"


# --- hooks of mkdocs ---


def on_config(config: Any) -> None:
    """Headings get the names that the repository's web page gives them, Korean ones too."""
    from pymdownx.slugs import slugify

    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, the results and the figures of the study."""
    from mkdocs.structure.files import File

    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    for path in [*RESULTS.rglob("*.json"), *RESULTS.rglob("*.png")]:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to the repository's files become links to the site's pages; remarks for generators go."""
    return for_site(markdown, COPIED.get(page.file.src_uri, f"docs/{page.file.src_uri}"))


def for_site(markdown: str, source: str) -> str:
    """A page of the repository as the site has it: its links lead to the site's own files, all pages in one folder."""
    places = {path: place for place, path in COPIED.items()}

    def place(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        return f"]({places.get(target, target.removeprefix('docs/'))}{match[2] or ''})"

    markdown = re.sub(r"^<!-- \w+: (?:begin|end) -->$", "", markdown, flags=re.M)
    return re.sub(r"\]\(([\w./-]+)(#[^)]*)?\)", place, markdown)
