"""What holds of the full model only: minutes and several GiB, so outside the default run."""

import sys
from pathlib import Path

import pytest

from redheart.core.config import StudyConfig, resolved

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.mark.long
@pytest.mark.real_data
def test_every_parameter_of_full_receives_a_gradient_from_real_records(real_records: Path, tmp_path: Path) -> None:
    from full_steps import first_records
    from gradient_coverage import coverage

    config = resolved(StudyConfig(data=str(first_records(real_records, 160, tmp_path)), out=tmp_path, preset="full"))
    found = coverage(config, micro_batch=16)
    assert found["records"] == 64
    assert found["tensors_without_gradient"] == []
    assert found["share"] >= 0.999
