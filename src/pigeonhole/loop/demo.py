"""`uv run demo`: the whole loop on this machine, without network or account: real processes, real HTTP, real training.

Train -> bundle -> gate -> serve -> traffic -> the world changes -> alarm -> feedback -> retrain -> gate -> promoted and swapped
in while traffic runs -> the same texts are asked again. `world=same` changes nothing for many rounds: nothing may be retrained.

No text is on two sides: what the first version learns from, what it is asked in the old world, what is judged in the new one, and
the texts that measure before and after, of which nobody is ever told the truth.
"""

import dataclasses
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from pigeonhole import storage
from pigeonhole.bundle import open_bundle
from pigeonhole.command import command, say, with_help
from pigeonhole.dataset.config import TICKETS, DataConfig
from pigeonhole.dataset.read import Row, read_rows
from pigeonhole.dataset.split import split_rows
from pigeonhole.errors import ConfigError, RunError
from pigeonhole.evaluation.labelled import read_own_rows
from pigeonhole.loop.figure import Event, loop_png, page
from pigeonhole.loop.processes import Processes, call
from pigeonhole.loop.retrain import split_arguments
from pigeonhole.loop.traffic import Answer, Background, Traffic
from pigeonhole.metrics import wilson_interval
from pigeonhole.options import read_options, setting, split_own

USAGE = """usage: demo [key=value …] [KEY OF train=value …] [gate.KEY OF promote=value …]

The whole loop on this machine: no network, no account.
"""
# Enough for a useful model in half a minute on two cores; the server answers from fp32, so that no int8 model is made.
QUICK = (
    "trainer.epochs=1",
    "trainer.refit_head=true",
    "model.max_length=64",
    "export.int8=false",
    "export.served=fp32",
    "tracking=none",
)
# Two encoders fine-tuned apart differ by a point or two of luck, which hides what 81 judged texts teach; one encoder does not.
HEAD_ALONE = (
    "model.sha256=null",
    "model.averaging_layer=false",
    "trainer.epochs=0",
    "trainer.fit_head_first=false",
    "trainer.refit_head=true",
)
SECRET = "known-to-this-demo-only"  # noqa: S105  both ends of it are this demo's own processes
# The new world's messages come through a portal that puts this under each, and most of them are taken for billing: the shift of
# shifted.csv alone costs a few points, which some hundred predictions cannot show.
LINE = "Sent through the Larkfield customer portal: pay invoices, see every charge, update your card, all in one place."
SWAP_S = 30.0  # from a promotion to its first answer
ROUND = 100  # texts of a round where nothing changes


@dataclass(frozen=True)
class DemoConfig:
    world: str = setting(
        "changes", "changes: the loop closes itself; same: nothing changes, nothing may happen", choices=("changes", "same")
    )
    rounds: int = setting(20, "rounds of world=same", ge=1, le=1000)
    data: str = setting(TICKETS, "labelled rows of the old world")
    changed: str = setting(TICKETS.replace("tickets.csv", "shifted.csv"), "labelled rows of the new one, with the same labels")
    line: str | None = setting(LINE, "what a portal puts under each message of the new world; null: nothing")
    warm: bool = setting(
        True, "retraining fits the head alone, on the first version's encoder; false: it trains the encoder anew"
    )
    out: str | None = setting(None, "local folder for all of it; unset: runs/TIME-demo")
    stay: bool = setting(False, "keep the services up at the end, until Ctrl-C")


class Story:
    """What happened when; told on stderr as it happens."""

    def __init__(self) -> None:
        self.began = time.time()
        self.steps: list[dict[str, Any]] = []
        self.events: list[Event] = []

    def tell(self, said: str, event: str = "", *, alarming: bool = False, turning: bool = False) -> None:
        now = time.time()
        self.steps.append({"seconds": round(now - self.began, 1), "said": said})
        if event:
            self.events.append(Event(now, event, alarming, turning))
        say(f"{now - self.began:6.1f} s  {said}")


@dataclass(frozen=True)
class World:
    """The texts, by what they are for."""

    old: list[Row]
    judged: list[Row]  # of the new world; their truth is told
    measuring: list[Row]  # of the new world; their truth is never told


@dataclass(frozen=True)
class Town:
    """The addresses, and who asks there."""

    serve: str
    drift: str
    listen: str
    traffic: Traffic
    story: Story

    def watch(self, since: datetime) -> dict[str, Any]:
        """One run of the drift service over what was asked since; its report."""
        report: dict[str, Any] = call(f"{self.drift}/runs", {"start": since.isoformat(), "end": now().isoformat(), "draw": False})
        said = report["verdict"].replace("_", " ") + (f" by {', '.join(report['alarms'])}" if report["alarms"] else "")
        self.story.tell(
            f"drift report {report['number']}: {said} ({report['rows']['window']} predictions)",
            "alarm" if report["alarms"] else "no drift",
            alarming=bool(report["alarms"]),
        )
        return report

    def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = call(f"{self.listen}/jobs")["jobs"]
        return found

    def wait_for_job(self) -> dict[str, Any]:
        """The job of the latest alarm, when it has ended; it began before the alarm was taken."""
        while (job := self.jobs()[0])["ended"] is None:
            time.sleep(0.2)
        return job


@with_help(USAGE, DemoConfig)
def run(arguments: list[str]) -> dict[str, Any]:
    own, sizes, training, gating = split_demo_arguments(arguments)
    config = read_options(DemoConfig, own)
    out = Path(config.out or f"runs/{now():%Y%m%d-%H%M%S}-demo")
    storage.require_writable("out", str(out))
    out = out.resolve()
    if (out / "demo.json").exists():
        raise ConfigError(f"out={out}: holds a finished demo; choose another folder")
    story = Story()
    changes = config.world == "changes"
    warm = [f"model.pretrained={storage.to_url(out / 'runs' / 'first' / 'model')}", *HEAD_ALONE] if config.warm else []
    retraining = [*training, *warm, *gating, f"rows={out / 'rows'}", f"run={out / 'runs'}"]
    environment = {
        "PIGEONHOLE_REGISTRY": str(out / "registry"),
        "PIGEONHOLE_LOG": str(out / "log"),
        "PIGEONHOLE_REPORTS": str(out / "reports"),
        "PIGEONHOLE_ALARM_SECRET": SECRET,
        "PIGEONHOLE_POLL_S": "0.3",
        "PIGEONHOLE_RETRAIN": shlex.join(retraining),
        "PIGEONHOLE_DRAW": "no",
    }
    with Processes(out, environment) as processes:
        first = _first_version(processes, config, [*QUICK, *training, *sizes], gating, story)
        world = _divide(config, str(first["bundle"]), changes)
        town = _open_town(processes, story)
        result = close_the_loop(town, world) if changes else stay_calm(town, world, config.rounds)
        result = _keep(out, town, {"world": config.world, "first": first, **result}, config.stay)
        if config.stay:
            say(f"all of it stays up until Ctrl-C: {result['url']}")
            _wait_for_ctrl_c()
            say("stopped")
    return result


main = command(run)


def split_demo_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str], list[str]]:
    """Those of this command, the sizes of the first splits, those of `train` and those of the gate. Raises ConfigError."""
    own, others = split_own(DemoConfig, arguments)
    sizes = [argument for argument in others if argument.startswith(("data.val=", "data.test="))]
    others, training, gating = split_arguments([argument for argument in others if argument not in sizes])
    return [*own, *others], sizes, training, gating


def now() -> datetime:
    return datetime.now(UTC)


def _first_version(
    processes: Processes, config: DemoConfig, training: list[str], gating: list[str], story: Story
) -> dict[str, Any]:
    """Trained into a registry beside, so that it too comes through the gate."""
    story.tell(f"training on {config.data}")
    keys = [f"data.path={config.data}", f"out={processes.out / 'runs' / 'first'}", f"registry={processes.out / 'workshop'}"]
    trained = processes.run("train", *training, *keys)
    story.tell(f"version {trained['version']}: accuracy {trained['test']['accuracy']:.3f} on {trained['test']['n']} test rows")
    verdict = processes.run("promote", f"candidate={trained['bundle']}", *gating)
    story.tell(f"gate: {verdict['decision']}, {verdict['reasons'][0]}")
    return {"version": trained["version"], "bundle": trained["bundle"], "test_accuracy": trained["test"]["accuracy"]}


def _divide(config: DemoConfig, bundle: str, changes: bool) -> World:
    """The old world asks what the first version was not fitted to: its validation rows; without a change, its test rows too."""
    split = read_own_rows(open_bundle(bundle))[1].split
    if not changes:
        return World([*split.validation, *split.test], [], [])
    rows = list(read_rows(DataConfig(path=config.changed)))
    if config.line is not None:
        rows = [dataclasses.replace(row, text=f"{row.text} {config.line}") for row in rows]
    parts = split_rows(rows, 0.0, 0.35, seed=0)
    return World(split.validation, parts.train, parts.test)


def _open_town(processes: Processes, story: Story) -> Town:
    serve = processes.serve("serve", "/ready")
    listen = processes.serve("listen", "/health")
    drift = processes.serve("drift", "/health", PIGEONHOLE_ALARM_URL=f"{listen}/alarms")
    story.tell(f"serving at {serve}, watched by {drift}, alarms go to {listen}")
    return Town(serve, drift, listen, Traffic(serve), story)


def close_the_loop(town: Town, world: World) -> dict[str, Any]:
    """Raises RunError where a step of the loop does not come about."""
    traffic, story = town.traffic, town.story
    calm = _ask_and_watch(town, world.old)
    if calm["verdict"] == "drift":  # one run in a hundred may
        story.tell(f"a false alarm; retrain: {_why_not(town.wait_for_job()['result'])}")
    story.tell("the world changes: other messages, and a portal that puts a line under each", "the world changes", turning=True)
    half = len(world.judged) // 2
    since = now()
    early = traffic.ask(world.judged[:half])
    _require_alarm(town.watch(since))
    held = town.wait_for_job()
    story.tell(f"retrain: {_why_not(held['result'])}; people are asked what is right")
    traffic.judge(early, "person")
    since = now()
    late = traffic.ask(world.judged[half:])
    traffic.judge(late, "person")
    before = traffic.ask(world.measuring)
    told = [*early, *late]
    story.tell(
        f"{len(told)} predictions are judged: {_share(told):.3f} of them are right",
        "feedback",
    )
    with Background(traffic, world.measuring, per_second=4):
        _require_alarm(town.watch(since))
        job = town.wait_for_job()
        outcome = job["result"]
        if outcome is None or outcome["decision"] != "PROMOTED":
            raise RunError(f"nothing new came into production: {_why_not(outcome)}; logs/listen.log tells the rest")
        swapped_s = _wait_for_version(traffic, outcome["candidate"])
    story.tell(f"gate: {outcome['gate']['decision']}, {outcome['gate']['reasons'][0]}")
    story.tell(f"version {outcome['candidate']} answers {swapped_s:.1f} s later", "new version")
    since = now()
    after = traffic.ask(world.measuring)
    story.tell(f"the same {len(after)} texts, learned by neither: {_share(before):.3f} right before, {_share(after):.3f} after")
    report = town.watch(since)
    of_old_world = traffic.answers[: len(world.old)]
    return {
        "second": {"version": outcome["candidate"], "gate": outcome["gate"]["reasons"], "rows": outcome["rows"]},
        "accuracy": {"old_world": _accuracy(of_old_world), "before": _accuracy(before), "after": _accuracy(after)},
        "feedback": {"judged": outcome["judged"], "live_accuracy": outcome["live_accuracy"], "interval": outcome["interval"]},
        "alarms": 2 + sum(each["verdict"] == "drift" for each in (calm, report)),
        "verdict_at_the_end": report["verdict"],
        "recovered": _accuracy(after)["right"] > _accuracy(before)["right"],
    }


def _why_not(outcome: dict[str, Any] | None) -> str:
    """What held it, in a line, of what `retrain` printed."""
    if outcome is None:
        return "retrain ended without a result"
    gate = outcome.get("gate")
    return f"the gate says {gate['decision']}, {'; '.join(gate['reasons'])}" if gate else str(outcome["reason"])


def stay_calm(town: Town, world: World, rounds: int) -> dict[str, Any]:
    """Rounds of the old world's texts, each answer judged truthfully; how often that alarmed, and what came of it."""
    alarms = 0
    for number in range(rounds):
        parts = split_rows(world.old, 0.0, min(0.9, ROUND / len(world.old)), seed=number)
        since = now()
        town.traffic.judge(town.traffic.ask(parts.test), "person")
        if town.watch(since)["verdict"] == "drift":
            alarms += 1
            town.wait_for_job()
    jobs = town.jobs()
    retrained = [job for job in jobs if job["result"] is None or job["result"]["decision"] != "WAIT"]
    town.story.tell(f"{rounds} rounds: {alarms} alarms, {len(jobs)} looks at the feedback, {len(retrained)} retrainings")
    return {"rounds": rounds, "alarms": alarms, "jobs": len(jobs), "retrained": len(retrained)}


def _ask_and_watch(town: Town, rows: Sequence[Row]) -> dict[str, Any]:
    since = now()
    answers = town.traffic.ask(rows)
    town.story.tell(f"{len(answers)} texts of the old world: {_share(answers):.3f} of the answers are right")
    return town.watch(since)


def _require_alarm(report: dict[str, Any]) -> None:
    if report["verdict"] != "drift" or not report.get("alarm", {}).get("sent"):
        raise RunError(
            f"the world changed, and drift report {report['number']} says {report['verdict']}, alarm {report.get('alarm')}"
        )


def _wait_for_version(traffic: Traffic, version: str) -> float:
    """How long it took until an answer came from it."""
    began = time.monotonic()
    while traffic.answers[-1].version != version:
        if time.monotonic() - began > SWAP_S:
            raise RunError(f"version {version} is in production, and {traffic.answers[-1].version} answers still")
        time.sleep(0.05)
    return time.monotonic() - began


def _share(answers: Sequence[Answer]) -> float:
    return sum(answer.right for answer in answers) / len(answers)


def _accuracy(answers: Sequence[Answer]) -> dict[str, Any]:
    right = sum(answer.right for answer in answers)
    found = wilson_interval(right, len(answers))
    return {"n": len(answers), "right": right, "accuracy": found.estimate, "interval": [found.low, found.high]}


def _keep(out: Path, town: Town, result: dict[str, Any], stays: bool) -> dict[str, Any]:
    """demo.json, loop.png and index.html."""
    story, traffic = town.story, town.traffic
    kept = {
        **result,
        "predictions": len(traffic.answers),
        "failed_requests": traffic.failed,
        "steps": story.steps,
        "seconds": {"total": round(time.time() - story.began, 1)},
        "figure": storage.to_url(out / "loop.png"),
        "url": storage.to_url(out / "index.html"),
    }
    links = (
        {"drift reports": f"{town.drift}/reports/latest", "the service": f"{town.serve}/docs"}
        if stays
        else {"the numbers": "demo.json"}
    )
    storage.write(str(out / "loop.png"), loop_png(traffic.answers, story.events))
    storage.write(str(out / "index.html"), page(kept, "loop.png", links).encode())
    storage.write(str(out / "demo.json"), msgspec.json.format(msgspec.json.encode(kept)))
    say(f"figure and story: {kept['url']}")
    return kept


def _wait_for_ctrl_c() -> None:
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
