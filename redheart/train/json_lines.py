"""The event log on standard output, one JSON object a line, for programs that watch a run."""

import json
from collections.abc import Mapping


class JsonLines:
    """Prints every event, until nobody reads them."""

    wants_past = False

    def __init__(self) -> None:
        self._is_read = True

    def write(self, event: Mapping[str, object]) -> None:
        if self._is_read:
            try:
                print(json.dumps(event, ensure_ascii=False), flush=True)
            except BrokenPipeError:
                self._is_read = False

    def close(self, *, exit_code: int) -> None:
        return None
