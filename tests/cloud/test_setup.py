"""cloud.setup, preflight and teardown against a gcloud of this test's own, which keeps what it made and answers honestly.

What it cannot show: that Google takes the lines. Their form is held to gcloud's own offline linter where gcloud is installed.
"""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pigeonhole.cloud import quota, setup
from pigeonhole.cloud.project import Project
from pigeonhole.cloud.resources import POLICIES, SCHEDULE, WRITES, Binding, Line, Site, Step, left_out, read_site, steps
from pigeonhole.errors import ConfigError, GateError, RunError
from pigeonhole.loop import vertex_retrain
from pigeonhole.training import vertex

ROOT = Path(__file__).parents[2]
SITE = Site(
    Project("some-project", "europe-west4"), "123456789012", "owner/name", "0A0A0A-0B0B0B-0C0C0C", email="someone@example.org"
)
VARIABLES = {
    "PIGEONHOLE_PROJECT": "some-project",
    "PIGEONHOLE_REGION": "europe-west4",
    "PIGEONHOLE_GITHUB": "owner/name",
    "PIGEONHOLE_BILLING_ACCOUNT": "0A0A0A-0B0B0B-0C0C0C",
    "PIGEONHOLE_EMAIL": "someone@example.org",
}
FAKE = """#!{python}
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
line = sys.argv[1:]
with (folder / "asked").open("a") as stream:
    stream.write(json.dumps(line) + "\\n")
known = json.loads((folder / "known.json").read_text())
there = json.loads((folder / "there.json").read_text())
def end(code, out="", error=""):
    (folder / "there.json").write_text(json.dumps(there))
    sys.stdout.write(out); sys.stderr.write(error); sys.exit(code)
if "denied" in there:
    end(1, error="ERROR: (gcloud) PERMISSION_DENIED: The caller does not have permission")
if "disabled" in there and line[0] not in ("services", "projects"):
    end(1, error="ERROR: (gcloud.x) PERMISSION_DENIED: X API has not been used in project 123 before or it is disabled. Enable")
if "hidden" in there:
    end(1, error="ERROR: (gcloud.x) PERMISSION_DENIED: The caller may not look at project 140412 (request 99404e)")
if "nobody" in there:
    end(1, error="ERROR: (gcloud.projects.describe) You do not currently have an active account selected.\\nPlease run:\\n")
flags = dict(word[2:].split("=", 1) for word in line if word.startswith("--") and "=" in word)
verbs = [word for word in line if word.endswith("-iam-policy-binding") or word == "get-iam-policy"]
if verbs:
    at = line.index(verbs[0])
    key = " ".join(line[:at] + line[at + 1 : at + 2])
    policy = there.setdefault("policy " + key, {{"bindings": []}})
    if verbs[0] == "get-iam-policy":
        end(0, json.dumps(policy))
    title = flags.get("condition", "").partition("title=")[2]
    binding = {{"role": flags["role"], "members": [flags["member"]], **({{"condition": {{"title": title}}}} if title else {{}})}}
    if verbs[0].startswith("add"):
        policy["bindings"].append(binding)
    else:
        policy["bindings"].remove(binding)
    end(0)
asked = [word.partition("=")[0] + "=" if word.startswith("--set-notification-channels=") else word for word in line]
verb, what = known.get(" ".join(asked), ("", ""))
labels = flags.get("user-labels", "") + flags.get("update-user-labels", "") + flags.get("update-labels", "")
named = ("attribute-condition", "budget-amount", "schedule")
content = labels.rpartition("=")[2] or next((flags[name] for name in named if name in flags), True)
if verb == "answer":
    end(0, what)
if verb == "make":
    if what in there:
        end(1, error="ERROR: ALREADY_EXISTS")
    there[what] = content
    end(0)
if verb == "mend":
    if what.startswith("alert policy"):  # as a whole: whom it told is gone
        there.update({{other: flags["set-notification-channels"] for other in there if other == what + " channels"}})
    there[what] = content
    end(0)
if verb == "content":
    end(0, str(there.get(what, "")) + "\\n")
if verb == "delete":
    del there[what]
    end(0)
if verb == "names":
    end(0, "".join(name.removeprefix(what) + "\\n" for name in there if name.startswith(what)))
if verb == "find":
    if what in there:
        end(0, what.replace(" ", "-") + "\\n")
    end(0) if "list" in line else end(1, error="ERROR: NOT_FOUND: it does not exist")
end(2, error="ERROR: (gcloud) Invalid choice: " + " ".join(line))
"""


@functools.cache
def all_of_site() -> tuple[Step, ...]:
    return tuple(steps(SITE, ROOT))


def named(step: Step, line: Line) -> Line:
    """A line with the names that the gcloud of this test gives to what it has made."""
    names = {"FOUND": step.what.replace(" ", "-")}
    for word, question, otherwise in step.asked:
        names[word] = next((each.what.replace(" ", "-") for each in all_of_site() if each.find == question), otherwise)
    return tuple(re.sub("|".join(names), lambda found: names[found.group()], word) for word in line)


def mended(step: Step) -> str:
    """The thing whose content `step.word` is: the one that it needs, or itself."""
    return next((each.what for each in all_of_site() if each.find == step.needs), step.what)


def is_switch(step: Step) -> bool:
    """Of one word a thing, all in one answer."""
    return step.what.startswith("API ")


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a gcloud that is first on the path; nothing is there yet, and the quota is enough."""
    known: dict[str, tuple[str, str]] = {}
    for step in all_of_site():
        for verb, line in (("find", step.find), ("make", step.make), ("delete", step.delete), ("find", step.needs)):
            if line:
                what = mended(step) if line is step.needs else step.what
                known[" ".join(named(step, line)[1:])] = (verb, what)
        if is_switch(step):
            known[" ".join(step.find[1:])] = ("names", "API ")
        elif step.word:
            known[" ".join(step.find[1:])] = ("content", mended(step))
            known[" ".join(named(step, step.make)[1:])] = ("mend", mended(step))
        for _, question, otherwise in step.asked:
            if not otherwise:
                known[" ".join(question[1:])] = ("content", f"{mended(step)} channels")
    known["projects describe some-project --format=value(projectNumber)"] = ("answer", SITE.number)
    dimension = {"applicableLocations": ["europe-west4"], "details": {"value": "42"}}
    quota = [{"quotaId": "CpusPerRegion", "dimensionsInfos": [dimension]}]
    metric = "aiplatform.googleapis.com/custom_model_training_cpus"
    asked = "beta quotas info list --service=aiplatform.googleapis.com --project=some-project"
    known[f"{asked} --filter=metric={metric} --format=json"] = ("answer", json.dumps(quota))
    known[f"{asked} --filter=metric={metric.replace('cpus', 'nvidia_t4_gpus')} --format=json"] = ("answer", "[]")
    (tmp_path / "known.json").write_text(json.dumps(known))
    (tmp_path / "there.json").write_text("{}")
    file = tmp_path / "gcloud"
    file.write_text(FAKE.format(python=f"{sys.executable} -S"))
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    return tmp_path


def everything() -> dict[str, Any]:
    """What is there once all is set up."""
    found: dict[str, Any] = {}
    for step in all_of_site():
        if not step.binding:
            found[mended(step) if step.mends else step.what] = True if is_switch(step) else step.word or True
            continue
        at = step.find.index("get-iam-policy")
        policy = found.setdefault("policy " + " ".join([*step.find[1:at], step.find[at + 1]]), {"bindings": []})
        condition = {"condition": {"title": step.binding.title}} if step.binding.title else {}
        policy["bindings"].append({"role": step.binding.role, "members": [step.binding.member], **condition})
    return found


def there(cloud: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cloud / "there.json").read_text())
    return found


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Linux")


def test_a_dry_run_prints_every_line_and_runs_none(cloud: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = setup.run(["setup", "--dry-run"])
    lines = capsys.readouterr().err.splitlines()
    assert told == {"project": "some-project", "lines": len(lines)}
    assert all(line.startswith("gcloud ") and "--project=some-project" in line for line in lines)
    assert "projects/PROJECT_NUMBER/" in "\n".join(lines)
    assert not (cloud / "asked").exists()


def test_set_up_twice_makes_everything_once_and_teardown_leaves_what_holds_data(cloud: Path) -> None:
    first = setup.run(["setup"])
    assert first is not None
    assert first["there"] == 0
    left = [thing["what"] for thing in first["left"]]
    assert left[0].startswith("value of secret wandb-api-key")
    assert all("pigeonhole-" in what or "drift" in what for what in left[1:])
    again = setup.run(["setup"])
    assert again is not None
    assert (again["made"], again["there"]) == ([], len(first["made"]))
    told = (ROOT / "docs/how-to/google-cloud.md").read_text(encoding="utf-8")
    for line in again["github"]:  # the documentation's own, with values
        assert re.search(" ".join(line.split()[:3]).replace("repos/owner/name", "repos/OWNER/NAME"), told)
    workflow = (ROOT / ".github/workflows/deploy.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"vars\.(\w+)", workflow)) == {line.split()[3] for line in again["github"] if "variable" in line}
    assert "environment: production" in workflow
    kept = setup.run(["teardown"])
    assert kept is not None
    assert [what.split()[0] for what in kept["kept"]] == ["bucket", "image", "secret", "secret"]
    assert set(kept["kept"]) <= there(cloud).keys()
    gone = setup.run(["teardown", "--data"])
    assert gone is not None
    stays = ("policy", "API", "lifecycle", "clean-up", "identity")  # what is part of another thing goes with it
    assert [what for what in there(cloud) if not (what.startswith(stays) or " tells " in what)] == []
    assert all(not policy["bindings"] for what, policy in there(cloud).items() if what.startswith("policy"))


def test_what_is_there_and_not_as_described_is_mended_in_its_place_and_then_left_alone(cloud: Path) -> None:
    """A rule of another release, a repository that deployed before; whom a policy tells is not of its file and stays."""
    policy, provider, told = (
        "alert policy PigeonholeErrors",
        "identity provider pigeonhole-github/github",
        "projects/p/channels/7,8",
    )
    older = everything() | {policy: "0123456789ab", f"{policy} channels": told, provider: "assertion.repository=='other/name'"}
    older["lifecycle of gs://some-project-pigeonhole"] = ""
    older |= {"budget of this project, told at 50, 90 and 100 %": "50", "hourly drift run": "0 * * * *"}
    (cloud / "there.json").write_text(json.dumps(older))
    first = setup.run(["setup"])
    assert first is not None
    assert first["made"] == [
        "lifecycle of gs://some-project-pigeonhole",
        f"{provider} for owner/name, main only",
        f"{policy} as in {POLICIES}/errors.json",
        "budget of 100 a month",
        f"drift run at {SCHEDULE}",
    ]
    assert there(cloud) == everything() | {f"{policy} channels": told}
    again = setup.run(["setup"])
    assert again is not None
    assert again["made"] == []


def test_another_rule_is_another_fingerprint(tmp_path: Path) -> None:
    for name in ("cloudbuild", "monitoring"):
        shutil.copytree(ROOT / name, tmp_path / name)
    before = {step.what: step.word for step in steps(SITE, tmp_path)}
    file = tmp_path / "monitoring/alert_policies/errors.json"
    file.write_text(file.read_text(encoding="utf-8").replace("> 0.02", "> 0.03"), encoding="utf-8")
    after = {step.what: step.word for step in steps(SITE, tmp_path)}
    assert [what for what in after if after[what] != before[what]] == [
        f"alert policy PigeonholeErrors as in {POLICIES}/errors.json"
    ]
    assert all(re.fullmatch("[0-9a-f]{12}", word) for what, word in after.items() if what.startswith("alert") and word)


def test_teardown_takes_the_services_that_deploy_made_before_the_accounts_that_they_run_as(cloud: Path) -> None:
    kept = {what: value for what, value in everything().items() if what.startswith(("Cloud Run", "account"))}
    (cloud / "there.json").write_text(json.dumps(kept))
    gone = setup.run(["teardown"])
    assert gone is not None
    services = [f"Cloud Run service pigeonhole-{name}" for name in ("frontend", "drift", "serve")]
    assert gone["taken"][:3] == services
    assert len(gone["taken"]) == len(kept)


def test_preflight_names_each_missing_thing_with_the_line_that_makes_it(cloud: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = everything()
    del kept["API run.googleapis.com"], kept["secret pigeonhole-run-monitoring"], kept["bucket gs://some-project-pigeonhole"]
    kept["policy secrets wandb-api-key"] = {"bindings": []}
    (cloud / "there.json").write_text(json.dumps(kept))
    with pytest.raises(GateError) as refused:
        setup.run(["preflight", "machine=gpu"])
    result: Any = refused.value.result
    missing = {thing["what"]: thing["line"] for thing in result["missing"]}
    assert missing["API run.googleapis.com"] == "gcloud services enable run.googleapis.com --project=some-project"
    assert missing["bucket gs://some-project-pigeonhole"].startswith("gcloud storage buckets create gs://some-project-pigeonhole")
    assert "pigeonhole-run-monitoring --replication-policy" in missing["secret pigeonhole-run-monitoring"]
    role = "roles/secretmanager.secretAccessor on wandb-api-key for pigeonhole-train@some-project.iam.gserviceaccount.com"
    assert "add-iam-policy-binding wandb-api-key" in missing[role]
    assert "--preferred-value=1" in missing["quota of 1 custom_model_training_nvidia_t4_gpus in europe-west4"]
    told = capsys.readouterr().err
    assert all(f"missing: {what}\n  {line}" in told for what, line in missing.items())


class AllBut(setup.Memory):
    """A gcloud in which all is there but one thing."""

    def __init__(self, everything: list[Step], lacking: Step | None) -> None:
        super().__init__()
        self.lacking = lacking
        self.asked_by: dict[Line, list[Step]] = {}
        for step in everything:
            self.asked_by.setdefault(named(step, step.find), []).append(step)

    def __call__(self, line: Line) -> str:
        steps_of = self.asked_by.get(line, [])
        kept = [step for step in steps_of if step is not self.lacking]
        if "quotas" in line:
            return json.dumps([{"quotaId": "Q", "dimensionsInfos": [{"details": {"value": "-1"}}]}])
        if any(step.binding for step in steps_of):
            return json.dumps({"bindings": [bound(step.binding) for step in kept if step.binding]})
        return "\n".join(step.word or step.what.replace(" ", "-") for step in kept)


def bound(binding: Binding) -> dict[str, Any]:
    condition = {"condition": {"title": binding.title}} if binding.title else {}
    return {"role": binding.role, "members": [binding.member], **condition}


def test_whatever_single_thing_is_missing_it_alone_is_named_with_its_line() -> None:
    everything = list(all_of_site())
    assert setup.preflight(SITE, AllBut(everything, None), {"machine": "spot"})["missing"] == []
    for step in [step for step in everything if step.make]:
        with pytest.raises(GateError) as refused:
            setup.preflight(SITE, AllBut(everything, step), {"machine": "spot"})
        result: Any = refused.value.result
        missing = {thing["what"]: thing["line"] for thing in result["missing"]}
        assert missing.pop(step.what) == shlex.join(named(step, step.make))
        # Without the channel no policy tells it either.
        assert len(missing) == (7 if step.what.startswith("notification channel") else 0)


def test_an_account_that_may_not_look_is_told_so_and_nothing_is_made(cloud: Path) -> None:
    (cloud / "there.json").write_text('{"denied": true}')
    with pytest.raises(RunError, match="PERMISSION_DENIED"):
        setup.run(["setup"])
    assert len((cloud / "asked").read_text().splitlines()) == 1


def test_a_fresh_project_is_looked_at_though_its_apis_are_off(cloud: Path) -> None:
    (cloud / "there.json").write_text('{"disabled": true}')
    with pytest.raises(GateError) as refused:
        setup.run(["preflight"])
    result: Any = refused.value.result
    missing = [thing["what"] for thing in result["missing"]]
    assert "API artifactregistry.googleapis.com" in missing
    assert "bucket gs://some-project-pigeonhole" in missing
    assert "quota of 8 custom_model_training_cpus in europe-west4" in missing


def test_a_no_with_404_in_a_number_is_still_a_no(cloud: Path) -> None:
    (cloud / "there.json").write_text('{"hidden": true}')
    with pytest.raises(RunError, match="may not look at project"):
        setup.ask(("gcloud", "iam", "service-accounts", "describe", "x"))


def test_what_the_lines_themselves_need_is_switched_on_first() -> None:
    """Google's page of workload identity names these four; without the first no account can be made."""
    names = [step.word for step in all_of_site() if step.word]
    assert {f"{name}.googleapis.com" for name in ("iam", "cloudresourcemanager", "iamcredentials", "sts")} <= set(names)


def test_without_an_account_the_next_step_is_told(cloud: Path) -> None:
    (cloud / "there.json").write_text('{"nobody": true}')
    with pytest.raises(ConfigError, match="gcloud auth login"):
        setup.run(["preflight"])


def test_without_gcloud_the_next_step_is_told(monkeypatch: pytest.MonkeyPatch, cloud: Path) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="install the Google Cloud CLI"):
        setup.run(["preflight"])


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PIGEONHOLE_GITHUB", "just-a-name", "expected OWNER/NAME"),
        ("PIGEONHOLE_BILLING_ACCOUNT", "12", "gcloud billing accounts list"),
        ("PIGEONHOLE_BUDGET", "a lot", "expected a whole amount"),
        ("PIGEONHOLE_EMAIL", "someone", "expected an address"),
    ],
)
def test_a_variable_that_cannot_be_right_is_named(name: str, value: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_site({**VARIABLES, name: value})


@pytest.mark.parametrize("arguments", [[], ["destroy"], ["setup", "--force"], ["preflight", "tag=latest"], ["setup", "teardown"]])
def test_a_word_that_is_not_known_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="expected one of setup, preflight, teardown"):
        setup.run(arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["preflight", "machine=tpu"], r"machine=tpu: allowed is cpu \| gpu \| spot"),
        (["preflight", "image=latest"], "image=latest: expected the commit that it was built from"),
        (["preflight", "machine=cpu", "machine=gpu"], "machine=gpu.*: a word is given twice"),
        (["setup", "image=0123456"], "image: setup looks at no image; preflight does"),
        (["teardown", "machine=gpu"], "machine: teardown looks at no machine; preflight does"),
        (["setup", "--data"], "--data: setup takes nothing away; teardown does"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_word_that_would_be_passed_over_is_refused_before_anything_is_asked(
    arguments: list[str], told: str, dry: list[str], cloud: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        setup.run([*arguments, *dry])
    assert not (cloud / "asked").exists()


def test_in_another_folder_nothing_is_set_up_without_its_alerts(
    cloud: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in setup.VERBS:
        with pytest.raises(ConfigError, match="there is no such file here; run this in the folder of the repository"):
            setup.run([verb, "--dry-run"])
    (tmp_path / "cloudbuild").mkdir()
    shutil.copy(ROOT / "cloudbuild/lifecycle.json", tmp_path / "cloudbuild")
    with pytest.raises(ConfigError, match="monitoring/alert_policies: there is no such folder here; run this in the folder"):
        setup.run(["setup", "--dry-run"])


def test_a_budget_is_of_one_project_where_several_are_paid_from_one_account() -> None:
    def budget(project: str) -> Step:
        site = Site(Project(project, "europe-west4"), billing="0A0A0A-0B0B0B-0C0C0C")
        (found,) = [step for step in steps(site, ROOT) if step.what.startswith("budget of this project")]
        return found

    one, other = budget("some-project"), budget("other-project")
    filters = [word for step in (one, other) for word in step.find if word.startswith("--filter=")]
    assert filters == ["--filter=displayName=pigeonhole-some-project", "--filter=displayName=pigeonhole-other-project"]
    assert {"--display-name=pigeonhole-some-project", "--filter-projects=projects/some-project"} <= set(one.make)
    told = [f"{float(word.rpartition('=')[2]):.0%}"[:-1] for word in one.make if word.startswith("--threshold-rule=percent=")]
    assert one.what.endswith(f"told at {', '.join(told[:-1])} and {told[-1]} %")


def test_an_address_that_others_are_told_at_too_keeps_their_channel() -> None:
    """`teardown` deletes what `find` prints: somebody's own channel to the same address is not ours."""
    (channel,) = [step for step in all_of_site() if step.what.startswith("notification channel")]
    assert any(word.startswith('--filter=displayName="Pigeonhole" AND ') for word in channel.find)
    assert "--display-name=Pigeonhole" in channel.make


def test_a_policy_that_tells_somebody_else_is_not_taken_for_one_that_tells_the_new_address() -> None:
    told = [step for step in all_of_site() if " tells " in step.what]
    assert len(told) == 7
    for step in told:
        (chosen,) = [word for word in step.find if word.startswith("--filter=")]
        assert chosen.endswith('" AND notificationChannels:"CHANNEL"')
        assert "Channels/1" in " ".join(setup.filled(step.find, step, lambda _: "projects/p/notificationChannels/1"))


def test_drift_is_asked_with_a_token_for_its_own_address_and_given_as_long_as_it_may_take() -> None:
    (line,) = [step.make for step in all_of_site() if step.what.startswith("hourly drift run")]
    address = "https://pigeonhole-drift-123456789012.europe-west4.run.app"
    asked = {f"--uri={address}/runs", f"--oidc-token-audience={address}", "--attempt-deadline=300s", "--http-method=POST"}
    assert asked <= set(line)
    # PigeonholeDriftSilent waits three hours for a run.
    assert [word for word in line if re.fullmatch(r"--schedule=\d{1,2} \* \* \* \*", word)]


def test_only_main_of_one_repository_may_deploy() -> None:
    lines = [shlex.join(step.make) for step in all_of_site()]
    (provider,) = [line for line in lines if "create-oidc" in line]
    assert "assertion.repository==" in provider
    assert "assertion.ref==" in provider
    assert "refs/heads/main" in provider
    bare = Site(SITE.project)
    assert [step for step in steps(bare, ROOT) if step.what.startswith(("identity", "budget", "notification"))] == []
    assert list(left_out(bare)) == ["PIGEONHOLE_GITHUB", "PIGEONHOLE_BILLING_ACCOUNT", "PIGEONHOLE_EMAIL"]
    assert left_out(SITE) == {}


def test_what_is_left_out_is_told(cloud: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("PIGEONHOLE_EMAIL")
    setup.run(["setup", "--dry-run"])
    assert "left out, because PIGEONHOLE_EMAIL is not set: alert policies tell nobody" in capsys.readouterr().err


def test_nobody_gets_a_role_that_can_do_anything() -> None:
    roles = {step.binding.role for step in all_of_site() if step.binding}
    assert not {role for role in roles if re.search(r"roles/(owner|editor|viewer)$|[aA]dmin$", role)}


def roles_of(account: str, thing: str = "") -> set[str]:
    """What an account may do, on the project or on a thing whose name begins so."""
    member = f"serviceAccount:{SITE.project.account(account)}"
    bound = [step for step in all_of_site() if step.binding and step.binding.member == member]
    return {
        step.binding.role for step in bound if step.binding and step.make[step.make.index("add-iam-policy-binding") + 1] == thing
    }


def test_who_answers_strangers_has_nothing_of_the_project_but_its_logs_and_metrics() -> None:
    for name in ("serve", "drift", "frontend", "schedule"):
        assert roles_of(name, SITE.project.id) <= {"roles/logging.logWriter", "roles/monitoring.metricWriter"}
    assert roles_of("frontend", f"gs://{SITE.project.bucket}") == roles_of("schedule", f"gs://{SITE.project.bucket}") == set()


def test_each_may_write_below_its_own_folders_and_only_training_and_deployment_where_the_registry_is() -> None:
    for account, prefixes in WRITES.items():
        made = [
            shlex.join(step.make)
            for step in all_of_site()
            if step.binding and step.what.endswith(f"/ for {SITE.project.account(account)}")
        ]
        starts = [re.findall(r"startsWith\('\"'\"'(.*?)'\"'\"'\)", line) for line in made]
        assert starts == [[f"projects/_/buckets/{SITE.project.bucket}/objects/{prefix}/"] for prefix in prefixes]
    assert {account for account, prefixes in WRITES.items() if "registry" in prefixes} == {"train", "deploy"}
    whole = [
        step.what
        for step in all_of_site()
        if step.binding and step.binding.role == "roles/storage.objectUser" and not step.binding.title
    ]
    assert whole == []


def test_a_service_may_be_asked_by_the_page_and_drift_by_its_schedule_too() -> None:
    asked = {name: roles_of(name, f"pigeonhole-{service}") for name, service in (("schedule", "drift"), ("frontend", "drift"))}
    asked["frontend serve"] = roles_of("frontend", "pigeonhole-serve")
    assert set(map(frozenset, asked.values())) == {frozenset({"roles/run.invoker"})}


def test_nobody_on_the_internet_reads_the_bucket_and_old_images_really_go() -> None:
    lines = {step.what: step.make for step in all_of_site()}
    assert {"--uniform-bucket-level-access", "--public-access-prevention"} <= set(lines["bucket gs://some-project-pigeonhole"])
    assert "--no-dry-run" in lines["clean-up of old images"]


def test_no_deleting_line_waits_for_an_answer() -> None:
    deleting = [step.delete for step in all_of_site() if "delete" in step.delete]
    assert deleting
    assert [line for line in deleting if "--quiet" not in line] == []
    (channel,) = [line for line in deleting if "channels" in line]
    assert "--force" in channel  # policies that tell it are still there


def shape(line: Line) -> str:
    """A line without its values: lines of one shape are right or wrong together."""
    command = [word for word in line if re.fullmatch(r"[a-z-]+", word) and not word.startswith(("--", "pigeonhole", "wandb"))]
    return " ".join([*command, *sorted(word.partition("=")[0] for word in line if word.startswith("--"))])


def test_a_job_may_write_where_it_is_told_to() -> None:
    """A missing role is an answer 403 after minutes."""
    bucket = f"gs://{SITE.project.bucket}/"
    sha = "0123456789abcdef0123456789abcdef01234567"
    jobs = [
        vertex.make_job(SITE.project, vertex.VertexConfig(image=sha), []),
        vertex_retrain.make_job(SITE.project, vertex.VertexConfig(image=sha), ["name=tickets"]),
    ]
    written = set(re.findall(rf"(?:registry|rows|out)=({bucket}[^\"/]+)|({bucket}jobs)", json.dumps(jobs)))
    prefixes = {"".join(found).removeprefix(bucket) for found in written}
    assert prefixes == set(WRITES["train"])


def test_a_build_is_sent_by_one_who_may_act_as_its_account_and_write_its_source() -> None:
    """The account that GitHub's workflow signs in as is the one that every build runs as."""
    account = SITE.project.account("deploy").replace(SITE.project.id, "$PROJECT_ID")
    for path in (ROOT / "cloudbuild").glob("*.yaml"):
        build = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert build["serviceAccount"] == f"projects/$PROJECT_ID/serviceAccounts/{account}"
    text = (ROOT / ".github/workflows/deploy.yaml").read_text(encoding="utf-8")
    staged = re.findall(r'--gcs-source-staging-dir "gs://\$PIGEONHOLE_PROJECT-pigeonhole/(\w+)"', text)
    assert len(staged) == text.count("gcloud builds submit")
    assert set(staged) <= set(WRITES["deploy"])
    bindings = {(step.binding.role, step.what.split()[2]) for step in all_of_site() if step.binding and is_for_deploy(step)}
    assert ("roles/iam.serviceAccountUser", SITE.project.account("deploy")) in bindings
    assert ("roles/storage.legacyBucketReader", f"gs://{SITE.project.bucket}") in bindings
    assert ("roles/run.invoker", SITE.project.id) in bindings


def is_for_deploy(step: Step) -> bool:
    return step.what.endswith(SITE.project.account("deploy"))


needs_gcloud = pytest.mark.skipif(not shutil.which("gcloud"), reason="needs gcloud" if sys.platform == "linux" else "needs Linux")


def linted(lines: list[Line], folder: Path) -> list[dict[str, Any]]:
    (folder / "lines.json").write_text(json.dumps([{"command_string": shlex.join(line)} for line in lines]))
    line = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={folder / 'lines.json'}"]
    found: list[dict[str, Any]] = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    return [each for each in found if not each["success"]]


def lines_of_files() -> list[Line]:
    """Those of the workflows and of cloudbuild/, with a value for each variable."""
    found = []
    for path in (ROOT / ".github/workflows").glob("*.yaml"):
        for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
            found += [step["run"] for step in job["steps"] if step.get("run", "").startswith("gcloud ")]
    for path in (ROOT / "cloudbuild").rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        found += [line.replace(" …", " _X=x") for line in re.findall(r"(?:: | && |^# )(gcloud [^#\n]*)$", text, re.MULTILINE)]
        for step in yaml.safe_load(text).get("steps", []):
            found += [shlex.join(["gcloud", *step["args"]])] if step.get("entrypoint") == "gcloud" else []
    return [valued(line) for line in found]


def valued(line: str) -> Line:
    """Its words, with a value for each variable."""
    return tuple(re.sub(r"\$\{?\w+\}?|…", "x", word) for word in shlex.split(line))


@needs_gcloud
def test_every_line_is_one_that_gcloud_itself_takes_and_a_planted_fault_is_none(tmp_path: Path) -> None:
    lines = [line for step in all_of_site() for line in (step.find, step.make, step.delete, step.needs) if line]
    asked: list[Line] = []

    def none(line: Line) -> str:
        asked.append(line)
        return "[]"

    missing = quota.missing(SITE, none, "spot")
    missing += quota.images(SITE, "0" * 40, lambda *_: {})
    lines += [*asked, *(tuple(shlex.split(thing["line"])) for thing in missing), *lines_of_files()]
    chosen = list({shape(line): line for line in lines}.values())
    wrong: list[Line] = [
        ("gcloud", "run", "services", "describ", "x"),
        ("gcloud", "secrets", "create", "x", "--data-fil=y"),
        ("gcloud", "scheduler", "jobs", "create", "http", "x", "--uri=https://x", "--schedule=x", "--http-method=POTS"),
        ("gcloud", "secrets", "create", "--replication-policy=automatic"),
    ]
    refused = linted([*chosen, *wrong], tmp_path)
    assert [each["command_string"] for each in refused] == [shlex.join(line) for line in wrong]


@needs_gcloud
def test_the_documentations_lines_are_ones_that_gcloud_itself_takes(tmp_path: Path) -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md")]
    lines = [valued(line) for page in pages for line in re.findall(r"^gcloud .*$", page, re.MULTILINE)]
    assert len(lines) >= 2
    assert linted(lines, tmp_path) == []


def test_old_images_can_be_deleted_and_a_commit_can_be_built_again() -> None:
    """gcloud of --immutable-tags: "tagged images cannot be deleted"; and a tag that is there already takes no second push."""
    (repository,) = [step for step in all_of_site() if step.what.startswith("image repository")]
    assert "--immutable-tags" not in repository.make
    policy = json.loads((ROOT / "cloudbuild/cleanup.json").read_text())
    assert {"name": "old", "action": {"type": "Delete"}, "condition": {"tagState": "any", "olderThan": "90d"}} in policy


@pytest.mark.parametrize("name", ["lifecycle.json", "cleanup.json"])
def test_a_policy_keeps_what_is_needed(name: str) -> None:
    policy = json.loads((ROOT / "cloudbuild" / name).read_text())
    if name == "cleanup.json":
        assert {"name": "latest", "action": {"type": "Keep"}, "mostRecentVersions": {"keepCount": 10}} in policy
        return
    rules = [rule["condition"] for rule in policy["rule"] if rule["action"]["type"] == "Delete"]
    days = {prefix: rule["age"] for rule in rules for prefix in rule["matchesPrefix"]}
    # A year of log; the jobs' checkpoints for longer than a job may last, a week at most; a source for its build.
    least = {"drift-reports/": 90, "jobs/": 8, "log/": 366, "source/": 1}
    assert days.keys() == least.keys()
    assert [prefix for prefix in days if days[prefix] < least[prefix]] == []
    colder = [rule["condition"]["age"] for rule in policy["rule"] if rule["action"]["type"] == "SetStorageClass"]
    assert max(colder) + 30 <= days["log/"]  # Nearline costs thirty days at the least
