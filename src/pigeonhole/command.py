"""The edge of every command: one JSON object on stdout, everything for people on stderr, honest exit codes.

0 done, 2 the user's mistake, 3 the run failed, 4 a gate said no, 130 interrupted. PIGEONHOLE_TRACEBACK=1 shows where an error
came from. Of the processes that torchrun starts, the first one alone speaks; a command that cannot share its work runs there.
"""

import contextlib
import errno
import functools
import io
import json
import os
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec

from pigeonhole.errors import GateError, PigeonholeError, RunError

T = TypeVar("T")
Run = Callable[[list[str]], T]
HELP = {"-h", "--help"}
WIDTH = 100  # characters of a line of --help at most; fewer in a narrower terminal
SHOWN = 10_000  # characters of an error
MAKE_ROOM = "make room, then give the same command again"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of any library that writes


def command(run: Run[Any], *, together: bool = False) -> Callable[[], None]:
    """Make a console entry point of `run`, which takes the arguments and returns what is printed as JSON (None: nothing).

    `together`: it knows how to share its work with the other processes of torchrun.
    """

    @functools.wraps(run)
    def main() -> None:
        sys.exit(call(run, sys.argv[1:]) if together or is_first_process() else 0)

    return main


def with_help(told: str | Callable[[], str] | None, *schemas: type[Any]) -> Callable[[Run[T]], Run[T | None]]:
    """Have a command answer `--help`: with `told`, then the keys of the schemas."""

    def decorate(run: Run[T]) -> Run[T | None]:
        @functools.wraps(run)
        def helped(arguments: list[str]) -> T | None:
            if not HELP & set(arguments):
                return run(arguments)
            from pigeonhole.options import key_lines  # a service starts without it

            text = told() if callable(told) else told or ""
            print("\n".join([text.rstrip("\n"), *("\n" + "\n".join(key_lines(schema)) for schema in schemas)]))
            return None

        return helped

    return decorate


def call(run: Run[Any], arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    try:
        try:
            with _wrapped() if HELP & set(arguments) else contextlib.nullcontext():
                result = run(arguments)
            _print(result)
        except GateError as error:
            _print(error.result)
            raise
    except PigeonholeError as error:
        if os.environ.get("PIGEONHOLE_TRACEBACK"):
            traceback.print_exc()
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL_DISK:  # no mistake of the user's
            say(f"error: {_printable(str(error))}; {MAKE_ROOM}")
            return RunError.exit_code
        say(f"error: {_printable(str(error))}")
        return error.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError) and HELP & set(arguments):  # `--help | head`
            _close_stdout()
            return 0
        if error.errno not in FULL_DISK:
            raise
        what = f"{error.filename}: " if error.filename else ""
        say(f"error: {_printable(what)}{os.strerror(error.errno)}; {MAKE_ROOM}")
        return RunError.exit_code
    except KeyboardInterrupt as interrupt:
        say(str(interrupt) or "interrupted")
        return 130
    return 0


@contextlib.contextmanager
def _wrapped() -> Iterator[None]:
    """What is printed while this is entered goes out in lines that a terminal shows whole."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            yield
    finally:
        if sys.stdout is not None:
            sys.stdout.write(wrap(shown.getvalue(), min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)))
            sys.stdout.flush()


def wrap(text: str, width: int) -> str:
    """Longer lines go on in the column where their last part begins; of a paragraph, the next line takes up what is over.

    A command that someone may copy stays one line.
    """
    lines, given = [], text.split("\n")
    for place, line in enumerate(given):
        if len(line) <= width or line.lstrip().startswith("uv run "):
            lines.append(line)
            continue
        column = _column(line)
        *whole, rest = textwrap.wrap(
            line.lstrip(),
            width,
            initial_indent=line[: -len(line.lstrip())],
            subsequent_indent=" " * column,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += whole
        following = given[place + 1] if place + 1 < len(given) else ""
        if whole and following.strip() and column == _column(following) == len(following) - len(following.lstrip()):
            given[place + 1] = f"{rest} {following.lstrip()}"
        else:
            lines.append(rest)
    return "\n".join(lines)


def _column(line: str) -> int:
    """Where the last of a line's columns begins: they stand at the left, two spaces or more between them."""
    return max((found.end() for found in re.finditer(r"^ *| {2,}", line[:45])), default=0)


def _print(result: Any) -> None:
    """Raises RunError where stdout takes nothing: a full disk, a reader that has gone."""
    if result is None or not is_first_process():
        if sys.stdout is not None:
            sys.stdout.flush()  # of --help
        return
    if sys.stdout is None:  # `>&-`
        raise RunError("all is done, but the result cannot be written: stdout is closed")
    try:
        sys.stdout.write(_encoded(result) + "\n")
        sys.stdout.flush()
    except OSError as error:
        _close_stdout()
        raise RunError(f"all is done, but the result cannot be written to stdout: {error.strerror}") from error


def _close_stdout() -> None:
    """Python tries once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _encoded(result: Any) -> str:
    try:
        return msgspec.json.encode(result).decode()
    except UnicodeEncodeError:  # a path that is no UTF-8 holds lone surrogates
        return json.dumps(msgspec.to_builtins(result))


def _printable(text: str) -> str:
    """On one line: a path that someone typed may hold line breaks, and what a terminal takes for orders; a file may name MBs."""
    if len(text) > SHOWN:
        text = f"{text[:SHOWN]}… ({len(text) - SHOWN:,} more characters)"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def say(line: str) -> None:
    """Tell the person at the terminal."""
    if is_first_process():
        print(line, file=sys.stderr, flush=True)


def is_first_process() -> bool:
    """Of those that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"
