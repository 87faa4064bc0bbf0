"""Who may see the pages: everybody, unless Streamlit's secrets name an OpenID Connect provider (`[auth]`, see README).

A provider such as Google signs for everybody in the world, so PIGEONHOLE_PAGE_USERS has to say who of them is let in.
"""

import os

import streamlit as st

from frontend import view

USERS_VARIABLE = "PIGEONHOLE_PAGE_USERS"


def is_allowed(email: str, verified: bool, users: str) -> bool:
    """`users`: e-mail addresses or *@domain, with commas between them. An address that is not verified is nobody's."""
    given = email.strip().lower()
    allowed = {each.strip().lower() for each in users.split(",") if each.strip()}
    return verified and bool(given) and (given in allowed or f"*@{given.rpartition('@')[2]}" in allowed)


def require_login() -> None:
    """Returns for who may see the page; for all others it draws what they can do, and the run ends."""
    if not (st.secrets.load_if_toml_exists() and "auth" in st.secrets):
        return
    users = os.environ.get(USERS_VARIABLE, "")
    if not users:
        st.error(f"A login is set up, but nobody is let in: {USERS_VARIABLE} has to name e-mail addresses, or *@domain.")
        st.stop()
    if not st.user.get("is_logged_in"):
        st.title("Pigeonhole")
        st.button("Log in", type="primary", icon=":material/login:", on_click=st.login)
        st.stop()
    email, verified = str(st.user.get("email") or ""), st.user.get("email_verified") is True
    if not is_allowed(email, verified, users):
        st.error(f"{view.plain(email) or 'This account'} may not see this page.", icon=":material/block:")
        st.button("Log out", on_click=st.logout)
        st.stop()
    with st.sidebar:
        st.caption(view.plain(email))
        st.button("Log out", icon=":material/logout:", type="tertiary", on_click=st.logout)
