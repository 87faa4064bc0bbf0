import errno
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pigeonhole import storage
from pigeonhole.command import call, command, say, with_help, wrap
from pigeonhole.errors import ConfigError, GateError, PigeonholeError, RunError
from pigeonhole.options import setting


def raising(error: BaseException) -> Any:
    def run(arguments: list[str]) -> None:
        raise error

    return run


def test_a_result_is_one_line_of_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(lambda arguments: {"arguments": arguments}, ["a=ü"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"arguments": ["a=ü"]}
    assert printed.out.count("\n") == 1
    assert printed.err == ""


def test_a_path_that_is_no_utf8_does_not_cost_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(lambda arguments: {"file": arguments[0], "n": 1}, ["a\udcff.csv"]) == 0
    assert capsys.readouterr().out == '{"file": "a\\udcff.csv", "n": 1}\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux: a disk that is always full")
@pytest.mark.parametrize("ending", ["return {'a': 1}", "raise GateError('HOLD', {'a': 1})"])
def test_a_result_that_cannot_be_written_is_one_line_and_a_run_that_failed(ending: str) -> None:
    program = f"""
from pigeonhole.command import command
from pigeonhole.errors import GateError
def run(arguments):
    {ending}
command(run)()
"""
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (3, 1)
    assert ended.stderr.startswith("error: all is done, but the result cannot be written to stdout: No space left")


def test_a_stdout_that_is_closed_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # what Python makes of `>&-`
    assert call(lambda arguments: {"a": 1}, []) == 3
    assert capsys.readouterr().err == "error: all is done, but the result cannot be written: stdout is closed\n"


def test_nothing_is_printed_for_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(lambda arguments: None, []) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("error", "code"), [(ConfigError, 2), (RunError, 3), (GateError, 4)])
def test_an_error_is_one_line_on_stderr_and_its_exit_code(
    error: type[PigeonholeError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(raising(error("key: what is allowed")), []) == code
    assert capsys.readouterr() == ("", "error: key: what is allowed\n")


def test_what_a_user_typed_does_not_break_the_line_nor_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(raising(ConfigError("a\nb.csv\x1b[31m: été")), []) == 2
    assert capsys.readouterr() == ("", "error: a\\nb.csv\\x1b[31m: été\n")


def test_an_error_that_repeats_a_file_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(raising(ConfigError("manifest.json: " + "x" * 1_000_000)), []) == 2
    assert re.fullmatch(r"error: manifest\.json: x{9985}… \(990,015 more characters\)\n", capsys.readouterr().err)


def test_a_gate_that_says_no_still_prints_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(raising(GateError("HOLD", {"decision": "HOLD"})), []) == 4
    assert capsys.readouterr() == ('{"decision":"HOLD"}\n', "error: HOLD\n")


def test_an_interrupted_command_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(raising(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_a_full_disk_under_any_library_is_one_line_and_a_run_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(raising(OSError(errno.ENOSPC, "as the library says it", "runs/mine/bundle/model.onnx")), []) == 3
    said = "error: runs/mine/bundle/model.onnx: No space left on device; make room, then give the same command again\n"
    assert capsys.readouterr() == ("", said)
    with pytest.raises(ConnectionResetError):
        call(raising(OSError(errno.ECONNRESET, "an error of ours")), [])


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file sizes, not Windows")
def test_a_full_disk_that_the_storage_met_is_a_run_that_failed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file size limit makes write(2) fail as a full disk does."""
    import resource

    no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, no_limit[1]))
    try:
        code = call(lambda _: storage.write(str(tmp_path / "file"), bytes(20_000)), [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
    assert code == 3
    said = capsys.readouterr().err
    assert said.endswith("; make room, then give the same command again\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_quota_and_a_limit_of_file_sizes_are_full_disks_too(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(raising(OSError(number, "said")), []) == 3
    assert capsys.readouterr().err.endswith("; make room, then give the same command again\n")


def test_of_several_processes_the_first_one_alone_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(arguments: list[str]) -> dict[str, int]:
        ran.append("ran")
        say("a line for a person")
        return {"a": 1}

    monkeypatch.setattr(sys, "argv", ["train"])
    monkeypatch.setenv("RANK", "1")
    for together, times in ((False, 0), (True, 1)):
        with pytest.raises(SystemExit) as end:
            command(run, together=together)()
        assert (end.value.code, len(ran)) == (0, times)
    assert capsys.readouterr() == ("", "")


def test_an_error_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        call(raising(ZeroDivisionError()), [])


def test_the_place_of_an_error_is_shown_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGEONHOLE_TRACEBACK", "1")
    call(raising(ConfigError("key")), [])
    assert "Traceback" in capsys.readouterr().err


def test_an_entry_point_reads_the_arguments_and_exits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "seed=1"])
    with pytest.raises(SystemExit) as end:
        command(lambda arguments: arguments)()
    assert end.value.code == 0
    assert capsys.readouterr().out == '["seed=1"]\n'


def test_help_fits_a_terminal_and_a_result_is_never_wrapped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(arguments: list[str]) -> dict[str, str] | None:
        if "--help" not in arguments:
            return {"words": "word " * 100}
        print("word " * 100)
        raise SystemExit(0)  # as Hydra's commands leave

    for columns, widest in (("60", 60), ("400", 100)):
        monkeypatch.setenv("COLUMNS", columns)
        with pytest.raises(SystemExit):
            call(show, ["--help"])
        lines = capsys.readouterr().out.splitlines()
        assert widest - len("word ") <= max(map(len, lines)) <= widest
        assert " ".join(lines).split() == ["word"] * 100
    assert call(show, []) == 0
    assert capsys.readouterr().out.count("\n") == 1


@dataclass(frozen=True)
class Options:
    size: int = setting(3, "how many", ge=1)


@pytest.mark.parametrize("asked", [["--help"], ["-h"], ["size=2", "--help"]])
@pytest.mark.parametrize("told", ["usage: show\n", lambda: "usage: show"])
def test_help_is_what_a_command_tells_of_itself_and_its_keys(
    told: str | Callable[[], str], asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    @with_help(told, Options)
    def show(arguments: list[str]) -> list[str]:
        return arguments

    assert call(show, asked) == 0
    assert capsys.readouterr() == ("usage: show\n\nkeys:\n  size=3\n      how many (int >= 1)\n", "")
    assert call(show, ["size=2"]) == 0
    assert capsys.readouterr() == ('["size=2"]\n', "")


def test_a_longer_line_goes_on_under_its_last_column_and_a_paragraph_stays_one() -> None:
    given = """\
usage: command [key=value]

This is a paragraph of prose whose lines
are longer than the terminal is wide.

    uv run command key=list other=several third=3

keys:
  key=a|very|long|list|of|words|to|choose|from
      what the key is for, in several words (int)
  VARIABLE   default   what it means in several words
  SHORT      2         two
"""
    assert (
        wrap(given, 36)
        == """\
usage: command [key=value]

This is a paragraph of prose whose
lines are longer than the terminal
is wide.

    uv run command key=list other=several third=3

keys:
  key=a|very|long|list|of|words|to|choose|from
      what the key is for, in
      several words (int)
  VARIABLE   default   what it means
                       in several
                       words
  SHORT      2         two
"""
    )
