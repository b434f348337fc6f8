"""Libraries that one feature needs and the rest does not: `pip install 'redheart[NAME]'`."""

from collections.abc import Iterator
from contextlib import contextmanager

from redheart.core.errors import BadInput


@contextmanager
def extra(name: str, *, library: str, purpose: str) -> Iterator[None]:
    """Around the import of an extra's library: one message where it is not installed.

    Raises:
        BadInput: it is not; the command that installs it is named.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        # A broken installation lacks something else, and that is what must be read.
        if error.name != library:
            raise
        raise BadInput(f"{purpose} needs {library}", hint=f"pip install 'redheart[{name}]'") from error
