import base64
import hashlib
import re

from tests.serving.conftest import Running


def test_the_page_needs_nothing_but_this_service(running_once: Running) -> None:
    answer = running_once.http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert re.findall(r"(?:https?:)?//[a-z]", answer.text) == []


def test_the_browser_may_run_the_page_s_own_script_and_no_other(running_once: Running) -> None:
    answer = running_once.http.get("/docs")
    policy = set(answer.headers["content-security-policy"].split("; "))
    digests = set()
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        digests.add(f"{tag}-src 'sha256-{digest}'")
    assert policy == {"default-src 'none'", "connect-src 'self'", *digests}  # it reads /openapi.json
    assert "innerHTML" not in answer.text
