"""The whole loop in its short form: real processes that train, serve, watch and retrain a tiny model, without a network."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import HAPPENINGS, tiny_rows, write_rows

from pigeonhole.dataset.read import Row
from pigeonhole.errors import ConfigError
from pigeonhole.loop.demo import _why_not, run, split_demo_arguments
from pigeonhole.loop.processes import Processes
from pigeonhole.loop.traffic import Traffic

CHANGED = {
    "delivery": ["drone", "locker", "van", "rider", "hub"],
    "billing": ["wallet", "voucher", "subscription fee", "direct debit", "tariff"],
    "account": ["passkey", "fingerprint", "face scan", "avatar", "token"],
}
SHORT = [
    "model=tiny",
    "model.max_length=32",
    "trainer.epochs=20",
    "trainer.allow_dead_labels=true",
    "trainer.patience=20",
    "trainer.learning_rate=0.003",
    "trainer.freeze_word_embeddings=false",
    "trainer.threads=1",
    "data.val=0.3",
    "data.test=0.2",
    "data.trigger_words=report",
    "warm=false",  # an encoder that has never met the new words has to learn them
    "gate.behaviour_floor=0",  # so small a model knows words as they are written only
]
# A network of its own that has nothing but 127.0.0.1: whatever asks for more gets "Network is unreachable".
CUT_OFF = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
# Where the system grants no namespace: every Python process refuses to connect to anything but this machine.
GUARD = {"PYTHONPATH": str(Path(__file__).parent / "loopback_only")}


def cut_off_works() -> bool:
    if not all(map(shutil.which, ("unshare", "ip"))):
        return False
    return subprocess.run([*CUT_OFF, "true"], capture_output=True, check=False).returncode == 0


def test_nobody_judges_an_answer_that_never_came() -> None:
    traffic = Traffic("http://127.0.0.1:9")
    answers = traffic.ask([Row("where is it", "delivery", 0)])
    traffic.judge(answers, "person")
    assert (traffic.failed, answers[0].right) == (1, False)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (None, "retrain ended without a result"),
        ({"decision": "WAIT", "reason": "9 predictions are judged, 50 are needed"}, "9 predictions are judged, 50 are needed"),
        (
            {"decision": "GATE", "gate": {"decision": "HOLD", "reasons": ["politeness: 76 of 100", "size"], "test": {"n": 342}}},
            "the gate says HOLD, politeness: 76 of 100; size",
        ),
    ],
)
def test_a_loop_that_does_not_close_says_why_in_a_line(outcome: dict[str, Any] | None, said: str) -> None:
    assert _why_not(outcome) == said


def test_the_guard_lets_nothing_out_but_to_this_machine() -> None:
    program = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"
    command, environment = ([*CUT_OFF], {}) if cut_off_works() else ([], GUARD)
    ended = subprocess.run(
        [*command, sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert "Network is unreachable" in ended.stderr


def test_the_loop_closes_with_every_network_but_loopback_cut_off(tmp_path: Path) -> None:
    changed = [
        (f"hello there, since the big update of your app {happening.format(thing)} and so I write to you", label)
        for label, things in CHANGED.items()
        for happening, thing in itertools.product(HAPPENINGS, things)
    ]
    old = write_rows(tmp_path / "tiny.csv", tiny_rows())
    new = write_rows(tmp_path / "changed.csv", changed)
    demo = shutil.which("demo", path=str(Path(sys.executable).parent))
    assert demo
    cut_off, guard = (CUT_OFF, {}) if cut_off_works() else ([], GUARD)
    command = [*cut_off, demo, f"data={old}", f"changed={new}", f"out={tmp_path / 'out'}", *SHORT]
    environment = {**os.environ, **guard, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["failed_requests"] == 0
    assert found["recovered"] is True
    assert found["accuracy"]["after"]["right"] > found["accuracy"]["before"]["right"]
    assert found["second"]["version"] != found["first"]["version"]
    history = json.loads((tmp_path / "out/registry/models/tiny/aliases/production.json").read_text())["history"]
    assert [(change["action"], change["version"]) for change in history] == [
        ("promote", found["first"]["version"]),
        ("promote", found["second"]["version"]),
    ]
    assert (tmp_path / "out/loop.png").read_bytes().startswith(b"\x89PNG")
    assert "the same 52 texts, learned by neither" in (tmp_path / "out/index.html").read_text()


def test_arguments_go_to_where_they_belong() -> None:
    given = ["world=same", "model=tiny", "gate.margin=0.1", "data.val=0.3", "trainer.epochs=2"]
    own, sizes, training, gating = split_demo_arguments(given)
    assert (own, sizes) == (["world=same"], ["data.val=0.3"])
    assert (training, gating) == (["model=tiny", "trainer.epochs=2"], ["gate.margin=0.1"])


def test_a_finished_demo_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "demo.json").touch()
    with pytest.raises(ConfigError, match="holds a finished demo"):
        run([f"out={tmp_path}"])
    with pytest.raises(ConfigError, match=r"out=.*/demo\.json: cannot be written .*; choose a folder"):
        run([f"out={tmp_path / 'demo.json'}"])


def test_what_a_command_of_the_demo_refuses_is_the_users_mistake(tmp_path: Path) -> None:
    with Processes(tmp_path, {}) as processes, pytest.raises(ConfigError, match="log-compact ended with 2: error: unexpected"):
        processes.run("log-compact", "nonsense")
