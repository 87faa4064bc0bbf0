from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from pigeonhole.cloud import cost
from pigeonhole.errors import ConfigError

ROOT = Path(__file__).parents[2]
UNITS = {"Mi": 1 / 1024, "Gi": 1.0}


def test_the_parts_add_up_and_every_assumption_is_in_sight(capsys: pytest.CaptureFixture[str]) -> None:
    found = cost.run([])
    assert found is not None
    assert found["usd_a_month"] == pytest.approx(sum(found["parts"].values()))
    assert found["parts"]["serve"] == pytest.approx(730 * (1.5 * 0.0648 + 1.25 * 0.0072), abs=0.01)
    told = capsys.readouterr().err
    assert [line.split()[0] for line in told.splitlines()] == [*found["parts"], "a"]
    assert f"{found['parts']['serve']:.2f} USD" in told
    assert cost.run(["--help"]) is None
    told = capsys.readouterr().out
    assert all(name in told for name in found["assumptions"])


def test_a_service_costs_what_its_containers_take_the_collector_too() -> None:
    assumed = asdict(cost.CostConfig())
    for name in ("serve", "drift", "frontend"):
        text = (ROOT / f"cloudrun/{name}.yaml").read_text(encoding="utf-8")
        limits = [container["resources"]["limits"] for container in yaml.safe_load(text)["template"]["containers"]]
        assert assumed[f"{name}_cpus"] == sum(float(limit["cpu"]) for limit in limits)
        assert assumed[f"{name}_memory_gib"] == sum(int(limit["memory"][:-2]) * UNITS[limit["memory"][-2:]] for limit in limits)


def test_every_part_is_worked_out_by_hand() -> None:
    """Each number is another prime: a factor that is lost or taken twice makes another sum."""
    given = {
        "serve_hours": 2,
        "serve_cpus": 3,
        "serve_memory_gib": 5,
        "drift_hours": 7,
        "drift_cpus": 11,
        "drift_memory_gib": 13,
        "frontend_hours": 17,
        "frontend_cpus": 19,
        "frontend_memory_gib": 23,
        "stored_gb": 29,
        "images_gb": 31,
        "builds": 37,
        "build_minutes": 41,
        "training_hours": 43,
        "gpu_hours": 47,
        "samples_million": 53,
        "usd_cpu_hour": 59,
        "usd_gib_hour": 61,
        "usd_gb_month": 67,
        "usd_image_gb_month": 71,
        "usd_build_minute": 73,
        "usd_training_hour": 79,
        "usd_t4_hour": 83,
        "usd_samples_million": 89,
    }
    assert set(given) == set(asdict(cost.CostConfig()))
    found = cost.run([f"{key}={value}" for key, value in given.items()])
    assert found is not None
    assert found["parts"] == {
        "serve": 2 * (3 * 59 + 5 * 61),
        "drift": 7 * (11 * 59 + 13 * 61),
        "frontend": 17 * (19 * 59 + 23 * 61),
        "bucket": 29 * 67,
        "images": 31 * 71,
        "builds": 37 * 41 * 73,
        "training": 43 * 79 + 47 * 83,
        "metrics": 53 * 89,
    }


def test_nothing_that_runs_costs_nothing() -> None:
    off = ["serve_hours=0", "drift_hours=0", "frontend_hours=0", "stored_gb=0", "images_gb=0", "builds=0", "training_hours=0"]
    found = cost.run([*off, "samples_million=0"])
    assert found is not None
    assert found["usd_a_month"] == 0


def test_a_misspelt_assumption_is_refused() -> None:
    with pytest.raises(ConfigError, match="serve_hour"):
        cost.run(["serve_hour=1"])


@pytest.mark.parametrize("name", asdict(cost.CostConfig()))
def test_an_assumption_below_zero_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=-1"):
        cost.run([f"{name}=-1"])
