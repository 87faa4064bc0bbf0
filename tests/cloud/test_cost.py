import pytest

from pigeonhole.cloud import cost
from pigeonhole.errors import ConfigError


def test_the_parts_add_up_and_every_assumption_is_in_sight(capsys: pytest.CaptureFixture[str]) -> None:
    found = cost.run([])
    assert found is not None
    assert found["usd_a_month"] == pytest.approx(sum(found["parts"].values()))
    assert found["parts"]["serve"] == pytest.approx(730 * (1.5 * 0.0648 + 1.25 * 0.0072), abs=0.01)
    assert "a month" in capsys.readouterr().err
    assert cost.run(["--help"]) is None
    told = capsys.readouterr().out
    assert all(name in told for name in found["assumptions"])


def test_nothing_that_runs_costs_nothing() -> None:
    off = ["serve_hours=0", "drift_hours=0", "frontend_hours=0", "stored_gb=0", "images_gb=0", "builds=0", "training_hours=0"]
    found = cost.run([*off, "samples_million=0"])
    assert found is not None
    assert found["usd_a_month"] == 0


def test_a_misspelt_assumption_is_refused() -> None:
    with pytest.raises(ConfigError, match="serve_hour"):
        cost.run(["serve_hour=1"])
