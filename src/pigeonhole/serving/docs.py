"""/docs: one page that reads /openapi.json. Swagger UI would come from a CDN, and a service without the internet has docs too."""

import base64
import hashlib
import re

from starlette.responses import Response


def page() -> Response:
    from importlib import resources  # a start does without it

    html = resources.files("pigeonhole.serving").joinpath("docs.html").read_text("utf-8")
    return Response(html, media_type="text/html", headers={"content-security-policy": _policy(html)})


def _policy(html: str) -> str:
    """Nothing runs, and nothing is loaded, but what stands in the page itself."""
    allowed = {kind: _digest(html, kind) for kind in ("script", "style")}
    return f"default-src 'none'; connect-src 'self'; script-src {allowed['script']}; style-src {allowed['style']}"


def _digest(html: str, tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    inside = found.group(1) if found else ""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
