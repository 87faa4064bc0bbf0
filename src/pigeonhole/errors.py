"""Every error that a user can meet, drawn as one tree, each with the exit code that a command ends with.

PigeonholeError
├── UserError                  2   something the user gave has to change
│   ├── ConfigError                a key, its value, its range
│   ├── DataError                  a data file: its place (file, line, column) and what is allowed
│   ├── StorageError               a URL that cannot be read or written
│   │   └── NotFoundError
│   ├── BundleError                a bundle that is refused, with the file's name
│   └── RegistryError              a name, version or alias that is not there
├── RunError                   3   a run that failed on the way
│   ├── ParityError                exported models disagree with the trained one
│   ├── DeadLabelError             a label that the model never learned to give
│   ├── DivergedError              the loss is no longer a number
│   ├── OutOfMemoryError           one text alone does not fit into memory
│   ├── StoppedError               a run that was told to stop and can go on
│   ├── InferenceError             a model that gave no usable answer
│   ├── LogError                   a prediction that could not be written down
│   └── ServiceError               a service that refused a question, or gave no answer in time
└── GateError                  4   a gate said no
"""

from http import HTTPStatus

from msgspec import DecodeError

NOT_AS_TYPED = (DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON that was asked for: another shape, no UTF-8, nested too deeply."""

RENAMED = {413: "Content Too Large", 414: "URI Too Long", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}


def status_title(status: int) -> str:
    """As RFC 9110 has it, for problem+json; a Python before 3.13 has older ones for some."""
    return RENAMED.get(status) or HTTPStatus(status).phrase


class PigeonholeError(Exception):
    """The root; its text says what was found, what is allowed and the next step."""

    exit_code = 3


class UserError(PigeonholeError):
    exit_code = 2


class ConfigError(UserError):
    pass


class DataError(UserError):
    pass


class StorageError(UserError):
    pass


class NotFoundError(StorageError):
    pass


class BundleError(UserError):
    pass


class RegistryError(UserError):
    pass


class RunError(PigeonholeError):
    pass


class ParityError(RunError):
    pass


class DeadLabelError(RunError):
    pass


class DivergedError(RunError):
    pass


class OutOfMemoryError(RunError):
    pass


class StoppedError(RunError):
    pass


class InferenceError(RunError):
    pass


class LogError(RunError):
    pass


class ServiceError(RunError):
    """What the client raises. `status` None: there was no answer at all; `code` is what programs compare."""

    def __init__(self, message: str, status: int | None, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class GateError(PigeonholeError):
    """Carries the verdict, which the command prints on stdout like any result."""

    exit_code = 4

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result
