"""The HTML report says what the Markdown says, holds its figures, and needs nothing from elsewhere."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redheart.cli import main
from redheart.core.errors import BadInput
from redheart.report.html import render
from redheart.report.tables import code, markdown_table, plain
from redheart.train.log.events import EventLog, all_events


class Page(HTMLParser):
    """Collects what a page would load, its text, and checks that elements are closed in turn."""

    VOID = ("meta", "link", "img", "br", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        # `<br />` is told as a start and an end.
        assert tag in self.VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_run_s_report_stands_alone_and_says_all(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_copy / "report" / "report.html").unlink()
    main(["report", str(run_copy)])
    assert capsys.readouterr().out.splitlines()[-1] == str(run_copy / "report" / "report.html")
    text = (run_copy / "report" / "report.html").read_text()
    page = Page(text)
    assert all(source.startswith(("data:", "#section-")) for source in page.sources)
    assert "http:" not in text and "https:" not in text and "script" not in page.tags
    assert 'name="viewport"' in text
    figures = [base64.b64decode(source.partition("base64,")[2]) for source in page.sources if "base64," in source]
    markdown = (run_copy / "report" / "report.md").read_text()
    named = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown)
    assert (
        figures == [(run_copy / "report" / name).read_bytes() for name in named] and "figures/reliability.png" in named
    )
    words = set(re.findall(r"[\w.,+-]+", re.sub(r"!\[.*?\]\(.*?\)", "", markdown))) - {"---", "--"}
    assert {word for word in words if word.strip("-.,")} <= set(re.findall(r"[\w.,+-]+", page.text))
    assert page.tags.count("table") == text.count('<div class="scroll"><table>') > 5


def cells_of(page: Path) -> str:
    """A page whose cells are only as wide as what they hold."""
    return re.sub(" +", " ", page.read_text())


def test_a_report_says_that_its_model_has_no_calibration_and_what_the_planner_said(run_copy: Path) -> None:
    (run_copy / "calibration" / "calibration.json").unlink()
    path = run_copy / "train" / "events.jsonl"
    with EventLog(path, length_bytes=path.stat().st_size) as log:
        log.write("chosen", text="chosen by the planner: 64 x 1, because it is fast")
        log.write("estimate_check", step_s=1.25, expected_step_s=1.0, error_percent=-20.0, basis="card")
    main(["report", str(run_copy)])
    report = cells_of(run_copy / "report" / "report.md")
    assert "| way to train | chosen by the planner: 64 x 1, because it is fast |" in report
    assert "| seconds a step | 1.25, expected 1.00 (-20.0 %, card) |" in report
    assert "`redheart calibrate RUN`" in report.split("## Calibration")[1].split("##")[0]
    limits = report.split("## Limitations")[1]
    assert "generated" in limits and "no diagnosis" in limits and "has not been examined" in limits


def test_the_time_of_training_is_that_of_all_steps_and_validations(run_copy: Path) -> None:
    """Whatever of an epoch came before the last start."""
    path = run_copy / "train" / "events.jsonl"
    with EventLog(path, length_bytes=path.stat().st_size) as log:
        log.write("step", step_s=600.0)
    taken = {"step": "step_s", "epoch": "validation_s"}
    seconds = [event[taken[event["event"]]] for event in all_events(path) if event["event"] in taken]
    main(["report", str(run_copy)])
    assert f"| time of training, minutes | {sum(seconds) / 60:.1f} |" in cells_of(run_copy / "report" / "report.md")


def test_what_looks_like_html_stays_text(tmp_path: Path) -> None:
    text = (
        "# A <b>\n\n## <script>alert(1)</script>\n\n| a |\n|---|\n| <img src=x onerror=y> |\n\n[x](javascript:alert(1))"
    )
    page = Page(render(text, folder=tmp_path))
    assert "script" not in page.tags and "img" not in page.tags
    assert all(source.startswith(("data:", "#section-")) for source in page.sources)


@given(st.text(max_size=200))
def test_any_markdown_without_figures_is_a_page(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    page = Page(render(text.replace("!", "").replace("\0", ""), folder=folder))
    assert "script" not in page.tags


class Texts(HTMLParser):
    """The text of every element of some names, by name."""

    def __init__(self, page: str, *names: str) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {name: [] for name in names}
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.found:
            self.inside = tag
            self.found[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag == self.inside else self.inside

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[self.inside][-1] += data


MARKUP = ["a|b", "<b>x</b>", "R&amp;D", "_x_", "__x__", "*x*", "`x`", "``", "[x](y)", "![x](y)", "~~x~~", "a\\|b", "#"]


def stands_as_it_is(text: str, folder: Path) -> None:
    expected = " ".join(text.split())
    table = markdown_table(["", "names"], [[plain(text), f"{plain(text)}, {plain(text)}"], [code(text), "1"]])
    page = render(f"# {plain(text)}\n\n{table}\n", folder=folder)
    found = Texts(page, "td", "h1").found
    assert found["td"] == [expected, f"{expected}, {expected}", expected, "1"] and found["h1"] == [expected]


def test_a_table_stands_in_columns_as_text_too() -> None:
    table = markdown_table(["", "값", "p"], [["기쁨|a", "1", "0.5"], ["x", "12.25", "1"]])
    assert table.split("\n") == [
        "|         |    값 |   p |",
        "| ------- | ----: | --: |",
        "| 기쁨\\|a |     1 | 0.5 |",
        "| x       | 12.25 |   1 |",
    ]


@pytest.mark.parametrize("name", MARKUP)
def test_names_stand_in_tables_headings_and_code_as_they_are(name: str, tmp_path: Path) -> None:
    stands_as_it_is(name, tmp_path)


@given(st.text(st.characters(exclude_categories=["C"]) | st.sampled_from("|<>&_*`[]()!~\\#$\n "), min_size=1))
def test_any_name_stands_as_it_is(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    if text.strip():
        stands_as_it_is(text, tmp_path_factory.getbasetemp())


def test_missing_figures_are_named(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(b"x")
    for source in ("none.png", "../outside.png"):
        with pytest.raises(BadInput, match="figure of the report is missing"):
            render(f"![a]({source})", folder=tmp_path / "report")
