import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from monitoring import alarm

from pigeonhole.errors import ConfigError, RunError

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and any(map(shutil.which, alarm.ALERTMANAGER)) and shutil.which("promtool")),
    reason="needs what .ci/tools installs" if sys.platform == "linux" else "needs Linux",
)


@needs_prometheus
def test_a_killed_server_reaches_the_pager_by_way_of_prometheus_and_alertmanager(
    sealed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committed rule waits a minute; a second is enough to see that it fires and is delivered. The bundle is given as the
    nightly workflow gives it, relative to this folder and not to the server's.
    """
    monkeypatch.chdir(sealed_bundle.parent)
    found = alarm.run([f"bundle={sealed_bundle.name}", "for_s=1"])
    assert found is not None
    assert (found["alert"], found["severity"]) == ("PigeonholeDown", "page")


@needs_prometheus
@pytest.mark.parametrize(
    ("file", "right", "wrong", "code"),
    [
        ("alert_rules.yaml", "", "", 0),
        ("alert_rules.yaml", "for: 1m", "for: 1m", 0),
        ("alert_rules.yaml", "for: 1m", "for: soon", 1),
        ("alert_rules.yaml", "expr: up{", "expr: up{{", 1),
        ("alert_rules.yaml", "- alert: PigeonholeDown", "- alarm: PigeonholeDown", 1),
        ("alert_rules.yaml", "severity: page", "severity: pager", 1),
        ("alert_rules.yaml", 'up{job="pigeonhole"}', 'up{job="pigeonhole:8080"}', 1),
        ("recording_rules.yaml", "histogram_quantile(0.95,", "histogram_quantil(0.95,", 1),
        ("alert_rules.yaml", "ratio5m > 0.02", "ratio5m > 0.2", 1),
    ],
)
def test_promtool_says_no_to_a_planted_fault_and_yes_to_the_committed_rules(
    file: str, right: str, wrong: str, code: int, tmp_path: Path
) -> None:
    for name in ("alert_rules.yaml", "recording_rules.yaml", "rules_test.yaml"):
        shutil.copy(alarm.FOLDER / name, tmp_path)
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong, 1) if right else text, encoding="utf-8")
    if right:  # these faults need no more than the twenty minutes in which every alert fires
        tests = yaml.safe_load((tmp_path / "rules_test.yaml").read_text(encoding="utf-8"))
        tests["tests"] = [each for each in tests["tests"] if each["name"] == "every alert fires on what it is for"]
        (tmp_path / "rules_test.yaml").write_text(yaml.safe_dump(tests), encoding="utf-8")
    answer = subprocess.run(["promtool", "test", "rules", str(tmp_path / "rules_test.yaml")], capture_output=True, check=False)
    assert min(answer.returncode, 1) == code


def test_without_a_bundle_or_prometheus_the_next_step_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="bundle=: expected the folder of a bundle"):
        alarm.run([])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt-get install prometheus"):
        alarm.program(("no-such-prometheus",))


def test_a_prometheus_that_takes_a_question_and_does_not_answer_has_no_value_yet() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert alarm.first_value(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout_s=0.1) == ""


def test_what_does_not_come_is_named() -> None:
    with pytest.raises(RunError, match="waited 0 s for the alert"):
        alarm.until("the alert", lambda: False, 0)
