"""The script that a text is written in, and whether an encoder makes anything of it.

By script alone: nothing here knows a language, and French passes for English.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from redheart.core.config import BUILT_IN_ENCODERS
from redheart.core.progress import warn

_MINILM, _HASH = BUILT_IN_ENCODERS
LATIN = "Latin"
_NAMES = {"CJK": "Han", "IDEOGRAPHIC": "Han", "MODIFIER": LATIN}
"""Where the first word of a letter's name in Unicode is not its script; a modifier letter goes with any."""
_LETTERS_SHARE, _TEXTS_SHARE = 0.2, 0.1
"""Of a text's letters, for a name or a word among others is no other language; and of texts, for a warning."""
_UNKNOWN_SHARE = 0.1
_TOKENS_PER_LETTER, _TOKENS_PER_SYLLABLE = 0.8, 1.0
"""Above, a tokenizer has no words of a script. MiniLM's English one: 0.41 to 0.53 in German and Vietnamese, 0.88 to
1.00 in Russian, Greek, Arabic and Hebrew, 1.37 in Korean; of a script of syllables an encoder may well
read sign by sign, so that an English one is not told by Kana alone, of which it has the signs."""
_SYLLABLES = ("Han", "Hangul", "Hiragana", "Katakana")
ADVICE = (
    "encoders of many languages, Korean among them, 768 wide: "
    "--features.encoder sentence-transformers/paraphrase-multilingual-mpnet-base-v2, or "
    "--features.encoder intfloat/multilingual-e5-base; without a network the folder of one: "
    "--features.encoder /path/to/folder"
)


def foreign_script(text: str) -> str | None:
    """The commonest script but Latin where more than a fifth of a text's letters are not Latin; else None."""
    if text.isascii():
        return None
    scripts: Counter[str] = Counter()
    for letter, number in Counter(filter(str.isalpha, unicodedata.normalize("NFKC", text))).items():
        scripts[_script(letter)] += number
    total = scripts.total()
    latin = scripts.pop(LATIN, 0)
    return scripts.most_common(1)[0][0] if total - latin > _LETTERS_SHARE * total else None


@cache
def _script(letter: str) -> str:
    first = unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0]
    return _NAMES.get(first, first.capitalize())


def counted(scripts: Iterable[str | None]) -> dict[str, int]:
    """Texts by script, the commonest first, of each text's own; those without one are left out."""
    return dict(Counter(filter(None, scripts)).most_common())


def letters_alone(text: str) -> str:
    """A text's letters and the marks on them; the tokens of other signs say nothing of a script."""
    return "".join(sign if unicodedata.category(sign)[0] in "LM" else " " for sign in text)


def has_words_of(script: str, tokens: Sequence[int], text: str, *, unknown: int | None) -> bool:
    """Whether a tokenizer was made for a script: it does not take a text apart into single letters, and knows them.

    `tokens` are what it makes of the text, which comes from `letters_alone`, and `unknown` is the one for what it does
    not know.
    """
    letters = sum(map(str.isalpha, unicodedata.normalize("NFKC", text)))
    per_letter = _TOKENS_PER_SYLLABLE if script in _SYLLABLES else _TOKENS_PER_LETTER
    return tokens.count(unknown) <= _UNKNOWN_SHARE * len(tokens) and len(tokens) <= per_letter * letters


def unread_text(scripts: Mapping[str, int], num_texts: int, *, encoder: str) -> str | None:
    """What is to be said of texts in scripts that an encoder does not read; None where that is a tenth or less of all.

    `scripts` has the number of these texts by script; the encoder is told by its name, or where it is.
    """
    number = sum(scripts.values())
    if encoder == _HASH or number <= _TEXTS_SHARE * num_texts:
        return None
    why = (
        "the encoder `minilm` was trained on English"
        if encoder == _MINILM
        else "the encoder's tokenizer has no words of that: it makes single letters or unknown tokens of them"
    )
    return f"{number:,} of {num_texts:,} texts ({number / num_texts:.0%}) are in {', '.join(scripts)}, and {why}"


def warn_unread(scripts: Mapping[str, int] | None, num_texts: int, *, encoder: str) -> str | None:
    """Say on standard error what `unread_text` says, and what to do; `scripts` is None where nobody has looked."""
    text = unread_text(scripts or {}, num_texts, encoder=encoder)
    if text:
        warn(f"{text}\nhint: {ADVICE}")
    return text
