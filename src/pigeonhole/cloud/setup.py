"""`uv run invoke cloud.setup | cloud.preflight | cloud.teardown`: what resources.py describes, looked for, made, taken away.

Each line of gcloud is printed before it runs; what is there is not made again, and is changed where it is not as described.
`--dry-run` prints all lines and runs none.
"""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pigeonhole.cloud import quota
from pigeonhole.cloud.resources import FOUND, Binding, Line, Site, Step, for_github, left_out, read_site, steps
from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError, GateError, RunError

HELP = """usage: [PIGEONHOLE_PROJECT=… PIGEONHOLE_REGION=…] python -m pigeonhole.cloud.setup setup|preflight|teardown
       [--dry-run] [--data] [image=COMMIT] [machine=cpu|gpu|spot]

setup makes what is missing; preflight names each missing thing with the line that makes it (exit 4); teardown takes away the
services and what setup made, and what holds data (bucket, images, secrets) only with --data. --dry-run prints the lines.
PIGEONHOLE_GITHUB (OWNER/NAME) may deploy by its own tokens; PIGEONHOLE_BILLING_ACCOUNT and PIGEONHOLE_BUDGET make a budget alert;
PIGEONHOLE_EMAIL is told of alerts. One that is not set is named, with what is left out for want of it.
preflight looks at the quota of a machine of `vertex` (cpu) too, and at the images of a commit where one is named.
"""
NOBODY = "not currently have an active account"
# The second line is of an API that is off, under which there is nothing yet. 404 as a word: a project's number may hold it.
NOT_THERE = re.compile(
    r"not_found|not found|does not exist|(?<![\w-])404(?![\w-])|unknown service account"
    r"|has not been used in project|not enabled on project"
)


class Memory:
    """What gcloud said, asked once a line: a second for each of them adds up."""

    def __init__(self) -> None:
        self._said: dict[Line, str] = {}

    def __call__(self, line: Line) -> str:
        if line not in self._said:
            self._said[line] = ask(line)
        return self._said[line]

    def forget(self, *lines: Line) -> None:
        """These lines; without any, all of them."""
        for line in lines or list(self._said):
            self._said.pop(line, None)


@with_help(HELP)
def run(arguments: list[str]) -> dict[str, Any]:
    verbs = [argument for argument in arguments if not argument.startswith("--") and "=" not in argument]
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    flags = {argument for argument in arguments if argument.startswith("--")}
    unknown = (flags - {"--dry-run", "--data"}) | (options.keys() - {"image", "machine"})
    if len(verbs) != 1 or verbs[0] not in VERBS or unknown:
        wrong = min(unknown) if unknown else " ".join(verbs) or "nothing"
        raise ConfigError(
            f"{wrong}: expected one of {', '.join(VERBS)}, and --dry-run, --data, image=COMMIT, machine=cpu|gpu|spot"
        )
    _check_options(verbs[0], options, flags, arguments)
    site = read_site(os.environ)
    if image := options.get("image"):
        site.project.image("serve", image)
    for name, what in left_out(site).items():
        say(f"left out, because {name} is not set: {what}")
    if "--dry-run" in flags:
        return dry_run(verbs[0], site, "--data" in flags)
    site = read_site(os.environ, project_number(site))
    if verbs[0] == "preflight":
        return preflight(site, Memory(), options)
    return setup(site, Memory()) if verbs[0] == "setup" else teardown(site, Memory(), with_data="--data" in flags)


def _check_options(verb: str, options: dict[str, str], flags: set[str], arguments: list[str]) -> None:
    """Before anything is asked: what would be passed over is refused too."""
    if len(options) + len(flags) + 1 < len(arguments):
        raise ConfigError(f"{' '.join(arguments)}: a word is given twice")
    if verb != "preflight" and options:
        raise ConfigError(f"{min(options)}: {verb} looks at no {min(options)}; preflight does")
    if verb != "teardown" and "--data" in flags:
        raise ConfigError(f"--data: {verb} takes nothing away; teardown does")
    if (machine := options.get("machine", "cpu")) not in quota.NEEDED:
        raise ConfigError(f"machine={machine}: allowed is {' | '.join(quota.NEEDED)}")


def dry_run(verb: str, site: Site, with_data: bool) -> dict[str, Any]:
    """The lines that would run, if nothing (setup, preflight) or everything (teardown) were there."""
    lines = {
        "setup": [step.make for step in all_steps(site) if step.make and not (step.by_hand or step.mends)],
        "preflight": list(dict.fromkeys(step.find for step in all_steps(site))),
        "teardown": [step.delete for step in removable(site, with_data)],
    }[verb]
    for line in lines:
        say(shlex.join(line))
    return {"project": site.project.id, "lines": len(lines)}


def setup(site: Site, ask: Memory) -> dict[str, Any]:
    """Raises RunError at the first line that fails; the same command goes on from there."""
    made: list[Step] = []
    there, left = 0, []
    for step in [step for step in all_steps(site) if step.make]:
        if found(step, ask):
            there += not step.mends
        elif step.by_hand or (step.needs and not ask(step.needs)):
            left.append({"what": step.what, "line": shlex.join(filled(step.make, step, ask))})
            say(f"left to do {'by hand' if step.by_hand else 'after `uv run deploy`'}: {step.what}")
        else:
            line = filled(step.make, step, ask)
            say(shlex.join(line))
            do(line)
            if not step.binding and not step.word:  # whose answers many steps read
                ask.forget(filled(step.find, step, ask))
            made.append(step)
    ask.forget()
    for step in made:
        if not found(step, ask):
            raise RunError(f"{step.what} is still not there after: {shlex.join(step.make)}")
    github = list(for_github(site)) if site.repository else []
    for text in github:
        say(f"on GitHub, once: {text}")
    return {"project": site.project.id, "made": [step.what for step in made], "there": there, "left": left, "github": github}


def teardown(site: Site, ask: Memory, *, with_data: bool) -> dict[str, Any]:
    """What holds data stays unless `with_data`; APIs and GitHub's identity pool stay."""
    taken = []
    for step in removable(site, with_data):
        if found(step, ask):
            for name in ask(step.find).split() if FOUND in step.delete else [""]:
                line = tuple(name if word == FOUND else word for word in step.delete)
                say(shlex.join(line))
                do(line)
            taken.append(step.what)
    kept = [step.what for step in all_steps(site) if step.holds_data and not with_data]
    return {"project": site.project.id, "taken": taken, "kept": kept}


def preflight(site: Site, ask: Memory, options: dict[str, str]) -> dict[str, Any]:
    """Raises GateError with every missing thing and the line that makes it."""
    missing = [
        {"what": step.what, "line": shlex.join(filled(step.make, step, ask))}
        for step in all_steps(site)
        if step.make and (not step.needs or ask(step.needs)) and not found(step, ask)
    ]
    missing += quota.missing(site, ask, options.get("machine", "cpu"))
    if image := options.get("image"):
        missing += quota.images(site, image, quota.fetch(ask(("gcloud", "auth", "print-access-token")).strip()))
    for thing in missing:
        say(f"missing: {thing['what']}\n  {thing['line']}")
    result = {"project": site.project.id, "missing": missing}
    if missing:
        raise GateError(f"{len(missing)} things are missing; each stands above with the line that makes it", result)
    return result


def all_steps(site: Site) -> list[Step]:
    return list(steps(site, Path.cwd()))


def removable(site: Site, with_data: bool) -> Iterator[Step]:
    """In reverse: a binding goes before the account that it names."""
    return (step for step in reversed(all_steps(site)) if step.delete and (with_data or not step.holds_data))


def filled(line: Line, step: Step, ask: Callable[[Line], str]) -> Line:
    """A line of a step with what the step asks for put in; a name that is not there yet stays a word."""
    for word, question, otherwise in step.asked:
        answer = (ask(question).split() or [otherwise])[0]
        line = tuple(part.replace(word, answer) for part in line)
    return line


def found(step: Step, ask: Memory) -> bool:
    said = ask(filled(step.find, step, ask)).strip()
    if step.word:
        return step.word in said.splitlines()
    return holds(json.loads(said or "{}"), step.binding) if step.binding else bool(said)


def holds(policy: dict[str, Any], wanted: Binding) -> bool:
    return any(
        binding.get("role") == wanted.role
        and wanted.member in binding.get("members", [])
        and binding.get("condition", {}).get("title", "") == wanted.title
        for binding in policy.get("bindings", [])
    )


def project_number(site: Site) -> str:
    """Raises ConfigError for a project that is not there, or not there for this account."""
    line = ("gcloud", "projects", "describe", site.project.id, "--format=value(projectNumber)")
    number = ask(line).strip()
    if not number.isdigit():
        raise ConfigError(f"project {site.project.id} is not to be seen; `gcloud auth login`, then `gcloud projects list`")
    return number


def ask(line: Line) -> str:
    """What a reading line prints; "" where the thing is not there. Raises RunError for any other no."""
    ran = _gcloud(line)
    if ran.returncode and not NOT_THERE.search(ran.stderr.lower()):
        raise RunError(f"{shlex.join(line)}: {_first_error(ran.stderr)}")
    return "" if ran.returncode else ran.stdout


def do(line: Line) -> None:
    """Run a line that changes something. Raises RunError."""
    ran = _gcloud(line)
    if ran.returncode:
        raise RunError(f"{shlex.join(line)}: {_first_error(ran.stderr)}")


def _gcloud(line: Line) -> "subprocess.CompletedProcess[str]":
    try:
        ran = subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise ConfigError("gcloud is not here; install the Google Cloud CLI, then `gcloud auth login`") from error
    if ran.returncode and NOBODY in ran.stderr:
        raise ConfigError("nobody is signed in to gcloud; `gcloud auth login`, or `gcloud config set account` where somebody is")
    return ran


def _first_error(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("ERROR")), lines[0] if lines else "it said nothing")


VERBS = ("setup", "preflight", "teardown")
main = command(run)

if __name__ == "__main__":
    main()
