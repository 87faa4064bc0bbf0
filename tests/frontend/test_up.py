import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from frontend.up import PORTS, Part, parts, wait_until_ready
from tests.frontend.conftest import ROOT, environment

from pigeonhole.port import free_port


@pytest.fixture
def stack(sealed_bundle: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    variables = environment(
        PIGEONHOLE_BUNDLE=str(sealed_bundle),
        PIGEONHOLE_LOG=str(tmp_path / "log"),
        **{name: str(free_port()) for name in PORTS},
    )
    # As a script starts it beside others: deaf to Ctrl-C, if it does not see to that itself.
    command = ["sh", "-c", 'trap "" INT; exec "$0" -m frontend.up', sys.executable]
    process = subprocess.Popen(command, cwd=tmp_path, env=variables, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    with process.stderr:
        yield process
        process.kill()
        process.wait()


def test_the_stack_starts_prints_its_addresses_and_stops_on_ctrl_c(stack: "subprocess.Popen[str]") -> None:
    addresses: dict[str, str] = {}
    assert stack.stderr
    for line in stack.stderr:
        match line.split():
            case [("service" | "drift" | "page" | "prometheus") as name, address]:
                addresses[name] = address
            case ["Ctrl-C", *_]:
                break
    assert list(addresses) == ["service", "drift", "page", *(["prometheus"] if shutil.which("prometheus") else [])]
    assert httpx.get(f"{addresses['service']}/ready").json()["status"] == "ready"
    assert "Streamlit" in httpx.get(addresses["page"]).text
    os.kill(stack.pid, signal.SIGINT)
    assert stack.wait(90) == 0
    for address in addresses.values():
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)


def test_a_part_that_does_not_start_stops_the_others_and_says_which(tmp_path: Path) -> None:
    ports = {name: str(free_port()) for name in PORTS}
    variables = environment(PIGEONHOLE_BUNDLE=str(tmp_path / "nowhere"), **ports)
    command = [sys.executable, "-m", "frontend.up"]
    answer = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 3
    assert "error: the service at" in answer.stderr


def test_a_process_that_has_ended_is_never_ready() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not wait_until_ready(Part("x", [], {}, "http://127.0.0.1:9", "/"), ended)


def test_the_ports_of_the_page_are_the_defaults_of_the_services() -> None:
    from frontend.ports import API_PORT, DRIFT_PORT

    from pigeonhole.drift.settings import Settings as DriftSettings
    from pigeonhole.serving.settings import Settings

    assert (Settings().port, DriftSettings().port) == (API_PORT, DRIFT_PORT)
    assert ROOT.joinpath("frontend/ports.py").exists()


def test_prometheus_is_started_where_it_is_installed_and_takes_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/bin/{name}")
    part = parts({"API_PORT": "18080", "PROMETHEUS_PORT": "19090"}, tmp_path)[-1]
    assert (part.name, part.url) == ("prometheus", "http://127.0.0.1:19090")
    config = json.loads((tmp_path / "prometheus.yml").read_text(encoding="utf-8"))
    assert config["scrape_configs"][0]["static_configs"] == [{"targets": ["127.0.0.1:18080"]}]
    assert [Path(rule).name for rule in config["rule_files"]] == ["recording_rules.yaml", "alert_rules.yaml"]
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    assert [part.name for part in parts({}, tmp_path)] == ["service", "drift", "page"]


@pytest.mark.parametrize("port", ["abc", "0", "70000", "-1"])
def test_what_is_no_port_is_told_in_a_line_and_ends_it_with_2(
    port: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parts({"API_PORT": port}, tmp_path)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: API_PORT={port!r}: allowed is a whole number from 1 to 65535\n"


def test_a_port_that_somebody_has_is_told_before_anything_starts(tmp_path: Path) -> None:
    ports = {name: str(free_port()) for name in PORTS}
    with socket.create_server(("127.0.0.1", int(ports["DRIFT_PORT"]))):
        command = [sys.executable, "-m", "frontend.up"]
        answer = subprocess.run(
            command, cwd=tmp_path, env=environment(**ports), capture_output=True, text=True, timeout=60, check=False
        )
    assert answer.returncode == 2
    where = f"http://127.0.0.1:{ports['DRIFT_PORT']}"
    wanted = f"error: the drift cannot listen at {where} (Address already in use); DRIFT_PORT sets another port"
    assert answer.stderr.splitlines() == [wanted]
