"""The report as one HTML page: figures inside it, nothing fetched, readable on a phone.

It is made from the text of `report.md`, so that the two say the same. Raw HTML in it stays text.
"""

import base64
from html import escape
from itertools import pairwise
from pathlib import Path

from jinja2 import Template
from markdown_it import MarkdownIt
from markdown_it.token import Token

from redheart.core.errors import BadInput

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8885; --muted: #777; --accent: #c8102e; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 56rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .9rem; }
a { color: var(--accent); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.long { white-space: normal; min-width: 18rem; text-align: left !important; }
td:first-child, th:first-child { position: sticky; left: 0; background: Canvas; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
code { font-size: .9em; }
@media print { nav { display: none; } body { max-width: none; } }
</style>
</head>
<body>
<nav>{% for section in sections %}<a href="#{{ section.anchor }}">{{ section.name }}</a>{% endfor %}</nav>
{{ body | safe }}
</body>
</html>
"""

_LONG_CELL_CHARS = 40


def render(text: str, *, folder: Path) -> str:
    """The page of a report in Markdown, with tables; figures are named by their path below `folder`.

    Raises:
        BadInput: a figure is missing.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("image", lambda _, tokens, index, *rest: _figure(tokens[index], folder))
    parser.add_render_rule("table_open", lambda *_: '<div class="scroll"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(text)
    title = "Report"
    sections: list[dict[str, str]] = []
    for opening, inline in pairwise(tokens):
        # Figures stay on one line and the table scrolls; a sentence in a cell may break.
        if opening.type == "td_open" and len(inline.content) > _LONG_CELL_CHARS:
            opening.attrSet("class", "long")
        if opening.type != "heading_open":
            continue
        if opening.tag == "h1":
            title = _text(inline)
        elif opening.tag == "h2":
            anchor = f"section-{len(sections) + 1}"
            opening.attrSet("id", anchor)
            sections.append({"anchor": anchor, "name": _text(inline)})
    body = parser.renderer.render(tokens, parser.options, {})
    return Template(_PAGE, autoescape=True).render(title=title, sections=sections, body=body)


def _text(inline: Token) -> str:
    """Without the marks of Markdown."""
    return "".join(child.content for child in inline.children or ())


def _figure(token: Token, folder: Path) -> str:
    source = str(token.attrs["src"])
    path = (folder / source).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise BadInput("a figure of the report is missing", where=folder / source, hint="make the report again")
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(token.content)}" src="data:image/png;base64,{data}">'
