"""What builds and runs an image: Docker where its engine runs, else buildah and bubblewrap, which need no engine.

Both start a container as Cloud Run does: the entry point is process 1, its files are read-only but for /tmp, its user is the
image's, and SIGTERM ends it. buildah cannot reach the pinned base without an image registry, so it builds on a stand-in: Debian
bookworm with its own Python 3.11, made by mmdebstrap. Knows nothing of what an image is for.
"""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from pigeonhole.command import say
from pigeonhole.errors import ConfigError, RunError

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = "localhost/pigeonhole-stand-in-for-python:3.11-slim-bookworm"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
LONGEST_BUILD_S = 3600  # buildah 1.28 was once seen to wait for ever after it had stored an image
PATIENCE_S = 20  # Cloud Run kills ten seconds after SIGTERM; two shared cores get twice that


@dataclass(frozen=True)
class Build:
    """What to build: a dockerfile's name, the folder that it may copy from, and what it is told."""

    name: str
    context: Path = ROOT
    arguments: Mapping[str, str] | None = None

    @property
    def dockerfile(self) -> Path:
        return ROOT / f"dockerfiles/{self.name}.dockerfile"

    @property
    def reference(self) -> str:
        return f"localhost/pigeonhole-{self.name}"

    def words(self, **more: str) -> list[str]:
        given = {**more, **(self.arguments or {})}
        arguments = [word for key, value in given.items() for word in ("--build-arg", f"{key}={value}")]
        return [*arguments, "--file", str(self.dockerfile), "--tag", self.reference, str(self.context)]


@dataclass(frozen=True)
class Container:
    """A running image. `pid` is its process 1, as this machine counts; `process` ends as it ends, `output` is what it prints.

    A file, not a pipe: who prints more than a pipe holds would wait for a reader, and never answer.
    """

    process: "subprocess.Popen[bytes]"
    pid: int
    output: IO[bytes]

    def said(self) -> str:
        """What it printed until now."""
        return _read(self.output)

    def stop(self) -> int:
        """SIGTERM to process 1; its exit code. Raises RunError where it stays."""
        os.kill(self.pid, signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            raise RunError(f"still there {PATIENCE_S} s after SIGTERM") from error

    def kill(self) -> str:
        """What it printed until then, or until it ended by itself."""
        if self.process.poll() is None:  # process 1: bubblewrap's death does not end who has changed to another user
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait()
        return self.said()


class Engine(Protocol):
    name: str

    def refused(self) -> str:
        """Why no container can be made here, in the words of who said no; empty where one can."""
        ...

    def build(self, build: Build) -> None: ...

    def over_base_mb(self, build: Build) -> float: ...

    def find(self, build: Build, *tests: str) -> list[str]:
        """The paths in an image that pass tests of `find`."""
        ...

    def run(
        self, build: Build, words: Sequence[str], variables: Mapping[str, str], mounts: Mapping[Path, str]
    ) -> contextlib.AbstractContextManager[Container]: ...


def find_engine() -> Engine:
    """Raises ConfigError where neither is here."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        return Docker()
    if all(map(shutil.which, ("buildah", "mmdebstrap", "bwrap"))):
        return Buildah()
    raise ConfigError(
        "neither a Docker engine nor buildah is here; apt-get install buildah mmdebstrap bubblewrap, or start Docker"
    )


class Docker:
    name = "docker"

    def refused(self) -> str:
        return ""

    def build(self, build: Build) -> None:
        do(["docker", "build", "--platform", "linux/amd64", *build.words()])

    def over_base_mb(self, build: Build) -> float:
        found = re.search(r"^ARG BASE=(\S+)$", build.dockerfile.read_text(encoding="utf-8"), re.MULTILINE)
        assert found, f"{build.dockerfile} has no ARG BASE"
        sizes = [int(do(["docker", "image", "inspect", "--format", "{{.Size}}", each])) for each in (build.reference, found[1])]
        return round((sizes[0] - sizes[1]) / 1e6, 1)

    def find(self, build: Build, *tests: str) -> list[str]:
        line = ["docker", "run", "--rm", "--user", "0", "--entrypoint", "find", build.reference]
        return do([*line, "/", "-xdev", *tests]).splitlines()

    @contextlib.contextmanager
    def run(
        self, build: Build, words: Sequence[str], variables: Mapping[str, str], mounts: Mapping[Path, str]
    ) -> Iterator[Container]:
        name = f"pigeonhole-{build.name}-{uuid.uuid4().hex[:8]}"
        line = ["docker", "run", "--rm", "--name", name, "--read-only", "--network", "host"]
        line += ["--mount", "type=tmpfs,destination=/tmp"]
        line += [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
        line += [word for host, inside in mounts.items() for word in ("--volume", f"{host}:{inside}:ro")]
        with _started([*line, build.reference, *words]) as (process, output):
            try:
                yield Container(process, process.pid, output)  # the client hands signals on to process 1
            finally:
                process.kill()
                if process.wait() < 0:  # but not SIGKILL
                    subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)


class Buildah:
    name = "buildah"

    def __init__(self) -> None:
        self._base = ["buildah", "--storage-driver", storage_driver()]

    def refused(self) -> str:
        """What chroot isolation needs, bubblewrap needs too: namespaces, and mounts in them."""
        if os.geteuid() != 0:
            return "buildah needs root here"
        line = ["bwrap", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--unshare-pid", "--as-pid-1", "true"]
        probe = subprocess.run(line, capture_output=True, text=True, check=False)
        return probe.stderr.strip() if probe.returncode else ""

    def build(self, build: Build) -> None:
        self._make_stand_in()
        before = self._image(build.reference)
        # One layer a stage: a copy of all files after each line takes longer than the lines.
        do([*self._base, "build", "--isolation", "chroot", "--layers=false", "--force-rm", *build.words(BASE=STAND_IN)])
        if before not in ("", self._image(build.reference)):  # or each run would leave its gigabytes behind
            subprocess.run([*self._base, "rmi", before], capture_output=True, check=False)

    def has(self, build: Build) -> bool:
        return bool(self._image(build.reference))

    def over_base_mb(self, build: Build) -> float:
        return round((self._size_bytes(build.reference) - self._size_bytes(STAND_IN)) / 1e6, 1)

    def find(self, build: Build, *tests: str) -> list[str]:
        with self._mounted(build.reference) as files:
            return [path.removeprefix(files) for path in do(["find", files, "-xdev", *tests]).splitlines()]

    @contextlib.contextmanager
    def run(
        self, build: Build, words: Sequence[str], variables: Mapping[str, str], mounts: Mapping[Path, str]
    ) -> Iterator[Container]:
        config = self._config(build.reference)
        user, _, group = config["User"].partition(":")
        given: dict[str, str] = {**dict(line.split("=", 1) for line in config["Env"]), **variables}
        with self._mounted(build.reference) as files, tempfile.TemporaryFile() as about:
            line = ["bwrap", "--ro-bind", files, "/", "--perms", "1777", "--tmpfs", "/tmp"]  # noqa: S108
            line += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--tmpfs", "/dev/shm"]  # noqa: S108
            line += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--as-pid-1", "--die-with-parent", "--clearenv"]
            line += [word for host, inside in mounts.items() for word in ("--ro-bind", str(host), inside)]
            line += [word for name, value in given.items() for word in ("--setenv", name, value)]
            line += ["--chdir", config["WorkingDir"], "--info-fd", str(about.fileno()), "--"]
            line += ["setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs"]
            with _started([*line, *config["Entrypoint"], *words], pass_fds=(about.fileno(),)) as (process, output):
                pid = _first_process(process, output, about.fileno())
                try:
                    yield Container(process, pid, output)
                finally:
                    if process.poll() is None:  # bubblewrap's death does not end who has changed to another user
                        os.kill(pid, signal.SIGKILL)

    def _config(self, reference: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(do([*self._base, "inspect", "--type", "image", reference]))["OCIv1"]["config"]
        return found

    def _size_bytes(self, reference: str) -> int:
        """What the files of an image take, without counting hard links twice."""
        with self._mounted(reference) as files:
            return int(do(["du", "--bytes", "--summarize", files]).split()[0])

    @contextlib.contextmanager
    def _mounted(self, reference: str) -> Iterator[str]:
        container = do([*self._base, "from", "--pull-never", reference]).strip()
        try:
            yield do([*self._base, "mount", container]).strip()
        finally:
            do([*self._base, "rm", container])

    def _image(self, reference: str) -> str:
        """Its id; empty where there is none."""
        line = [*self._base, "inspect", "--type", "image", "--format", "{{.FromImageID}}", reference]
        return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()

    def _make_stand_in(self) -> None:
        """Debian bookworm with its own Python 3.11, called `python` as in the official image, and this host's roots of trust."""
        if self._image(STAND_IN):
            return
        say("making the stand-in base by mmdebstrap")
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch) / "root"
            # What a container has no use for is not unpacked, and nothing waits for the disk: half of debootstrap's time.
            spared = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")]
            packages = ["--variant=essential", "--include=libstdc++6,passwd,python3,python3-pip", "--dpkgopt=force-unsafe-io"]
            do(["mmdebstrap", "--mode=root", *packages, *spared, "bookworm", str(root)])
            (root / "usr/bin/python").symlink_to("python3")
            for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
                marker.unlink()  # the official image's pip installs without asking, too
            if CERTIFICATES.exists():
                shutil.copy(CERTIFICATES, root / "etc/ssl/certs/ca-certificates.crt")
            shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
            container = do([*self._base, "from", "scratch"]).strip()
            do([*self._base, "add", "--quiet", container, str(root), "/"])
            path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            trust = [f"{name}=/etc/ssl/certs/ca-certificates.crt" for name in ("SSL_CERT_FILE", "PIP_CERT")]
            do([*self._base, "config", *(word for line in (path, *trust) for word in ("--env", line)), container])
            do([*self._base, "commit", "--quiet", "--rm", container, STAND_IN])


@functools.cache
def storage_driver() -> str:
    """`overlay` where the kernel lets us; `vfs`, a full copy a layer, works everywhere."""
    probe = subprocess.run(
        ["buildah", "--storage-driver", "overlay", "from", "scratch"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        return "vfs"
    do(["buildah", "--storage-driver", "overlay", "rm", probe.stdout.strip()])
    return "overlay"


def _first_process(process: "subprocess.Popen[bytes]", output: IO[bytes], about: int) -> int:
    """The pid that bubblewrap tells of the process that it made. Raises RunError where it ended before that."""
    while not (told := os.pread(about, 4096, 0)).rstrip().endswith(b"}"):
        if process.poll() is not None:
            raise RunError(f"no container: {_read(output)}")
    pid: int = json.loads(told)["child-pid"]
    return pid


@contextlib.contextmanager
def _started(line: Sequence[str], pass_fds: Sequence[int] = ()) -> Iterator[tuple["subprocess.Popen[bytes]", IO[bytes]]]:
    """A program, and the file that it prints to; it is killed at the end."""
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, pass_fds=pass_fds) as process,
    ):
        try:
            yield process, output
        finally:
            process.kill()


def _read(output: IO[bytes]) -> str:
    """Without moving the place at which the program goes on to write."""
    return os.pread(output.fileno(), os.fstat(output.fileno()).st_size, 0).decode(errors="replace")


def do(line: Sequence[str], cwd: Path = ROOT, variables: Mapping[str, str] | None = None) -> str:
    """Run a program; what it prints on stdout. Raises RunError with the end of what it said, and where it does not end."""
    environment = {**os.environ, "BUILDAH_FORMAT": "oci", **(variables or {})}
    try:
        ran = subprocess.run(line, capture_output=True, text=True, check=False, cwd=cwd, env=environment, timeout=LONGEST_BUILD_S)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{' '.join(line[:6])} … still runs after {LONGEST_BUILD_S} s, and was ended") from error
    if ran.returncode:
        raise RunError(f"{' '.join(line[:6])} … ended with {ran.returncode}: {(ran.stderr or ran.stdout).strip()[-2000:]}")
    return ran.stdout
