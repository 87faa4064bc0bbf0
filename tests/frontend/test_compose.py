"""compose.yaml starts what `uv run invoke up` starts: the same services at the same ports over the same folders."""

import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from frontend.ports import API_PORT, API_VARIABLE, DRIFT_PORT, DRIFT_VARIABLE, PAGE_PORT, PROMETHEUS_PORT
from tests.frontend.conftest import ROOT

from pigeonhole.drift.settings import Settings as DriftSettings
from pigeonhole.environment import variables
from pigeonhole.serving.settings import Settings

FILE = ROOT / "compose.yaml"
SCHEMA = [str(Path(sysconfig.get_path("scripts")) / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))


def check(file: Path) -> int:
    return subprocess.run([*SCHEMA, str(file)], capture_output=True, check=False).returncode


def test_it_is_what_the_compose_specification_says() -> None:
    assert check(FILE) == 0


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("healthcheck:", "health_check:"), ("service_healthy", "service_healty"), ("tmpfs: [/tmp]", "tmpfs: {path: /tmp}")],
)
def test_a_planted_fault_is_caught_by_the_specification(right: str, wrong: str, tmp_path: Path) -> None:
    text = FILE.read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "compose.yaml").write_text(text.replace(right, wrong), encoding="utf-8")
    assert check(tmp_path / "compose.yaml") == 1


PROMETHEUS = (ROOT / "monitoring/compose.yaml").read_text(encoding="utf-8")


def nowhere(*texts: str) -> list[str]:
    """Addresses of services that are not there, or do not listen at that port."""
    inside = {f"{name}:8080" for name in COMPOSE["services"] if name != "prometheus"}
    asked = [found for text in texts for found in re.findall(r"\b[a-z]+:\d{4}\b", text) if not found.startswith("localhost")]
    return [address for address in asked if address not in inside]


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("", "", []),
        ("http://serve:8080", "http://serve:8000", ["serve:8000"]),
        ("http://drift:8080", "http://drit:8080", ["drit:8080"]),
        ('"serve:8080"', '"serve:9090"', ["serve:9090"]),
    ],
)
def test_every_address_inside_is_one_of_a_service_and_a_wrong_port_is_caught(right: str, wrong: str, told: list[str]) -> None:
    texts = FILE.read_text(encoding="utf-8"), PROMETHEUS
    assert right in "".join(texts)
    assert nowhere(*(text.replace(right, wrong) if right else text for text in texts)) == told


def test_the_ports_of_the_host_are_those_of_the_stack_and_nobody_else_reaches_them() -> None:
    ports = {"serve": API_PORT, "drift": DRIFT_PORT, "frontend": PAGE_PORT}
    assert {name: COMPOSE["services"][name]["ports"] for name in ports} == {
        name: [f"127.0.0.1:{port}:8080"] for name, port in ports.items()
    }
    assert COMPOSE["services"]["prometheus"]["ports"] == [f"127.0.0.1:{PROMETHEUS_PORT}:9090"]


def test_an_image_that_is_not_built_here_is_pinned_by_its_digest() -> None:
    others = {name: service["image"] for name, service in COMPOSE["services"].items() if "build" not in service}
    assert list(others) == ["prometheus"]
    assert re.fullmatch(r"docker\.io/prom/prometheus:v[0-9.]+@sha256:[0-9a-f]{64}", others["prometheus"])


@pytest.mark.parametrize("name", ["serve", "drift", "frontend"])
def test_the_images_are_ours_and_listen_where_compose_looks(name: str) -> None:
    build = COMPOSE["services"][name]["build"]
    dockerfile = (ROOT / build["context"] / build["dockerfile"]).read_text(encoding="utf-8")
    assert "PORT=8080" in dockerfile
    assert "http://127.0.0.1:8080/" in str(COMPOSE["services"][name]["healthcheck"])


@pytest.mark.parametrize(("name", "settings"), [("serve", Settings), ("drift", DriftSettings)])
def test_the_services_know_every_variable_that_they_are_given(name: str, settings: type[Any]) -> None:
    given = COMPOSE["services"][name]["environment"]
    assert set(given) <= {found.name for _, found in variables(settings)}
    mounted = {volume.split(":")[0]: volume.split(":")[1] for volume in COMPOSE["services"][name]["volumes"]}
    defaults = {found.name: field.default for field, found in variables(settings)}
    folders = {variable: value for variable, value in given.items() if value.startswith("/")}
    assert {f"./{defaults[variable]}": value for variable, value in folders.items()} == mounted


def test_the_page_is_told_where_the_services_are() -> None:
    given = COMPOSE["services"]["frontend"]["environment"]
    assert given == {API_VARIABLE: "http://serve:8080", DRIFT_VARIABLE: "http://drift:8080"}


def test_prometheus_scrapes_both_by_the_committed_rules() -> None:
    mounted = [volume.split(":")[0] for volume in COMPOSE["services"]["prometheus"]["volumes"]]
    config = yaml.safe_load((ROOT / mounted[0]).read_text(encoding="utf-8"))
    targets = [job["static_configs"][0]["targets"][0] for job in config["scrape_configs"]]
    assert targets == ["serve:8080", "drift:8080"]
    assert [Path(file).name for file in mounted[1:]] == config["rule_files"][::-1] == ["alert_rules.yaml", "recording_rules.yaml"]
    assert all((ROOT / file).is_file() for file in mounted)
