import sys

from frontend.__main__ import command


def test_the_page_listens_where_its_environment_says_like_the_services() -> None:
    line = command({"HOST": "0.0.0.0", "PORT": "8080"})
    assert line[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert line[5:] == ["--server.address", "0.0.0.0", "--server.port", "8080"]


def test_without_an_environment_it_listens_on_this_machine_alone() -> None:
    assert command({})[5:] == ["--server.address", "127.0.0.1", "--server.port", "8501"]
