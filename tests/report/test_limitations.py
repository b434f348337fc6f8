"""Limitations follow from facts."""

from redheart.evaluate.evaluation import Estimate, Evaluation
from redheart.report.limitations import better_baselines


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
