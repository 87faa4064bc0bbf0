"""Build the images, start them and ask them something; one JSON object says what came out.

    uv run python -m dockerfiles.build serve [drift] [frontend] [score] [train] [bundle=FOLDER] [sbom=FOLDER] [skip=allowed]

With Docker where its engine runs; elsewhere, as root, with buildah. Each image is started as Cloud Run starts it (process 1,
uid 10001, read-only files), is asked a real question and has to end with 0 after SIGTERM. `bundle` is what serve, drift and
score work with (not given: one that knows six words); serve is built a second time with it baked in. serve may take 350 MB over
its base; no image may hold a file of ours that git does not track, such as a key or a model. `sbom` gets a list of what the lock
puts into each image (CycloneDX); a package that is in the image and not on the list is refused. `skip=allowed`: where the kernel
lets nobody make a container, that is told by name and is no failure; a missing tool is one.
"""

import contextlib
import json
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dockerfiles.engine import Build, Container, Engine, do, find_engine
from tasks import IMAGE_GROUPS
from tests.keyword_bundle import keyword_bundle, keyword_rows

from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError, GateError, RunError
from pigeonhole.port import free_port

IMAGES = ("serve", "drift", "frontend", "score", "train")
LIMIT_MB = {"serve": 350}
QUESTION = {"text": "I was charged twice for the same order"}
PATIENCE_S = 120
BUNDLE = "/tmp/bundle"  # noqa: S108  inside the container, whose own /tmp it is
TABLE = "package://pigeonhole/dataset/tickets/shifted.csv"
# Not those of a package's own parts (setuptools/_vendor/…): a star of find's goes over slashes.
DIST_INFO = ("-path", "*/venv/lib/*/site-packages/*.dist-info", "-not", "-path", "*/site-packages/*/*", "-type", "d")
OUR_FOLDERS = ("(", "-path", "*/site-packages/pigeonhole/*", "-o", "-path", "*/app/frontend/*", ")")
OUR_FILES = ("-type", "f", *OUR_FOLDERS, "-not", "-name", "*.pyc")
Answer = dict[str, Any]


@with_help(__doc__)
def run(arguments: list[str]) -> dict[str, Any]:
    names = [name for name in arguments if "=" not in name]
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    unknown = set(names) - set(IMAGES) or set(options) - {"bundle", "sbom", "skip"}
    if not names or unknown or options.get("skip", "allowed") != "allowed":
        raise ConfigError(
            f"{' '.join(arguments)}: expected some of {', '.join(IMAGES)}, and bundle=FOLDER, sbom=FOLDER, skip=allowed"
        )
    engine = find_engine()
    if refused := engine.refused():
        if options.get("skip") != "allowed":
            raise ConfigError(f"no container can be made here: {refused}; build where one can, or with Docker")
        say(f"SKIPPED the images {', '.join(names)}: no container can be made here: {refused}")
        return {"engine": engine.name, "images": [], "skipped": names, "reason": refused}
    say(f"building with {engine.name}")
    reports = []
    with _bundle(options.get("bundle", "")) as bundle:
        for name in names:
            began = time.perf_counter()
            report = {"image": name, **try_image(engine, name, bundle)}
            if "sbom" in options:
                report["sbom_components"] = write_sbom(
                    name, Path(options["sbom"]), packages(engine.find(Build(name), *DIST_INFO))
                )
            say(f"{name}: {report}")
            reports.append({**report, "seconds": round(time.perf_counter() - began, 1)})
    left_out = [name for name in IMAGES if name not in names]
    if left_out:
        say(f'left out here: the images {", ".join(left_out)}; uv run invoke images --which "{" ".join(left_out)}" builds them')
    return {"engine": engine.name, "images": reports, "left_out": left_out}


@contextlib.contextmanager
def _bundle(given: str) -> Iterator[Path]:
    """The folder that was given, or that of a bundle made for the occasion. Raises ConfigError where it is none."""
    if given:
        if not (Path(given) / "manifest.json").exists():
            raise ConfigError(f"bundle={given}: has no manifest.json; give the folder of a bundle, or none")
        yield Path(given).resolve()
        return
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)  # the image's user reads it
        yield keyword_bundle(Path(scratch) / "bundle", "v1", held_out=keyword_rows()).folder


def try_image(engine: Engine, name: str, bundle: Path) -> Answer:
    build = Build(name)
    engine.build(build)
    report: Answer = {"over_base_mb": engine.over_base_mb(build)}
    if report["over_base_mb"] > LIMIT_MB.get(name, float("inf")):
        raise GateError(f"{name} takes {report['over_base_mb']} MB over its base; allowed are {LIMIT_MB[name]}", report)
    if unknown := strangers(engine.find(build, *OUR_FILES)):
        raise GateError(f"{name} holds {', '.join(unknown[:5])}, which git does not track; git add it, or take it away", report)
    if name == "train":
        with engine.run(build, ["--cfg", "job"], {}, {}) as container:
            said = printed(container, name)
        if container.process.returncode != 0 or "learning_rate" not in said:
            raise RunError(f"train --cfg job ended with {container.process.returncode}: {said[-500:]}")
        return {**report, "printed_lines": len(said.splitlines())}
    if name == "frontend":
        return {**report, **ask(engine, build, {}, {}, "/_stcore/health", None)}
    mounts, variables = {bundle: BUNDLE}, {"PIGEONHOLE_BUNDLE": BUNDLE}
    if name == "score":
        return {**report, **score(engine, build, mounts)}
    if name == "drift":
        kept = {"PIGEONHOLE_LOG": "/tmp/log", "PIGEONHOLE_REPORTS": "/tmp/reports"}  # noqa: S108
        answer = ask(engine, build, variables | kept, mounts, "/runs", {"hours": 1, "draw": False})
        return {**report, **answer}
    report |= ask(engine, build, variables, mounts, "/predict", QUESTION)
    return {**report, "baked": bake(engine, bundle)}


def score(engine: Engine, build: Build, mounts: Mapping[Path, str]) -> Answer:
    """A table that the image has with it, through Ray inside the container."""
    words = [f"bundle={BUNDLE}", f"input={TABLE}", "output=/tmp/scored", "text=text", "actors=1"]
    with engine.run(build, words, {}, mounts) as container:
        said = printed(container, "score")
    if container.process.returncode != 0 or '"scored"' not in said:
        raise RunError(f"score ended with {container.process.returncode}: {said[-500:]}")
    answer = json.loads(said[said.index('{"') : said.rindex("}") + 1])
    return {"rows": answer["rows"], "scored": answer["scored"]}


def printed(container: Container, name: str, patience_s: float = PATIENCE_S) -> str:
    """What a container prints until it ends by itself. Raises RunError where it does not."""
    try:
        container.process.wait(patience_s)
        return container.said()
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{name} still runs after {patience_s} s: {container.kill()[-500:]}") from error


def bake(engine: Engine, bundle: Path) -> Answer:
    """The serve image with one bundle inside: it is refused where the seal is another one, and needs no variable to answer."""
    seal = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["seal"]
    base = Build("serve").reference
    wrong = Build("serve_baked", bundle, arguments={"BASE": base, "SEAL": "0" * len(seal)})
    if _builds(engine, wrong):
        raise RunError("serve_baked was built although its bundle has another seal than the one that was asked for")
    right = Build("serve_baked", bundle, arguments={"BASE": base, "SEAL": seal})
    engine.build(right)
    return ask(engine, right, {}, {}, "/predict", QUESTION)


def _builds(engine: Engine, build: Build) -> bool:
    try:
        engine.build(build)
    except RunError:
        return False
    return True


def ask(
    engine: Engine, build: Build, variables: Mapping[str, str], mounts: Mapping[Path, str], path: str, question: Answer | None
) -> Answer:
    """Start an image on a free port, put one question to it, end it. Raises RunError for no answer or a bad end."""
    port = free_port()
    given = {"PORT": str(port), "HOST": "127.0.0.1", "PIGEONHOLE_LOG": "/tmp/log", **variables}  # noqa: S108
    with engine.run(build, [], given, mounts) as container:
        began = time.perf_counter()
        while (answer := ask_once(f"http://127.0.0.1:{port}{path}", question)) is None:
            if container.process.poll() is not None or time.perf_counter() - began > PATIENCE_S:
                raise RunError(f"{build.name} gave no answer: {container.kill()[-1000:]}")
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        uid = _uid(container) if engine.name == "buildah" else None
        code = container.stop()
        if code != 0 or uid not in (None, 10001):
            raise RunError(f"{build.name}: uid {uid}, ended with {code} after SIGTERM; expected 10001 and 0")
    chosen: Answer = {key: answer[key] for key in ("label", "verdict", "text") if key in answer}
    return {"seconds_to_first_answer": round(seconds, 2), **chosen, "after_sigterm": code}


def ask_once(url: str, question: Answer | None) -> Answer | None:
    """The answer, or None where nobody gives one yet. Raises RunError for a no."""
    body = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})  # noqa: S310  our own port
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310
            said = answer.read().decode()
            return dict(json.loads(said)) if said.startswith("{") else {"text": said}
    except urllib.error.HTTPError as error:
        raise RunError(f"{url} answered {error.code}: {error.read()[:500].decode(errors='replace')}") from error
    except (urllib.error.URLError, ConnectionError, TimeoutError):  # the last where it is there and says nothing
        return None


def _uid(container: Container) -> int:
    status = Path(f"/proc/{container.pid}/status").read_text(encoding="utf-8")
    found = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
    assert found, "a process has a user"
    return int(found[1])


def strangers(paths: Iterable[str]) -> list[str]:
    """Of our own files in an image those that are none of the repository's, as the repository would name them."""
    tracked = set(do(["git", "ls-files", "src", "configs", "frontend"]).splitlines())
    moves = {r".*/site-packages/pigeonhole/configs/": "configs/", r".*/site-packages/": "src/", r".*/app/frontend/": "frontend/"}
    names = []
    for path in paths:
        place, target = next((place, target) for place, target in moves.items() if re.match(place, path))
        names.append(re.sub(place, target, path, count=1))
    return sorted(set(names) - tracked)


def packages(paths: Iterable[str]) -> frozenset[str]:
    """The Python packages in an image, by the names that a lock has for them: `…/google_auth-2.0.dist-info` is google-auth."""
    names = (Path(path).name.partition("-")[0] for path in paths)
    return frozenset(re.sub(r"[-_.]+", "-", name).lower() for name in names)


def write_sbom(name: str, folder: Path, held: frozenset[str]) -> int:
    """What the lock puts into an image, as CycloneDX; how many components it has. Raises RunError where the image has more."""
    line = [
        "uv",
        "export",
        "--quiet",
        "--frozen",
        "--offline",
        "--preview",
        *IMAGE_GROUPS[name].split(),
        "--format",
        "cyclonedx1.5",
    ]
    said = do(line)
    bill = json.loads(said)
    listed = {component["name"] for component in bill["components"]} | {bill["metadata"]["component"]["name"]}
    if unlisted := held - listed:
        raise RunError(f"{name} holds {', '.join(sorted(unlisted))}, which its bill of materials does not name")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.cdx.json").write_text(said, encoding="utf-8")
    return len(bill["components"])


if __name__ == "__main__":
    command(run)()
