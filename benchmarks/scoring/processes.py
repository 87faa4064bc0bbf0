"""A job's processes, as Linux's /proc tells of them: who belongs to it, what they hold of memory, where they listen."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def family_of(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            children.setdefault(_parent(int(folder.name)), []).append(int(folder.name))
    return list(_below(pid, children))


def workers_of(pid: int) -> list[int]:
    """Ray's workers below a process: the actors that score and the readers; not its two agents, which bear such a name too."""
    titles = {found: title_of(found) for found in family_of(pid)}
    return [found for found, title in titles.items() if title.startswith("ray::") and not title.endswith("Agent")]


def scorers_of(pid: int) -> list[int]:
    return [found for found in workers_of(pid) if "Scorer" in title_of(found)]


def title_of(pid: int) -> str:
    """The command line, or the name that a worker gave itself; empty for a process that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def memory_mb(pid: int) -> float:
    """The proportional set size: what a process has for itself, and its share of what it has with others. 0 if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1000
    return 0.0


def cpu_seconds(pid: int) -> float:
    """What a process has used so far; 0 if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def listening(pids: Sequence[int]) -> dict[str, str]:
    """The TCP addresses that processes listen at, as the kernel writes them (hexadecimal), each with its program's name."""
    owners = {socket: name for pid in pids for socket, name in _sockets_of(pid)}
    lines = [line.split() for table in ("tcp", "tcp6") for line in (PROC / "net" / table).read_text().splitlines()[1:]]
    found = {line[1]: owners.get(f"socket:[{line[9]}]") for line in lines if line[3] == "0A"}
    return {address: name for address, name in found.items() if name}


def _sockets_of(pid: int) -> Iterator[tuple[str, str]]:
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        name = (PROC / str(pid) / "comm").read_text().strip()
        for handle in (PROC / str(pid) / "fd").iterdir():
            with suppress(FileNotFoundError):
                yield str(handle.readlink()), name


def _parent(pid: int) -> int:
    return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def _below(pid: int, children: dict[int, list[int]]) -> Iterator[int]:
    yield pid
    for child in children.get(pid, []):
        yield from _below(child, children)
