"""What a user is told when something is wrong, and the exit code that goes with it."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

MAX_PROBLEMS = 50
"""So many tensors are named in one error."""


class RedHeartError(Exception):
    """A failure that the user can act on: one message, no traceback.

    Args:
        what: what failed, one short sentence without a full stop.
        where: path, key, line or step it was found at.
        got: what was found there.
        expected: what would have been accepted.
        hint: what to do about it.
    """

    exit_code = 2
    is_said = False
    """Whether it has been printed where errors go."""

    def __init__(
        self, what: str, *, where: object = None, got: object = None, expected: object = None, hint: str | None = None
    ) -> None:
        self.what, self.where, self.got, self.expected, self.hint = what, where, got, expected, hint
        given = {"where": where, "got": got, "expected": expected, "hint": hint}
        lines = [f"  {name + ':':<10}{value}" for name, value in given.items() if value is not None]
        super().__init__("\n".join([what, *lines]))


class BadInput(RedHeartError):
    """A file, option or record is not what it must be."""


class CorruptFile(RedHeartError):
    """A file of a run does not match the digest that was written for it."""


class DoesNotFit(RedHeartError):
    """The planned run needs more memory than there is."""

    exit_code = 3


class Diverged(RedHeartError):
    """The loss or the gradient stopped being a number."""

    exit_code = 4


class DiskError(RedHeartError):
    """The disk is full, read-only or over its quota; nothing half-written is left."""

    exit_code = 74


class Interrupted(RedHeartError):
    """The run was asked to stop, saved its state and can be resumed."""

    exit_code = 75


class OtherRankFailed(RedHeartError):
    """Another of the processes that train together has failed: this one ends with its exit code, and it was said."""

    is_said = True


def one_line(error: Exception) -> str:
    """An error of other code: its class, and the first line of what it says, if it says anything."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def listed(problems: Sequence[object]) -> str:
    """Problems, a line each behind a line break; of very many the first."""
    return names_text([f"\n    {problem}" for problem in problems], shown=100, separator="", rest="\n    and")


def names_text(names: Collection[str], *, shown: int = 5, separator: str = ", ", rest: str = " and") -> str:
    """The first few of these names, and how many more there are."""
    more = f"{rest} {len(names) - shown} more" if len(names) > shown else ""
    return separator.join(list(names)[:shown]) + more


@contextmanager
def extra(name: str, *, library: str, purpose: str) -> Iterator[None]:
    """Around the import of a library of `pip install 'redheart[NAME]'`: one message where it is not installed.

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
