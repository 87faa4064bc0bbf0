"""What Google's clients raise, as errors that tell the next step. Knows nothing of any one service."""

import contextlib
from collections.abc import Iterator

from pigeonhole.errors import ConfigError, RunError


@contextlib.contextmanager
def refusals(who: str) -> Iterator[None]:
    """Raises RunError for a no of the service and for none in time, ConfigError where nobody is signed in, or no longer."""
    from google.api_core.exceptions import GoogleAPICallError, RetryError  # only the commands that speak to Google have it
    from google.auth.exceptions import DefaultCredentialsError, RefreshError, TransportError

    try:
        yield
    except GoogleAPICallError as error:
        raise RunError(f"{who} said no: {error.message} ({error.reason or type(error).__name__})") from error
    except (RetryError, TransportError, TimeoutError) as error:
        raise RunError(f"{who} gave no answer: {error}") from error
    except (DefaultCredentialsError, RefreshError) as error:
        raise ConfigError("no account of Google's is signed in, or no longer; `gcloud auth application-default login`") from error
