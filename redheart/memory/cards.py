"""Graphics cards by name: memory, speed and bus, as NVIDIA states them; the figures lie in `cards.json`."""

import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import msgspec

from redheart.core.errors import BadInput
from redheart.core.files import read_json
from redheart.core.units import GIB

_LANE_BYTES_S = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9}
"""A lane's bytes a second by the generation of PCIe, each way."""
_SAYS_NOTHING = {"nvidia", "geforce", "rtx", "tesla", "gpu", "graphics", "card", "with", "design"}


class Card(msgspec.Struct, frozen=True):
    """A card as its data sheet has it."""

    name: str
    memory_gib: int
    bf16_tflops: float | None
    """Products of dense bf16 matrices summed in float32; None where there are no units for them."""
    fp32_tflops: float
    bandwidth_gb_s: int
    pcie: int
    lanes: int
    slowest_share: float
    """The slowest laptop's boost clock over the fastest's, which the rates are of; 1 on a desktop."""
    source: str
    also: tuple[str, ...] = ()

    @property
    def memory_bytes(self) -> int:
        return self.memory_gib * GIB

    @property
    def bus_bytes_s(self) -> float:
        """Of the link, one way, before its protocol."""
        return self.lanes * _LANE_BYTES_S[self.pcie]


class _Table(msgspec.Struct, frozen=True):
    sources: dict[str, str]
    cards: list[Card]


@cache
def table() -> _Table:
    """All cards, and where their figures are from."""
    return read_json(Path(__file__).with_name("cards.json"), _Table)


def find(name: str) -> Card:
    """The card of a name as people or drivers write it: `3070`, `RTX 3070 Ti`, `NVIDIA GeForce RTX 3070 Laptop GPU`.

    Raises:
        BadInput: there is none in the table; the nearest names are given.
    """
    found = known(name)
    if found is None:
        by_key = {" ".join(sorted(_words(card.name))): card.name for card in table().cards}
        near = [by_key[key] for key in get_close_matches(" ".join(sorted(_words(name))), by_key, n=3, cutoff=0.3)]
        raise BadInput(
            "not a card of the table",
            where="--card",
            got=name,
            expected=f"for example {', '.join(near or ('RTX 3070', 'RTX 4060 Laptop', 'A100 40GB'))}",
            hint="for another card: redheart plan --vram 8GiB, which plans its memory and not its time",
        )
    return found


def known(name: str) -> Card | None:
    """As `find`, None where there is no such card."""
    words = _words(name)
    for card in table().cards:
        for text in (card.name, *card.also):
            if words in (_words(text), _words(text) | {f"{card.memory_gib}gb"}):
                return card
    return None


def _words(name: str) -> frozenset[str]:
    """What tells cards apart: `4060Ti`, `Laptop` and `16GB`, but neither maker nor family."""
    text = re.sub(r"\b(mobile|notebook|max-q)\b", "laptop", name.lower())
    text = re.sub(r"(\d) ?gi?b\b", r"\1gb", text)
    text = re.sub(r"(?<=rtx)(?=\d)|(?<=\d)(?=ti|super)|(?<=ti)(?=super)", " ", text)
    return frozenset(re.findall(r"[a-z0-9]+", text)) - _SAYS_NOTHING
