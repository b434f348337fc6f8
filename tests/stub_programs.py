"""Small programs that stand for a compiler."""

from pathlib import Path


def program(path: Path, text: str) -> Path:
    """A shell script that can be started."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path
