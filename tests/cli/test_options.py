"""Arguments as people write them and as W&B's agent sends them."""

import pytest

from redheart.cli.options import spelled_out
from redheart.cli.study import _study
from redheart.core.config import StudyConfig


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--train.checkpointing=True"], ["--train.checkpointing"]),
        (["--train.checkpointing=False"], ["--train.no-checkpointing"]),
        (["--train.checkpointing", "True", "--seed", "1"], ["--train.checkpointing", "--seed", "1"]),
        (["--prepare.skip_invalid=true"], ["--prepare.skip-invalid"]),
        (["--prepare.skip-invalid"], ["--prepare.skip-invalid"]),
        (["--train.learning-rate=1e-05", "--data="], ["--train.learning-rate=1e-05", "--data="]),
        (["--data", "True"], ["--data", "True"]),
        (["--train.checkpointing=maybe"], ["--train.checkpointing=maybe"]),
    ],
)
def test_a_flag_with_a_value_is_the_flag(given: list[str], expected: list[str]) -> None:
    assert spelled_out(given, StudyConfig) == expected


def test_the_advice_of_our_own_messages_is_understood() -> None:
    # As `nearest_text` and the out-of-memory error write it.
    arguments = ["--train.micro-batch", "8", "--train.checkpointing", "True", "--train.learning-rate=5e-05"]
    train = _study(arguments, "train").train
    assert (train.micro_batch, train.checkpointing, train.learning_rate) == (8, True, 5e-5)


def test_agent_s_arguments_give_the_configuration_that_people_s_give() -> None:
    by_agent = _study(
        ["--train.learning-rate=1e-05", "--train.checkpointing=False", "--prepare.num-generated=160"], "t"
    )
    by_hand = _study(["--train.learning-rate", "1e-5", "--prepare.num-generated", "160"], "t")
    assert by_agent == by_hand
