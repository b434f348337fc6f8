"""Limitations follow from facts."""

from types import SimpleNamespace
from typing import Any

from redheart.evaluate.evaluation import Estimate, Evaluation
from redheart.report.limitations import better_baselines, better_text
from redheart.report.report import _summary


def evaluation(*, kl: float, regret: float) -> Evaluation:
    return Evaluation(
        10, {"emotion": {"kl": Estimate(kl), "accuracy": Estimate(0.5)}, "regret": {"r2": Estimate(regret)}}
    )


def test_baselines_that_do_better_are_named_by_task() -> None:
    model = evaluation(kl=0.08, regret=0.2)
    baselines = {
        "better": evaluation(kl=0.07, regret=0.3),
        "mixed": evaluation(kl=0.09, regret=0.25),
        "same": evaluation(kl=0.08, regret=0.2),
    }
    assert better_baselines(model, baselines) == {"emotion": ["better"], "regret": ["better", "mixed"]}
    assert better_baselines(model, {"same": baselines["same"], "empty": Evaluation(10, {})}) == {}


def test_the_report_s_first_words_name_baselines_that_do_better() -> None:
    found: Any = SimpleNamespace(
        models={"crossover": evaluation(kl=0.08, regret=0.2)},
        baselines={"constant": evaluation(kl=0.07, regret=0.1)},
        recommended="crossover",
    )
    facts: Any = SimpleNamespace(crossover=SimpleNamespace(verdict="It is better."), evaluation=found)
    assert "emotion: `constant`; whether by more than chance" in str(better_text(found))
    assert _summary(facts) == f"**It is better.**\n\n{better_text(found)}"
    found.baselines = {}
    assert better_text(found) is None and _summary(facts) == "**It is better.**"
