"""Where a file lies that a folder's results were made from: a hint that survives a move, never an identity.

Paths are kept as they were typed, and beside them as they are seen from the folder: so they are found again from any
working folder, also after both were moved together, and do not tell where on a machine they lay.
"""

import os
from pathlib import Path


def seen_from(folder: Path, typed: str) -> str | None:
    """The way from a folder to what was typed, None where nothing is there."""
    path = Path(typed)
    return os.path.relpath(path.resolve(), folder.resolve()) if path.exists() else None


def found_again(typed: str, folder: Path, place: str | None) -> str:
    """Where it lies now: where it was, seen from the folder, if something is there, else as it was typed."""
    if place is not None and (there := folder.resolve() / place).exists():
        return str(Path(os.path.normpath(there)))
    return typed
