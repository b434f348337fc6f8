"""README.ko.md says what README.md says: the same commands, figures and links, section by section."""

import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

ENGLISH, KOREAN = ((ROOT / name).read_text() for name in ("README.md", "README.ko.md"))

UNITS = "ns/param|B/param|GiB|MiB|GB|min|s|%"
SCALES = {"million": 1e6, "만": 1e4}
KOREAN_UNITS = {"분": "min"}
NUMBER = re.compile(
    rf"(?<![\w.])([-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)(?: ?({'|'.join(SCALES)}))?"
    rf"(?: ?({UNITS}|{'|'.join(KOREAN_UNITS)})(?![A-Za-z]|할))?"
)


def sections(text: str) -> list[tuple[str, str]]:
    """Level of the heading and text of every section, the heading in it."""
    return re.findall(r"^(#+) (.*?)(?=^#+ |\Z)", without_code(text), flags=re.M | re.S)


def without_code(text: str) -> str:
    """Without the blocks: their remarks hold signs that look like headings."""
    return re.sub(r"^(?:```.*?^```|    [^\n]*)$", "", text, flags=re.M | re.S)


def blocks(text: str) -> list[str]:
    """Lines of the code blocks, remarks cut off, and fenced blocks as they are."""
    found = re.findall(r"^(```.*?^```|    [^\n]*)$", text, flags=re.M | re.S)
    return [block if block.startswith("```") else block.partition("  #")[0].strip() for block in found]


def figures(text: str) -> Counter[tuple[float, str]]:
    """Numbers by value and unit."""
    return Counter(
        (float(number.replace(",", "")) * SCALES.get(scale, 1), KOREAN_UNITS.get(unit, unit))
        for number, scale, unit in NUMBER.findall(text.replace("ko.md", ""))
    )


def links(text: str) -> list[str]:
    """Targets of the links, those within the page by the place of their heading, but for those to the other page."""
    slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)]
    found = re.findall(r"\]\(([^)]+)\)", text)
    others = [link for link in found if link not in ("README.md", "README.ko.md")]
    return [f"section {slugs.index(link[1:])}" if link.startswith("#") else link for link in others]


def test_the_generated_parts_are_those_of_the_english_page() -> None:
    from readme_korean import korean

    for name in ("plan", "measured", "study"):
        pattern = rf"^<!-- {name}: begin -->$.*?^<!-- {name}: end -->$"
        (english,), (found,) = (re.findall(pattern, text, flags=re.M | re.S) for text in (ENGLISH, KOREAN))
        assert found == korean(name, english), "run benchmarks/readme_tables.py --write"


def test_each_page_leads_to_the_other_in_its_first_lines() -> None:
    assert "(README.ko.md)" in ENGLISH[:60] and "(README.md)" in KOREAN[:60]


def test_the_code_blocks_are_the_same() -> None:
    assert blocks(KOREAN) == blocks(ENGLISH) and len(blocks(ENGLISH)) > 20


def test_the_commands_and_names_within_the_text_are_the_same() -> None:
    def named(text: str) -> Counter[str]:
        return Counter(re.findall(r"`([^`\n]+)`", without_code(text)))

    assert named(KOREAN) == named(ENGLISH)


def test_the_sections_are_the_same_and_hold_the_same_figures() -> None:
    english, korean = sections(ENGLISH), sections(KOREAN)
    assert len(english) > 10 and sum(figures(text).total() for _, text in english) > 200
    assert [level for level, _ in korean] == [level for level, _ in english]
    for (_, ours), (_, theirs) in zip(korean, english, strict=True):
        assert figures(ours) == figures(theirs), ours.splitlines()[0]


def test_the_links_are_the_same() -> None:
    assert sorted(links(KOREAN)) == sorted(links(ENGLISH)) and len(links(ENGLISH)) > 5


def test_a_changed_figure_is_seen() -> None:
    assert figures("0.3 million, 24 min, 8 GB, 1,000 s") == figures("30만 개, 24분, 8 GB에서 1,000 s를")
    assert figures("8 GB") != figures("8 GiB") and figures("0.48 ns/param") != figures("0.49 ns/param")
