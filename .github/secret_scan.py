"""`uv run python .github/secret_scan.py [FOLDER]`: no line that was ever added in the history of a repository holds a secret.

Offline: git gives the lines, detect-secrets judges them. Prints commit, file and kind, never the secret. Exit code 4: one was
found; it is to be revoked where it was made, because taking the line out leaves it in the history.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from detect_secrets.core.scan import scan_line
from detect_secrets.settings import transient_settings

# Those that know a form; the guesses by entropy find 100,000 "secrets" in checksums and words.
FORMS = (
    "AWSKeyDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "DiscordBotTokenDetector",
    "GitHubTokenDetector", "GitLabTokenDetector", "JwtTokenDetector", "MailchimpDetector", "NpmDetector",
    "OpenAIDetector", "PrivateKeyDetector", "PypiTokenDetector", "SendGridDetector", "SlackDetector", "StripeDetector",
    "TelegramBotTokenDetector", "TwilioKeyDetector",
)  # fmt: skip
# Two forms that it does not know: Google's keys, and a long random value behind a telling name (the keyword detector takes every
# value for a secret).
OWN_FORMS = {
    "Google API key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    "key or password": re.compile(
        r"""(?i)(?:api_?key|secret|token|passw(?:or)?d)\w*["']?\s*[:=]\s*["'](?=[^"']*\d)[0-9a-z+/_=-]{24,}["']"""
    ),
}
INSIDE_WORD = re.compile(r"(?<=[A-Za-z])gh[opsru]_")  # the library finds GitHub's form in "weighs_what_the_label_asked_for_…" too
GENERATED = (":!uv.lock", ":!*.csv", ":!*.svg", ":!*package-lock.json")


def added_lines(repository: Path) -> Iterator[tuple[str, str, str]]:
    """Commit, file and text of every line that any commit of the present history added."""
    what = ["log", "--patch", "--no-color", "--unified=0", "--format=commit %h", "--", ".", *GENERATED]
    said = subprocess.run(["git", "-C", str(repository), *what], capture_output=True, check=True).stdout
    commit = file = ""
    for line in said.decode("utf-8", "replace").splitlines():
        if line.startswith("commit "):
            commit = line.removeprefix("commit ")
        elif line.startswith("+++ "):
            file = line.removeprefix("+++ b/")
        elif line.startswith("+"):
            yield commit, file, line[1:]


def find_secrets(repository: Path) -> list[str]:
    """One line a finding: commit, file, kind."""
    found: dict[str, None] = {}
    with transient_settings({"plugins_used": [{"name": name} for name in FORMS]}):
        for text, (commit, file) in dict(reversed([(text, place) for *place, text in added_lines(repository)])).items():
            kinds = {secret.type for secret in scan_line(INSIDE_WORD.sub("", text))}
            kinds |= {kind for kind, form in OWN_FORMS.items() if form.search(text)}
            found |= dict.fromkeys(f"{commit} {file}: {kind}" for kind in sorted(kinds))
    return list(found)


def main(arguments: list[str]) -> int:
    found = find_secrets(Path(*arguments))
    print(*found, f"{len(found)} secrets in the history", sep="\n", file=sys.stderr)
    return 4 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
