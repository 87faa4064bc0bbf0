import pytest
from frontend.login import USERS_VARIABLE, is_allowed
from streamlit.testing.v1 import AppTest
from tests.frontend.conftest import NOBODY, ROOT

AUTH = {
    "redirect_uri": "http://localhost:8501/oauth2callback",
    "cookie_secret": "a secret of the tests",
    "client_id": "page",
    "client_secret": "another",
    "server_metadata_url": f"{NOBODY}/.well-known/openid-configuration",
}


@pytest.mark.parametrize(
    ("email", "verified", "allowed"),
    [
        ("ann@example.com", True, True),
        ("ANN@example.com", True, True),
        ("ann@example.com", False, False),
        ("bob@example.com", True, False),
        ("bob@team.example", True, True),
        ("bob@team.example.evil", True, False),
        ("", True, False),
    ],
)
def test_only_verified_addresses_that_are_named_are_let_in(email: str, verified: bool, allowed: bool) -> None:
    assert is_allowed(email, verified, "ann@example.com, *@team.example") is allowed


def test_nobody_is_let_in_where_nobody_is_named() -> None:
    assert not is_allowed("ann@example.com", True, " , ")


def opened(monkeypatch: pytest.MonkeyPatch, users: str) -> AppTest:
    monkeypatch.setenv(USERS_VARIABLE, users)
    app = AppTest.from_file(str(ROOT / "frontend/app.py"), default_timeout=60)
    app.secrets["auth"] = AUTH
    return app.run()


def test_with_a_provider_a_stranger_sees_a_login_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(monkeypatch, "ann@example.com")
    assert not app.exception
    assert [button.label for button in app.button] == ["Log in"]
    assert not app.text_area


def test_a_provider_without_a_list_of_people_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(monkeypatch, "")
    assert USERS_VARIABLE in app.error[0].value
    assert not app.button
    assert not app.text_area


def test_there_is_no_folder_that_streamlit_would_run_past_the_login() -> None:
    assert not (ROOT / "frontend/pages").exists()
