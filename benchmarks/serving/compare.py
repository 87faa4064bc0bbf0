"""Our server beside its peers: `uv run python benchmarks/serving/compare.py bundle=URL twin=FOLDER`.

Each peer runs in an environment of its own (uv makes it from the head of peers/NAME.py) on the same weights in fp32; `twin` is
the save_pretrained folder of the run that made the bundle. Every round starts each server afresh, in turn, so that what else the
machine does meets all of them; servers have the second core, the client has the first. Prints one JSON object; with out=FOLDER
also writes it to compare.json, and a table and a picture beside it.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pigeonhole.bundle import TOKENIZER, open_bundle, seal
from pigeonhole.command import command, say, with_help
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import read_rows
from pigeonhole.errors import ConfigError, RunError
from pigeonhole.options import read_options, setting

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CLIENT_CORE, SERVER_CORE = "0", "1"
CONNECTIONS = (1, 32, 128)
SIZES = (1, 32)  # texts at a time, in process
PEERS = ("plain", "bentoml", "litserve", "mlserver", "transformers", "infinity")
UNASKED = ("infinity",)  # it brings 5 GB of torch for graphics cards along: made only where it is asked for by name
IDLE_PER_S = 20  # what a service costs that has little to do
START_S = 180.0
PORTS = 20_000, 32_000, 10  # below those that a connection gets: one that is tried until a server listens would meet itself
TICK = os.sysconf("SC_CLK_TCK")
IN_PROCESS = """
import json, sys, time
from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
told = json.load(sys.stdin)
classifier, texts = Classifier.open(open_bundle(told["bundle"])), told["texts"]
rates = {}
for size in told["sizes"]:
    done, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < told["seconds"]:
        at = done % (len(texts) - size)
        done += len(classifier.predict(texts[at : at + size]))
    rates[str(size)] = round(done / seconds, 1)
print(json.dumps(rates))
"""


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL")
    twin: str | None = setting(None, "the save_pretrained folder of the same weights")
    texts: str = setting(DataConfig().path, "labelled rows, whose texts are asked")
    rounds: int = setting(3, "times that each server is measured", ge=1, le=100)
    seconds: float = setting(4.0, "of each measurement", ge=1, le=600)
    open_per_s: int = setting(
        60, "requests a second of the open loop; what is more than a peer can do it answers later and later", ge=1
    )
    servers: str = setting("", "some of them only, comma between them; infinity only if named")
    out: str | None = setting(None, "folder for compare.json, compare.md and compare.png")


@dataclass(frozen=True)
class Server:
    """How it is started, and how it wants to be asked."""

    command: list[str]
    environment: dict[str, str]
    path: str = "/predict"
    batch_as_one: bool = False  # a text goes as a list of one

    def body(self, text: str) -> dict[str, Any]:
        if self.path.startswith("/v2/"):
            return {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]}
        if self.path == "/classify":
            return {"model": "classify", "input": [text]}
        return {"text": [text] if self.batch_as_one else text}


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.bundle is None or options.twin is None:
        raise ConfigError(
            "bundle=URL and twin=FOLDER are needed; `train` prints the first, its run folder holds the second as model/"
        )
    wanted = options.servers.split(",") if options.servers else []
    if set(wanted) - {"int8", "fp32", *PEERS}:
        raise ConfigError(f"servers={options.servers}: expected some of int8, fp32, {', '.join(PEERS)}, comma between them")
    if len(os.sched_getaffinity(0)) < 2:
        raise ConfigError("two cores are needed: one for the server, one for the client")
    texts = _texts(options.texts)
    with tempfile.TemporaryDirectory() as scratch:
        bundles = _bundles(options.bundle, Path(scratch))
        chosen = wanted or [*bundles, *(peer for peer in PEERS if peer not in UNASKED)]
        if missing := set(chosen) - {*bundles, *PEERS}:
            raise ConfigError(f"servers={options.servers}: the bundle has no model in {', '.join(sorted(missing))}")
        servers = _servers(bundles, chosen, options.twin, Path(scratch))
        rounds = []
        for number in range(options.rounds):
            found: dict[str, Any] = {}
            for name in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
                found[name] = _measure(servers[name], texts, options, Path(scratch))
                rate = found[name]["closed"]["32"]["requests_per_s"]
                say(f"round {number + 1}: {name}: {rate} requests/s at 32 connections")
            for name in {"int8", "fp32"} & set(chosen):
                found[name]["in_process_per_s"] = _in_process(bundles[name], texts, options.seconds)
            rounds.append(found)
            result = {
                "open_per_s": options.open_per_s,
                "median": _medians(rounds),
                "ratios": _ratios(rounds),
                "rounds": rounds,
                "machine": _machine(),
            }
            if options.out:
                _write(Path(options.out), result)  # what is there already outlives a peer that fails in a later round
    return result


def _texts(url: str) -> list[str]:
    texts = [row.text for row in read_rows(DataConfig(path=url))]
    if len(texts) <= SIZES[-1]:
        raise ConfigError(f"texts={url}: {len(texts)} texts; more than {SIZES[-1]} are needed")
    random.Random(0).shuffle(texts)
    return texts[:2000]


def _bundles(url: str, scratch: Path) -> dict[str, str]:
    """The same bundle served in each of its precisions."""
    opened = open_bundle(url)
    found = {}
    for precision in opened.manifest.models:
        folder = scratch / precision
        shutil.copytree(opened.folder, folder)
        seal(folder, msgspec.structs.replace(opened.manifest, served=precision))
        found[str(precision)] = str(folder)
    return found


def _servers(bundles: Mapping[str, str], chosen: Sequence[str], twin: str, scratch: Path) -> dict[str, Server]:
    """Those that are chosen: each peer's environment takes minutes to make."""
    model = {"MODEL": str(_peers_model(bundles["fp32"], twin, scratch / "peers-model"))}
    folder = {"TWIN": str(Path(twin).resolve())}
    serve = [sys.executable, "-c", "from pigeonhole.serving.entry import main; main()"]  # what `uv run serve` runs
    made: dict[str, Callable[[], Server]] = {
        "plain": lambda: Server(_peer("plain.py"), model),
        "bentoml": lambda: Server(_peer("bentoml_server.py"), model, batch_as_one=True),
        "litserve": lambda: Server(_peer("litserve_server.py"), model),
        "mlserver": lambda: Server(_peer("mlserver_server.py"), model, path="/v2/models/classify/infer"),
        "infinity": lambda: Server(_peer("infinity_server.py"), folder, path="/classify"),
        "transformers": lambda: Server([sys.executable, str(HERE / "peers" / "transformers_pipeline.py")], folder),
    }
    ours = {name: Server(serve, {"PIGEONHOLE_BUNDLE": bundle}) for name, bundle in bundles.items()}
    return {name: ours[name] if name in ours else made[name]() for name in chosen}


def _peer(name: str) -> list[str]:
    """Its program, in its own environment."""
    file = HERE / "peers" / name
    return [_interpreter(file), str(file)]


def _peers_model(bundle: str, twin: str, folder: Path) -> Path:
    """The twin as an ordinary ONNX graph of padded texts, in fp32, which the peers know how to run."""
    from transformers import AutoModelForSequenceClassification

    from pigeonhole.training.export import trace
    from pigeonhole.training.model import take_apart

    folder.mkdir()
    opened = open_bundle(bundle)
    trace(take_apart(AutoModelForSequenceClassification.from_pretrained(twin)), folder / "model.onnx")
    shutil.copy(opened.path(TOKENIZER), folder)
    (folder / "labels.json").write_text(json.dumps(opened.manifest.labels))
    return folder


def _interpreter(script: Path) -> str:
    """The environment that uv makes from the script's head."""
    subprocess.run(["uv", "sync", "--quiet", "--script", script], check=True, env=_outside())
    found = subprocess.run(
        ["uv", "python", "find", "--script", script], capture_output=True, text=True, check=True, env=_outside()
    )
    return found.stdout.strip()


def _outside(**more: str) -> dict[str, str]:
    """The environment without the virtual environment that this program runs in."""
    return {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | more


def _measure(server: Server, texts: list[str], options: Options, scratch: Path) -> dict[str, Any]:
    port = random.Random().randrange(*PORTS)
    url = f"http://127.0.0.1:{port}{server.path}"
    bodies = [server.body(text) for text in texts]
    variables = _outside(PORT=str(port), OMP_NUM_THREADS="1", PIGEONHOLE_LOG=str(scratch / f"log-{port}"), **server.environment)
    began = time.perf_counter()
    with _started(server.command, variables) as process:
        while not _answers(url, bodies[0]):
            if process.poll() is not None or time.perf_counter() - began > START_S:
                raise RunError(f"{' '.join(server.command)} does not answer; it ended with {process.poll()}")
            time.sleep(0.005)
        start_s, start_cpu_s = time.perf_counter() - began, _cpu_s(process.pid)
        told = {"url": url, "bodies": bodies, "seconds": options.seconds}
        foreign = _Foreign(process.pid)
        idle_from = _cpu_s(process.pid)
        _load({**told, "per_s": IDLE_PER_S})
        idle_cores = (_cpu_s(process.pid) - idle_from) / options.seconds
        closed = {str(count): _closed(process.pid, told, count) for count in CONNECTIONS}
        opened = _load({**told, "per_s": options.open_per_s, "seconds": 2 * options.seconds})
        return {
            "closed": closed,
            "open_loop": opened,
            f"cores_at_{IDLE_PER_S}_per_s": round(idle_cores, 3),
            "start_s": round(start_s, 2),
            "start_cpu_s": round(start_cpu_s, 2),
            "peak_mb": round(_peak_mb(process.pid), 1),
            "foreign_cores": foreign.cores(),
        }


def _closed(server: int, told: dict[str, Any], connections: int) -> dict[str, Any]:
    """CPU of the server for a request too: it means something on a busy machine as well."""
    before = _cpu_s(server)
    found = _load({**told, "connections": connections})
    return {**found, "cpu_ms": round(1000 * (_cpu_s(server) - before) / found["answered"], 3)}


@contextlib.contextmanager
def _started(arguments: list[str], variables: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        ["taskset", "-c", SERVER_CORE, *arguments],
        env=variables,
        cwd=HERE / "peers",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        family = _family(process.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        for member in family:  # what a server's own children survive
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, 9)
        process.wait()


def _answers(url: str, body: dict[str, Any]) -> bool:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})  # noqa: S310  our own port
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  our own port
            return b"label" in answer.read()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _load(told: dict[str, Any]) -> dict[str, Any]:
    client = ["taskset", "-c", CLIENT_CORE, sys.executable, str(HERE / "load.py")]
    ran = subprocess.run(client, input=json.dumps(told), capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RunError(f"the client of {told['url']} ended with {ran.returncode}: {ran.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def _in_process(bundle: str, texts: list[str], seconds: float) -> dict[str, float]:
    told = {"bundle": bundle, "texts": texts, "seconds": seconds, "sizes": SIZES}
    program = ["taskset", "-c", SERVER_CORE, sys.executable, "-c", IN_PROCESS]
    ran = subprocess.run(program, input=json.dumps(told), capture_output=True, text=True, check=True)
    rates: dict[str, float] = json.loads(ran.stdout)
    return rates


class _Foreign:
    """Cores that the machine used for neither the server nor the client, since this was made."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._at, self._busy, self._own = time.perf_counter(), _busy_s(), self._own_s()

    def cores(self) -> float:
        others = (_busy_s() - self._busy) - (self._own_s() - self._own)
        return round(others / (time.perf_counter() - self._at), 2)

    def _own_s(self) -> float:
        times = os.times()
        return _cpu_s(self._server) + times.user + times.system + times.children_user + times.children_system


def _busy_s() -> float:
    values = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(values) - values[3] - values[4]) / TICK  # without idle and waiting for disks


def _family(pid: int) -> list[int]:
    children = [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    return [pid, *(member for child in children for member in _family(child))]


def _cpu_s(pid: int) -> float:
    stats = [Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split() for member in _family(pid)]
    return sum(int(value) for stat in stats for value in stat[11:13]) / TICK


def _peak_mb(pid: int) -> float:
    status = itertools.chain.from_iterable(Path(f"/proc/{member}/status").read_text().splitlines() for member in _family(pid))
    return sum(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1000


def _medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    def median(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: median([value[key] for value in values]) for key in values[0]}
        return round(statistics.median(values), 3)

    return {name: median([found[name] for found in rounds]) for name in rounds[0]}


def _ratios(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds of what one round compares: ours against the best peer of that round."""
    peers = [name for name in rounds[0] if name not in ("int8", "fp32")]
    ours = [name for name in ("int8", "fp32") if name in rounds[0]]

    def rate(found: dict[str, Any], name: str) -> float:
        return float(found[name]["closed"]["32"]["requests_per_s"])

    def p99(found: dict[str, Any], name: str) -> float:
        return float(found[name]["open_loop"]["p99_ms"])

    ratios: dict[str, Any] = {}
    for name in ours:
        inside = [rate(found, name) / found[name]["in_process_per_s"]["32"] for found in rounds]
        ratios[f"{name}_of_in_process"] = round(statistics.median(inside), 3)
        if peers:
            cpu = [min(_cpu_ms(found, peer) for peer in peers) / _cpu_ms(found, name) for found in rounds]
            ratios[f"{name}_requests_a_cpu_second_of_best_peer"] = round(statistics.median(cpu), 2)
            best = [rate(found, name) / max(rate(found, peer) for peer in peers) for found in rounds]
            slow = [p99(found, name) / min(p99(found, peer) for peer in peers) for found in rounds]
            ratios[f"{name}_of_best_peer"] = round(statistics.median(best), 2)
            ratios[f"{name}_p99_of_best_peer"] = round(statistics.median(slow), 3)
    return ratios


def _cpu_ms(found: dict[str, Any], name: str) -> float:
    return float(found[name]["closed"]["32"]["cpu_ms"])


def _machine() -> dict[str, Any]:
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    notable = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if flag in flags]
    return {"cores": os.cpu_count(), "cpu_flags": notable, "load_average": os.getloadavg()[0]}


def _write(folder: Path, result: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "compare.md").write_text(table(result))
    _draw(folder / "compare.png", result["median"])


def table(result: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        (
            f"| server | req/s at 1 / 32 / 128 connections | p50/p99 ms at 32 | p99 ms at {result['open_per_s']} req/s "
            "| CPU ms a request at 32 | start s (CPU s) | peak MB | foreign cores |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in result["median"].items():
        rates = " / ".join(f"{found['closed'][str(count)]['requests_per_s']:.0f}" for count in CONNECTIONS)
        at_32, opened = found["closed"]["32"], found["open_loop"]
        lines.append(
            f"| {name} | {rates} | {at_32['p50_ms']:.0f}/{at_32['p99_ms']:.0f} | {opened['p99_ms']:.0f} | {at_32['cpu_ms']} "
            f"| {found['start_s']} ({found['start_cpu_s']}) | {found['peak_mb']:.0f} | {found['foreign_cores']} |"
        )
    return "\n".join([*lines, "", *(f"- {name}: {ratio}" for name, ratio in result["ratios"].items()), ""])


def _draw(path: Path, median: Mapping[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    names = list(median)
    for place, count in enumerate(CONNECTIONS):
        rates = [median[name]["closed"][str(count)]["requests_per_s"] for name in names]
        axes.bar([number + 0.27 * (place - 1) for number in range(len(names))], rates, 0.25, label=str(count))
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("requests/s on one core")
    axes.legend(title="connections")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    command(run)()
