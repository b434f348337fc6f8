"""The text of files as people have them: plain or gzip, in UTF-8 or with the byte order mark of another Unicode form.

Which of them it is, a file says by its first bytes; its name may say otherwise.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from redheart.core.errors import BadInput

MAX_BYTES = 1 << 30
_GZIP = b"\x1f\x8b"


def read_content(path: Path, *, what: str = "file") -> bytes:
    r"""The content of a file, unpacked, as UTF-8 without a byte order mark, and every line ended by `\n`.

    A line ends at `\n`, `\r\n` or, in a file without any `\n`, as old spreadsheets write them, at `\r`. A `\r` inside
    a line stays, as does everything else that Unicode counts among the ends of lines. Bytes that are no UTF-8 are left
    for `decode` to refuse, or for whoever reads line by line. Messages call the file `what`.

    Raises:
        BadInput: no such file, cut gzip, not what its byte order mark says, or too large.
    """
    content = _unpacked(path, what).removeprefix(codecs.BOM_UTF8)
    # By a mark; what it guesses from zero bytes ends in `-le` or `-be`.
    if (encoding := json.detect_encoding(content)) in ("utf-16", "utf-32"):
        try:
            content = content.decode(encoding).encode()
        except UnicodeDecodeError as error:
            raise BadInput(
                f"the {what} is not {error.encoding.upper()}, as its byte order mark says",
                where=f"{path}: byte {error.start}",
                hint="convert it, for instance with `iconv -t utf-8`",
            ) from error
    if b"\r" not in content:
        return content
    if b"\n" not in content:
        content = content.replace(b"\r", b"\n")
    return re.sub(rb"(?<!\r)\r+(?=\n|\Z)", b"", content)


def decode(content: bytes, path: Path, *, what: str = "file") -> str:
    """The text of a file's content.

    Raises:
        BadInput: invalid UTF-8; the first line that holds it is named.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadInput(
            f"the {what} is not UTF-8",
            where=f"{path}: line {line}",
            got=hex(content[error.start]),
            hint="convert it, for instance with `iconv -t utf-8`",
        ) from error


def read_text(path: Path, *, what: str = "file") -> str:
    """The text of a file, as `read_content` and `decode` give it."""
    return decode(read_content(path, what=what), path, what=what)


def csv_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV; numbers as they are, nothing rounded, an absent one empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def is_unicode(text: str) -> bool:
    """Whether it can be written: half of a surrogate pair, as JSON or a command line may bring it, cannot."""
    return re.search("[\ud800-\udfff]", text) is None


def _unpacked(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            is_packed = file.peek(len(_GZIP)).startswith(_GZIP)
            # GzipFile takes a file object as it stands, a pipe too.
            content = (gzip.GzipFile(fileobj=file) if is_packed else file).read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadInput(f"{what} not found", where=path, hint="check its path") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput("the gzip file is cut or damaged", where=path, got=error, hint="fetch it again") from error
    except OSError as error:
        raise BadInput(f"the {what} cannot be read", where=path, got=error.strerror) from error
    if len(content) > MAX_BYTES:
        raise BadInput(
            f"the {what} is too large",
            where=path,
            expected=f"at most {MAX_BYTES} bytes unpacked",
            hint="split the file",
        )
    return content
