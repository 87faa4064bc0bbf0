"""dockerfiles/stack.py really starts compose.yaml, where podman is; here, what it says where it cannot."""

import os
import sys
from pathlib import Path

import pytest
import yaml
from dockerfiles import stack

from pigeonhole.errors import ConfigError


def test_missing_programs_are_named_with_the_line_that_brings_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="podman, runc, buildah, mmdebstrap, bwrap: not here; apt-get install podman runc"):
        stack.run([])


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="profile=x: no argument is known"):
        stack.run(["profile=x"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs Linux")
def test_the_last_lines_are_read_where_the_containers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """podman finds no container under another storage driver, or without the settings that they were started with."""
    program = tmp_path / "podman"
    program.write_text('#!/bin/sh\necho "$STORAGE_DRIVER in $CONTAINERS_CONF: $3 $4"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(stack, "storage_driver", lambda: "vfs")
    stack.Stack(tmp_path, "").tell_logs()
    assert f"serve: vfs in {tmp_path}/containers.conf: 8 pigeonhole_serve_1" in capsys.readouterr().err


def test_the_stand_in_of_a_published_image_goes_by_its_name_and_tag_alone() -> None:
    compose = stack.COMPOSE.read_text(encoding="utf-8")
    assert "@sha256:" in compose
    names = [service.get("image") for service in yaml.safe_load(stack.without_digests(compose))["services"].values()]
    assert [name for name in names if name] == ["docker.io/prom/prometheus:v3.5.0"]
