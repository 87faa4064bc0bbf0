"""Everything that a project has to have, described once: each thing knows the gcloud lines that look for it, make it, delete it.

Promises: no line makes a thing twice; roles are given on the smallest thing that they work on. Knows nothing of running a line.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pigeonhole.cloud.project import METRICS_SECRET, WANDB_SECRET, Project, read_project
from pigeonhole.errors import ConfigError

Line = tuple[str, ...]

REPOSITORY = "PIGEONHOLE_GITHUB"
BILLING = "PIGEONHOLE_BILLING_ACCOUNT"
BUDGET = "PIGEONHOLE_BUDGET"
EMAIL = "PIGEONHOLE_EMAIL"
FOUND = "FOUND"  # in a deleting line: each name that the finding line prints
NUMBER = "PROJECT_NUMBER"  # what a dry run prints where the real one is asked for
POOL = "pigeonhole-github"
APIS = (
    "aiplatform", "artifactregistry", "billingbudgets", "cloudbuild", "cloudquotas", "cloudresourcemanager", "cloudscheduler",
    "iam", "iamcredentials", "logging", "monitoring", "run", "secretmanager", "storage", "sts",
)  # fmt: skip
ACCOUNTS = {
    "serve": "answers questions",
    "drift": "watches the log",
    "frontend": "the page",
    "train": "jobs of Vertex AI",
    "deploy": "builds, deploys, moves the production alias",
    "schedule": "asks drift for its runs",
}
# Role on the project, for want of anything smaller that it could be given on.
PROJECT_ROLES = {
    "serve": ("roles/logging.logWriter", "roles/monitoring.metricWriter"),
    "drift": ("roles/logging.logWriter", "roles/monitoring.metricWriter"),
    "frontend": ("roles/logging.logWriter",),
    "train": ("roles/logging.logWriter",),
    # It asks a service that it has just made for the first time, on which nobody could be given a role before.
    "deploy": (
        *("roles/aiplatform.user", "roles/cloudbuild.builds.editor", "roles/logging.logWriter", "roles/run.developer"),
        *("roles/run.invoker", "roles/serviceusage.serviceUsageConsumer"),
    ),
}
# What each account may write in the bucket, by prefix; all of them may read it.
WRITES = {
    "serve": ("log",),
    "drift": ("drift-reports",),
    "train": ("registry", "jobs", "retrain"),
    "deploy": ("registry", "dvc", "source"),
}
TOKEN_CREATOR = "roles/iam.serviceAccountOpenIdTokenCreator"  # noqa: S105  a role; an owner of the project has it not
READS = ("serve", "drift", "train", "deploy")
SECRETS = {METRICS_SECRET: ("serve", "drift"), WANDB_SECRET: ("train",)}
ACTS_AS = ("serve", "drift", "frontend", "train", "deploy")  # the last for a build, which runs as it and is sent by it
INVOKES = (("schedule", "drift"), ("frontend", "drift"), ("frontend", "serve"))
SCHEDULE = "17 * * * *"  # a run an hour, as the hours of the log close
LIFECYCLE = "cloudbuild/lifecycle.json"
CLEANUP = "cloudbuild/cleanup.json"
POLICIES = "monitoring/alert_policies"
ALERTS = ("alpha", "monitoring", "policies")


@dataclass(frozen=True)
class Site:
    """A project with all that its set-up has to know: its number, the GitHub repository that may deploy, who pays how much."""

    project: Project
    number: str = NUMBER
    repository: str = ""
    billing: str = ""
    budget: int = 100
    email: str = ""

    def url(self, service: str) -> str:
        """Where a Cloud Run service will answer, before it is there."""
        return f"https://pigeonhole-{service}-{self.number}.{self.project.region}.run.app"


@dataclass(frozen=True)
class Binding:
    """Who may do what, where a condition's title says for which part."""

    member: str
    role: str
    title: str = ""


@dataclass(frozen=True)
class Step:
    """`find` prints something where the thing is there: a line `word`, or a policy (JSON) with `binding`, where they are set.

    `make` is empty for what another command makes, `delete` for what stays; `by_hand`: only a person can make it; `holds_data`:
    deleting it loses something; `mends`: it changes what is there and not as described. `asked`: words of a line that stand for
    what another line prints, such as a name Google gave, each with what stands there where that line prints nothing.
    """

    what: str
    find: Line
    make: Line
    delete: Line = ()
    binding: "Binding | None" = None
    word: str = ""
    needs: Line = ()  # prints something where the step can be done at all
    asked: tuple[tuple[str, Line, str], ...] = ()
    mends: bool = False
    by_hand: bool = False
    holds_data: bool = False


def read_site(environment: Mapping[str, str], number: str = NUMBER) -> Site:
    """Raises ConfigError naming the variable and what is allowed."""
    repository, billing = environment.get(REPOSITORY, ""), environment.get(BILLING, "")
    budget, email = environment.get(BUDGET, "") or "100", environment.get(EMAIL, "")
    if repository and not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"{REPOSITORY}={repository!r}: expected OWNER/NAME of the repository that may deploy, or nothing")
    if billing and not re.fullmatch(r"[0-9A-F]{6}(-[0-9A-F]{6}){2}", billing):
        raise ConfigError(f"{BILLING}={billing!r}: expected XXXXXX-XXXXXX-XXXXXX; see `gcloud billing accounts list`")
    if not re.fullmatch(r"[1-9][0-9]{0,6}", budget):
        raise ConfigError(f"{BUDGET}={budget!r}: expected a whole amount a month, in the account's currency")
    if email and not re.fullmatch(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", email):
        raise ConfigError(f"{EMAIL}={email!r}: expected an address that alerts are sent to, or nothing")
    return Site(read_project(environment), number, repository, billing, int(budget), email)


def left_out(site: Site) -> dict[str, str]:
    """Variables that are not set, with what is not looked at and not made for want of them."""
    given = {
        REPOSITORY: (site.repository, "no workflow of GitHub may deploy"),
        BILLING: (site.billing, "no budget alert"),
        EMAIL: (site.email, "alert policies tell nobody"),
    }
    return {name: what for name, (value, what) in given.items() if not value}


def steps(site: Site, folder: Path) -> Iterator[Step]:
    """In an order in which each finds what it needs; `folder` is the repository, whose policies are set up too.

    Raises ConfigError for a folder that is another one.
    """
    yield from _apis(site)
    yield from _accounts(site)
    yield from _bucket(site, folder)
    yield from _images(site)
    yield from _secrets(site)
    yield from _roles(site)
    yield from _github(site)
    yield from _watching(site, folder)
    yield from _services(site)


def _gcloud(site: Site, *words: str, **flags: str) -> Line:
    named = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    return ("gcloud", *words, *named, f"--project={site.project.id}")


def _fingerprint(folder: Path, name: str) -> str:
    """Of a file, for a label on what is made from it: Google may write down its content in another way, a label it does not."""
    try:
        text = (folder / name).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{name}: there is no such file here; run this in the folder of the repository") from error
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _apis(site: Site) -> Iterator[Step]:
    enabled = _gcloud(site, "services", "list", format="value(config.name)")
    for api in APIS:
        name = f"{api}.googleapis.com"
        yield Step(f"API {name}", enabled, _gcloud(site, "services", "enable", name), word=name)


def _accounts(site: Site) -> Iterator[Step]:
    accounts = ("iam", "service-accounts")
    for role, purpose in ACCOUNTS.items():
        email = site.project.account(role)
        yield Step(
            f"account {email}",
            _gcloud(site, *accounts, "describe", email, format="value(email)"),
            _gcloud(site, *accounts, "create", f"pigeonhole-{role}", display_name=f"Pigeonhole: {purpose}"),
            _gcloud(site, *accounts, "delete", email, "--quiet"),
        )


def _bucket(site: Site, folder: Path) -> Iterator[Step]:
    url, buckets = f"gs://{site.project.bucket}", ("storage", "buckets")
    safe = ("--uniform-bucket-level-access", "--public-access-prevention")
    yield Step(
        f"bucket {url}",
        _gcloud(site, *buckets, "describe", url, format="value(name)"),
        _gcloud(site, *buckets, "create", url, *safe, location=site.project.region),
        _gcloud(site, "storage", "rm", url, "--recursive"),
        holds_data=True,
    )
    content = _fingerprint(folder, LIFECYCLE)
    yield Step(
        f"lifecycle of {url}",
        _gcloud(site, *buckets, "describe", url, format="value(labels.lifecycle)"),
        _gcloud(site, *buckets, "update", url, lifecycle_file=LIFECYCLE, update_labels=f"lifecycle={content}"),
        word=content,
    )


def _images(site: Site) -> Iterator[Step]:
    repositories, region = ("artifacts", "repositories"), site.project.region
    about = "Images of Pigeonhole, one tag a commit"
    yield Step(
        f"image repository {site.project.repository}",
        _gcloud(site, *repositories, "describe", "pigeonhole", location=region, format="value(name)"),
        _gcloud(
            site,
            # Without --immutable-tags, under which no tagged image can be deleted, an old one neither, and no commit built again.
            *(*repositories, "create", "pigeonhole"),
            repository_format="docker",
            location=region,
            description=about,
        ),
        _gcloud(site, *repositories, "delete", "pigeonhole", "--quiet", location=region),
        holds_data=True,
    )
    yield Step(
        "clean-up of old images",
        _gcloud(site, *repositories, "describe", "pigeonhole", location=region, format="value(cleanupPolicies)"),
        _gcloud(site, *repositories, "set-cleanup-policies", "pigeonhole", "--no-dry-run", location=region, policy=CLEANUP),
    )


def _secrets(site: Site) -> Iterator[Step]:
    place = {"replication_policy": "user-managed", "locations": site.project.region}
    contents = {METRICS_SECRET: {"data_file": "cloudrun/run_monitoring.yaml"}, WANDB_SECRET: {}}
    for name, content in contents.items():
        yield Step(
            f"secret {name}",
            _gcloud(site, "secrets", "describe", name, format="value(name)"),
            _gcloud(site, "secrets", "create", name, **place, **content),
            _gcloud(site, "secrets", "delete", name, "--quiet"),
            holds_data=True,
        )
    versions = ("secrets", "versions")
    yield Step(
        f"value of secret {WANDB_SECRET} (without it jobs keep their runs offline)",
        _gcloud(site, *versions, "list", WANDB_SECRET, filter="state=ENABLED", format="value(name)", limit="1"),
        _gcloud(site, *versions, "add", WANDB_SECRET, data_file="-"),
        by_hand=True,
    )


def _roles(site: Site) -> Iterator[Step]:
    project = site.project
    for account, roles in PROJECT_ROLES.items():
        for role in roles:
            yield _binding(site, ("projects",), project.id, account, role)
    for account in READS:
        yield _binding(site, ("storage", "buckets"), f"gs://{project.bucket}", account, "roles/storage.objectViewer")
    # `gcloud builds submit` looks at the bucket before it puts the source there.
    yield _binding(site, ("storage", "buckets"), f"gs://{project.bucket}", "deploy", "roles/storage.legacyBucketReader")
    for account, prefixes in WRITES.items():
        for prefix in prefixes:
            start = f"projects/_/buckets/{project.bucket}/objects/{prefix}/"
            condition = f"expression=resource.name.startsWith('{start}'),title={prefix}"
            yield _binding(
                site, ("storage", "buckets"), f"gs://{project.bucket}", account, "roles/storage.objectUser", condition, prefix
            )
    for name, accounts in SECRETS.items():
        for account in accounts:
            yield _binding(site, ("secrets",), name, account, "roles/secretmanager.secretAccessor")
    yield _binding(
        site,
        ("artifacts", "repositories"),
        "pigeonhole",
        "deploy",
        "roles/artifactregistry.writer",
        place=f"--location={project.region}",
    )
    for other in ACTS_AS:
        yield _binding(site, ("iam", "service-accounts"), project.account(other), "deploy", "roles/iam.serviceAccountUser")
    own = project.account("deploy")
    yield _binding(site, ("iam", "service-accounts"), own, "deploy", TOKEN_CREATOR)


def _binding(
    site: Site, kind: Line, thing: str, account: str, role: str, condition: str = "None", title: str = "", place: str = ""
) -> Step:
    member = f"serviceAccount:{site.project.account(account)}"
    return _member_binding(site, kind, thing, member, role, condition, title, place)


def _member_binding(
    site: Site, kind: Line, thing: str, member: str, role: str, condition: str = "None", title: str = "", place: str = ""
) -> Step:
    where = (place,) if place else ()
    changed = {"member": member, "role": role}
    if kind != ("artifacts", "repositories"):  # which takes no condition
        changed["condition"] = condition
    return Step(
        f"{role} on {thing}{f' below {title}/' if title else ''} for {member.removeprefix('serviceAccount:')}",
        _gcloud(site, *kind, "get-iam-policy", thing, *where, format="json"),
        _gcloud(site, *kind, "add-iam-policy-binding", thing, *where, **changed),
        _gcloud(site, *kind, "remove-iam-policy-binding", thing, *where, **changed),
        Binding(member, role, title),
    )


def _github(site: Site) -> Iterator[Step]:
    """Tokens of GitHub's own instead of a key: good for one repository, and in it for main alone."""
    if not site.repository:
        return
    pools = ("iam", "workload-identity-pools")
    # It stays: Google keeps the name of a deleted one for thirty days, in which none can be made.
    yield Step(
        f"identity pool {POOL}",
        _gcloud(site, *pools, "describe", POOL, location="global", format="value(name)"),
        _gcloud(site, *pools, "create", POOL, location="global", display_name="GitHub"),
    )
    place = {"location": "global", "workload_identity_pool": POOL}
    condition = f"assertion.repository=='{site.repository}' && assertion.ref=='refs/heads/main'"
    provider = _gcloud(site, *pools, "providers", "describe", "github", **place, format="value(name)")
    yield Step(
        f"identity provider {POOL}/github",
        provider,
        _gcloud(
            site,
            *(*pools, "providers", "create-oidc", "github"),
            **place,
            issuer_uri="https://token.actions.githubusercontent.com",
            attribute_mapping="google.subject=assertion.sub,attribute.repository=assertion.repository",
            attribute_condition=condition,
        ),
    )
    # One that is there may be of another repository, which could go on deploying.
    yield Step(
        f"identity provider {POOL}/github for {site.repository}, main only",
        _gcloud(site, *pools, "providers", "describe", "github", **place, format="value(attributeCondition)"),
        _gcloud(site, *pools, "providers", "update-oidc", "github", **place, attribute_condition=condition),
        word=condition,
        needs=provider,
        mends=True,
    )
    pool = f"projects/{site.number}/locations/global/workloadIdentityPools/{POOL}"
    member = f"principalSet://iam.googleapis.com/{pool}/attribute.repository/{site.repository}"
    account = site.project.account("deploy")
    yield _member_binding(site, ("iam", "service-accounts"), account, member, "roles/iam.workloadIdentityUser")


def for_github(site: Site) -> Iterator[str]:
    """The lines of GitHub's own command line that let the workflows of the repository use what is set up here."""
    repository, of = site.repository, f"--repo {site.repository}"
    provider = f"projects/{site.number}/locations/global/workloadIdentityPools/{POOL}/providers/github"
    yield f"gh variable set PIGEONHOLE_PROJECT {of} --body {site.project.id}"
    yield f"gh variable set PIGEONHOLE_REGION {of} --body {site.project.region}"
    yield f"gh variable set PIGEONHOLE_IDENTITY_PROVIDER {of} --body {provider}"
    reviewers = "--raw-field 'reviewers[][type]=User' --field \"reviewers[][id]=$(gh api user --jq .id)\""
    yield f"gh api --method PUT repos/{repository}/environments/production {reviewers}"


def _watching(site: Site, folder: Path) -> Iterator[Step]:
    boards, file = ("monitoring", "dashboards"), "monitoring/dashboard.json"
    yield Step(
        "dashboard Pigeonhole",
        _named(site, boards, "Pigeonhole"),
        _gcloud(site, *boards, "create", config_from_file=file),
        _gcloud(site, *boards, "delete", FOUND, "--quiet"),
    )
    files = [f"{POLICIES}/{path.name}" for path in sorted((folder / POLICIES).glob("*.json"))]
    if not files:
        raise ConfigError(f"{POLICIES}: there is no such folder here; run this in the folder of the repository")
    titles = [json.loads((folder / file).read_text(encoding="utf-8"))["displayName"] for file in files]
    for title, file in zip(titles, files, strict=True):
        yield from _policy(site, title, file, _fingerprint(folder, file))
    if site.email:
        yield from _told(site, titles)
    if site.billing:
        yield from _budget(site)


def _budget(site: Site) -> Iterator[Step]:
    """Of one project, and of the amount that is wanted now: the budgets of all that one account pays for stand in one list."""
    name = f"pigeonhole-{site.project.id}"
    budgets, account = ("billing", "budgets"), {"billing_account": site.billing}
    listed = {**account, "filter": f"displayName={name}"}
    named = _gcloud(site, *budgets, "list", **listed, format="value(name)")
    yield Step(
        "budget of this project, told at 50, 90 and 100 %",
        named,
        _gcloud(
            site,
            *(*budgets, "create", *(f"--threshold-rule=percent={share}" for share in ("0.5", "0.9", "1.0"))),
            **account,
            display_name=name,
            budget_amount=str(site.budget),
            filter_projects=f"projects/{site.project.id}",
        ),
        _gcloud(site, *budgets, "delete", FOUND, "--quiet"),
    )
    yield Step(
        f"budget of {site.budget} a month",
        _gcloud(site, *budgets, "list", **listed, format="value(amount.specifiedAmount.units)"),
        _gcloud(site, *budgets, "update", "BUDGET", budget_amount=str(site.budget)),
        word=str(site.budget),
        needs=named,
        asked=(("BUDGET", named, "BUDGET"),),
        mends=True,
    )


def _policy(site: Site, title: str, file: str, rule: str) -> Iterator[Step]:
    """An alert policy, and that it was made from the file as it is now.

    gcloud puts a policy in the place of another as a whole: those whom it tells are named again, others than ours too.
    """
    named = _named(site, ALERTS, title)
    yield Step(
        f"alert policy {title}",
        named,
        _gcloud(site, *ALERTS, "create", policy_from_file=file, user_labels=f"app=pigeonhole,rule={rule}"),
        _gcloud(site, *ALERTS, "delete", FOUND, "--quiet"),
    )
    told = _named(site, ALERTS, title, shown="notificationChannels.list()")
    changed = {"policy_from_file": file, "update_user_labels": f"rule={rule}", "set_notification_channels": "CHANNELS"}
    yield Step(
        f"alert policy {title} as in {file}",
        _named(site, ALERTS, title, shown="userLabels.rule"),
        _gcloud(site, *ALERTS, "update", "POLICY", **changed),
        word=rule,
        needs=named,
        mends=True,
        asked=(("POLICY", named, "POLICY"), ("CHANNELS", told, "")),
    )


def _told(site: Site, titles: Sequence[str]) -> Iterator[Step]:
    """Who hears of an alert: without a channel a policy opens an incident that nobody is sent."""
    channels, address = ("beta", "monitoring", "channels"), f"email_address={site.email}"
    # By its own name: somebody's other channel to this address is not ours to delete.
    ours = f'displayName="Pigeonhole" AND labels.email_address="{site.email}"'
    channel = _gcloud(site, *channels, "list", filter=ours, format="value(name)")
    yield Step(
        f"notification channel {site.email}",
        channel,
        _gcloud(site, *channels, "create", display_name="Pigeonhole", type="email", channel_labels=address),
        _gcloud(site, *channels, "delete", FOUND, "--force", "--quiet"),
    )
    for title in titles:
        yield Step(
            f"alert policy {title} tells {site.email}",
            _named(site, ALERTS, title, ' AND notificationChannels:"CHANNEL"'),
            _gcloud(site, *ALERTS, "update", "POLICY", add_notification_channels="CHANNEL"),
            asked=(("POLICY", _named(site, ALERTS, title), "POLICY"), ("CHANNEL", channel, "CHANNEL")),
        )


def _named(site: Site, kind: Line, title: str, also: str = "", shown: str = "name") -> Line:
    return _gcloud(site, *kind, "list", filter=f'displayName="{title}"{also}', format=f"value({shown})")


def _services(site: Site) -> Iterator[Step]:
    """The services, which `uv run deploy` makes, and what can be done only once it has."""
    region = site.project.region
    for role in ("serve", "drift", "frontend"):
        name = f"pigeonhole-{role}"
        delete = _gcloud(site, "run", "services", "delete", name, "--quiet", region=region)
        yield Step(f"Cloud Run service {name}", _service(site, role), (), delete)
    for account, service in INVOKES:
        name = f"pigeonhole-{service}"
        found = _binding(site, ("run", "services"), name, account, "roles/run.invoker", place=f"--region={region}")
        yield replace(found, needs=_service(site, service))
    jobs, audience = ("scheduler", "jobs"), site.url("drift")
    job = _gcloud(site, *jobs, "describe", "pigeonhole-drift", location=region, format="value(name)")
    yield Step(
        "hourly drift run",
        job,
        _gcloud(
            site,
            *(*jobs, "create", "http", "pigeonhole-drift"),
            location=region,
            schedule=SCHEDULE,
            uri=f"{audience}/runs",
            http_method="POST",
            attempt_deadline="300s",
            oidc_service_account_email=site.project.account("schedule"),
            oidc_token_audience=audience,
        ),
        _gcloud(site, *jobs, "delete", "pigeonhole-drift", "--quiet", location=region),
        needs=_service(site, "drift"),
    )
    yield Step(
        f"drift run at {SCHEDULE}",
        _gcloud(site, *jobs, "describe", "pigeonhole-drift", location=region, format="value(schedule)"),
        _gcloud(site, *jobs, "update", "http", "pigeonhole-drift", location=region, schedule=SCHEDULE),
        word=SCHEDULE,
        needs=job,
        mends=True,
    )


def _service(site: Site, service: str) -> Line:
    name = f"pigeonhole-{service}"
    return _gcloud(site, "run", "services", "describe", name, region=site.project.region, format="value(metadata.name)")
