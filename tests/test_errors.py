import re

from pigeonhole import errors
from pigeonhole.errors import PigeonholeError


def tree_of(error: type[PigeonholeError], depth: int = 0) -> list[tuple[int, str]]:
    below = [
        line for child in error.__subclasses__() if child.__module__ == errors.__name__ for line in tree_of(child, depth + 1)
    ]
    return [(depth, error.__name__), *below]


def test_the_drawn_tree_is_the_tree_of_the_classes() -> None:
    drawn = re.findall(r"^([│├└─ ]*)(\w+Error)", errors.__doc__ or "", re.MULTILINE)
    assert [(len(indent) // 4, name) for indent, name in drawn] == tree_of(PigeonholeError)


def test_the_drawn_exit_codes_are_those_of_the_classes() -> None:
    drawn = re.findall(r"(\w+Error) +(\d)\b", errors.__doc__ or "")
    assert {name: int(code) for name, code in drawn} == {"UserError": 2, "RunError": 3, "GateError": 4}
    assert all(getattr(errors, name).exit_code == int(code) for name, code in drawn)
