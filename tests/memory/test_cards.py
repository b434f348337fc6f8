"""Cards are found by the names that people and drivers write, and never by a similar one."""

import pytest

from redheart.core.errors import BadInput
from redheart.memory.cards import find, known, table


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("3070", "RTX 3070"),
        ("rtx3070", "RTX 3070"),
        ("RTX 3070 8GB", "RTX 3070"),
        ("NVIDIA GeForce RTX 3070 Laptop GPU", "RTX 3070 Laptop"),
        ("RTX 3070 Mobile", "RTX 3070 Laptop"),
        ("RTX 3070Ti", "RTX 3070 Ti"),
        ("RTX4070TiSuper", "RTX 4070 Ti Super"),
        ("4060 ti 16 GiB", "RTX 4060 Ti 16GB"),
        ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H200", "H200"),
        ("Tesla T4", "T4"),
    ],
)
def test_a_card_is_found_by_what_it_is_called(written: str, name: str) -> None:
    assert find(written).name == name


@pytest.mark.parametrize(
    "written", ["RTX 3075", "GTX 1080", "RTX 3070 24GB", "RTX 2070 with Max-Q Design", "", "NVIDIA"]
)
def test_no_other_card_is_taken_for_one_that_is_not_there(written: str) -> None:
    assert known(written) is None


def test_an_unknown_card_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="not a card of the table") as refusal:
        find("RTX 4075 Super")
    assert "RTX 4070 Super" in str(refusal.value.expected)


def test_no_two_cards_share_a_name_and_each_has_a_source() -> None:
    cards, sources = table().cards, table().sources
    for card in cards:
        assert find(card.name) == card and all(find(name) == card for name in card.also)
        assert card.source in sources
        # Tensor cores of Ampere and later do two products of bf16 in the time of one of float32, or more.
        assert card.bf16_tflops is None or card.bf16_tflops > 1.9 * card.fp32_tflops
    assert len(cards) > 40 and set(sources) == {card.source for card in cards}
