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
    """Commit, file and text of every line that any commit of the present history added, also a merge that neither side had."""
    what = ["log", "--patch", "--cc", "--no-color", "--unified=0", "--format=commit %h", "--", ".", *GENERATED]
    commit, file, in_head = "", "", True
    for line in _git(repository, *what).split("\n"):  # and at no other sign that Python takes for the end of a line
        if line.startswith("commit "):
            commit = line.removeprefix("commit ")
        elif line.startswith(("diff ", "@@")):
            in_head = line.startswith("diff ")
        elif in_head and line.startswith("+++ "):
            file = line.removeprefix("+++ b/")
        elif line.startswith("+"):
            yield commit, file, line[1:]


def _git(repository: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(repository), *words], capture_output=True, check=True).stdout.decode(
        "utf-8", "replace"
    )


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
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        [folder] = arguments or ["."]
        is_shallow = _git(Path(folder), "rev-parse", "--is-shallow-repository").strip() == "true"
    except (ValueError, subprocess.CalledProcessError):
        print(
            f"error: {' '.join(arguments) or 'this folder'}: expected one folder, a git repository; see --help", file=sys.stderr
        )
        return 2
    if is_shallow:
        print("error: only the end of the history is here; `git fetch --unshallow` brings the rest", file=sys.stderr)
        return 2
    found = find_secrets(Path(folder))
    print(*found, f"{len(found)} secrets in the history", sep="\n", file=sys.stderr)
    return 4 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
