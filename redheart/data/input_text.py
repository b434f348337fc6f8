"""What an encoder reads of a record, and the form in which records are held against each other."""

import string
import unicodedata
from functools import cache
from itertools import pairwise, zip_longest

import msgspec
from tokenizers.normalizers import BertNormalizer

from redheart.data.records import Record

_IDEOGRAPHS = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)),
    *((0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
"""As BERT's tokenizer takes them for words of one character."""
# Without spaces around ideographs: they would make texts of them look more alike than they are.
_normalizer = BertNormalizer(clean_text=True, handle_chinese_chars=False, strip_accents=True, lowercase=True)


def input_text(record: Record, *, text_chars: int) -> str:
    """What the encoder reads of a record: title, action and the start of the text, a line each.

    Composed (NFC) and without the blanks before its first word: neither they nor decomposed letters, as macOS writes
    them, make the start a shorter one.
    """
    text = unicodedata.normalize("NFC", record.text).lstrip()[:text_chars]
    parts = (unicodedata.normalize("NFC", part).strip() for part in (record.title, record.action, text))
    return "\n".join(part for part in parts if part)


def folded(text: str) -> str:
    """A text without what an encoder does not tell apart: two texts that are the same to it are folded to the same.

    MiniLM, as all uncased BERTs, takes no notice of normal form, case, accents, control characters and spacing, nor of
    whether there is a space beside a punctuation mark or an ideograph. SentencePiece's encoders, such as XLM-R, do not
    tell a letter from its compatible forms (NFKC). All of that is folded, whatever the encoder: nobody would call texts
    that differ in nothing else two texts.
    """
    plain = _normalizer.normalize_str(unicodedata.normalize("NFKC", text))
    words = unicodedata.normalize("NFKC", plain).split()
    spaces = (
        "" if _stands_alone(word[-1]) or _stands_alone(following[0]) else " " for word, following in pairwise(words)
    )
    return "".join(part for pair in zip_longest(words, spaces, fillvalue="") for part in pair)


@cache
def _stands_alone(character: str) -> bool:
    """Whether it is a token of its own, with or without a space beside it."""
    is_mark = character in string.punctuation or unicodedata.category(character).startswith("P")
    return is_mark or any(first <= ord(character) <= last for first, last in _IDEOGRAPHS)


def read_forms(record: Record, *, text_chars: int) -> tuple[str, str]:
    """What the encoder reads of a record, and of its text alone, `folded`: a file may lack the title and the action."""
    alone = msgspec.structs.replace(record, title="", action="")
    whole, text = (folded(input_text(item, text_chars=text_chars)) for item in (record, alone))
    return whole, text
