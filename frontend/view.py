"""What all pages share: the two services, what the model says of itself, and what is shown when nobody answers."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import streamlit as st

from frontend.client import Down, Refused, Service

DECISIONS = {
    "accept": ("Sure enough to act on", "green", ":material/check_circle:"),
    "review": ("Not sure: a person should look", "orange", ":material/visibility:"),
    "out_of_scope": ("Belongs to none of the labels", "gray", ":material/block:"),
}
"""In words, colour, icon; the server's `decision` is the key."""

EXAMPLES_TIMEOUT_S = 5.0

MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$:~&])")

LINK = re.compile(r"(https?(?=\\?:)|www(?=\\?\.)|(?=\\?@))", re.IGNORECASE)

STYLE = """<style>
textarea, [data-testid='stText'], [data-testid='stMarkdown'] p { unicode-bidi: plaintext; text-align: start; }
[data-testid='stCaptionContainer'] { opacity: 0.8; }
button[kind^='primary'] { background: #0b5cad; border-color: #0b5cad; }
</style>"""
"""A text runs in the direction of its own first letter (Arabic, Hebrew); captions, and the white on a button in the dark, can be
read (WCAG AA, 4.5 : 1)."""


@st.cache_resource(on_release=Service.close)
def api() -> Service:
    return Service.api()


@st.cache_resource(on_release=Service.close)
def drift() -> Service:
    return Service.drift()


@st.cache_data(ttl=10, show_spinner=False)
def _model() -> dict[str, Any]:
    return api().get("/model")


@st.cache_data(ttl=60, show_spinner=False)
def _routes() -> frozenset[str]:
    return api().routes()


def model_or_stop() -> dict[str, Any]:
    """GET /model; a page without it says so, offers to try again and ends here."""
    try:
        return _model()
    except (Down, Refused) as error:
        show_error(error)
        st.button("Try again", icon=":material/refresh:", type="primary")
        st.stop()


@st.cache_data(ttl=10, show_spinner=False)
def _versions() -> dict[str, Any]:
    return drift().get("/versions")


@st.cache_data(ttl=300, show_spinner=False)
def _version(name: str) -> dict[str, Any]:
    return drift().get(f"/versions/{quote(name, safe='')}")


def versions() -> dict[str, Any] | None:
    """The registry's versions as the drift service lists them; None where it does not answer."""
    try:
        return _versions()
    except (Down, Refused):
        return None


def version(name: str) -> dict[str, Any] | None:
    """One version: card, metrics, held-out rows. None where the drift service does not tell."""
    try:
        return _version(name)
    except (Down, Refused):
        return None


@st.cache_data(ttl=60, show_spinner=False)
def examples(name: str) -> list[str]:
    """Texts of a version's own test split, where they are kept; nobody waits long for them."""
    quick = Service.drift(timeout_s=EXAMPLES_TIMEOUT_S)
    try:
        found = quick.get(f"/versions/{quote(name, safe='')}")["held_out"]
    except (Down, Refused):
        return []
    finally:
        quick.close()
    return list(found["examples"]) if found else []


def no_drift_service(error: Down | Refused, what: str) -> None:
    """Says what is missing without the drift service, and where it is looked for."""
    if isinstance(error, Refused):
        st.info(f"The drift service said no: {plain(str(error))}", icon=":material/info:")
        return
    st.info(f"The drift service is not reachable, so {what}.", icon=":material/cloud_off:")
    st.caption(f"{plain(str(error))}. `uv run drift` starts it, `PIGEONHOLE_DRIFT_URL` says where this page looks for it.")


def offers(route: str) -> bool:
    """Whether the service lists a route such as `POST /feedback`; a service that does not answer offers nothing."""
    try:
        return route in _routes()
    except (Down, Refused):
        return False


def show_error(error: Down | Refused) -> None:
    if isinstance(error, Down):
        st.error(f"The service is not reachable. {plain(str(error))}", icon=":material/cloud_off:")
        st.caption(
            "Nothing that you wrote is lost: leave this page open and try again. "
            "Whoever runs it: `uv run serve` starts the service, `PIGEONHOLE_API_URL` says where this page looks for it."
        )
    else:
        st.error(f"The service said no: {plain(str(error))}", icon=":material/error:")


def plain(text: str) -> str:
    """Text as text: nothing in it is Markdown or HTML, and no address becomes a link (an invisible joiner breaks it)."""
    return LINK.sub("\\1\u2060", MARKDOWN.sub(r"\\\1", text))


def percent(share: float) -> str:
    """Never rounds an almost sure answer up to 100 %, nor an unlikely one down to 0 %."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{share:.1%}".replace("%", " %")


def count(n: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def decision_in_words(decision: str) -> str:
    return DECISIONS.get(decision, (decision.replace("_", " "), "gray", ""))[0]


def labels_of(answer: Mapping[str, Any]) -> list[str]:
    """All labels of an answer: several where the model gives a text several, and then perhaps none."""
    found = answer.get("labels")
    return [str(label) for label in found] if isinstance(found, list) else [str(answer["label"])]


def joined(labels: list[str]) -> str:
    return ", ".join(labels) or "none of the labels"
