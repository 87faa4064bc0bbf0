"""dockerfiles/stack.py really starts compose.yaml, where podman is; here, what it says where it cannot."""

from pathlib import Path

import pytest
from dockerfiles import stack

from pigeonhole.errors import ConfigError, RunError


def test_missing_programs_are_named_with_the_line_that_brings_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="podman, runc, buildah, mmdebstrap, bwrap: not here; apt-get install podman runc"):
        stack.run([])


def test_what_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "PATIENCE_S", 0)
    with pytest.raises(RunError, match="waited 0 s for the page"):
        stack.until("the page", lambda: None)


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="profile=x: no argument is known"):
        stack.run(["profile=x"])
