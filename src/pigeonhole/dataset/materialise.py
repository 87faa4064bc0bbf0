"""`python -m pigeonhole.dataset.materialise [FOLDER]`: write the data that the package carries to data/, byte for byte.

A second run changes nothing, not even the time of a file; `data.dvc` tracks the folder.
"""

import hashlib

from pigeonhole import storage
from pigeonhole.command import command, with_help
from pigeonhole.errors import ConfigError

SOURCE = "package://pigeonhole/dataset/tickets"
FILES = ("tickets.csv", "shifted.csv", "out_of_scope.csv")


def materialise(folder: str = "data") -> dict[str, str]:
    """The sha256 of each file by its URL."""
    digests = {}
    for name in FILES:
        data, url = storage.read(storage.join(SOURCE, name)), storage.join(folder, name)
        if not (storage.exists(url) and storage.read(url) == data):
            storage.write(url, data)
        digests[url] = hashlib.sha256(data).hexdigest()
    return digests


@with_help(f"usage: python -m pigeonhole.dataset.materialise [FOLDER]\n\nWrite {', '.join(FILES)} to FOLDER (data).")
def run(arguments: list[str]) -> dict[str, str]:
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        raise ConfigError(f"{' '.join(arguments)}: expected one folder, or none for data/")
    return materialise(*arguments)


main = command(run)

if __name__ == "__main__":
    main()
