"""The event log on standard output, one JSON object a line, for programs that watch a run."""

import json
from collections.abc import Mapping

from redheart.core.progress import Standing, Ticker


class JsonLines:
    """Prints every event, for as long as it can, and where the training stands when none has come for a while."""

    wants_past = False

    def __init__(self) -> None:
        self._is_read = True
        self._standing = Standing("train", 0, unit="steps")
        self._ticker = Ticker(lambda: self._print(self._standing.fields)).start()

    def write(self, event: Mapping[str, object]) -> None:
        step = int(str(event.get("step", 0)))
        if event["event"] == "start":
            total = int(str(event["epochs"])) * int(str(event["steps_per_epoch"]))
            self._standing = Standing("train", total, unit="steps", done=step)
        elif event["event"] == "step":
            self._standing.done = step
        self._print(event)
        self._ticker.said()

    def close(self, *, exit_code: int) -> None:
        self._ticker.close()

    def _print(self, event: Mapping[str, object]) -> None:
        if self._is_read:
            try:
                print(json.dumps(event), flush=True)
            # Nobody reads them any more, or the disk that they go to is full; a run must not end by it.
            except OSError:
                self._is_read = False
