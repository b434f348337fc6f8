"""A W&B server on the loopback, as much of it as `wandb sweep`, `wandb agent` and an online run ask for."""

import itertools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

import yaml

PROJECT = {"id": "p", "name": "redheart", "entity": {"id": "e", "name": "me"}}


class WandbServer:
    """Serves in a thread on 127.0.0.1 while the block runs.

    Args:
        trials_until_gone: the sweep is deleted once this many trials have ended: a heartbeat is then a 404.
        stops_after: an operation that is the last one answered.
    """

    def __init__(self, *, trials_until_gone: int | None = None, stops_after: str | None = None):
        self.sweep: dict = {}
        self.handed_out: list[dict] = []
        self.history: dict[str, list[dict]] = {}
        """Of every run that was sent here, by its id."""
        self.operations: list[str] = []
        self._trials: Iterator[dict] = iter(())
        self._until_gone, self._is_stopped = trials_until_gone, False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = outer.graphql(body) if self.path == "/graphql" else outer.file_stream(self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                if outer.operations[-1:] == [stops_after]:
                    self.close_connection = True
                    outer.stop()

            def log_message(self, *args: object) -> None:
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """No connection is answered from here on."""
        if not self._is_stopped:
            self._is_stopped = True
            self._http.shutdown()
            self._http.server_close()

    def graphql(self, body: dict) -> tuple[int, dict]:
        query, variables = body["query"], body.get("variables") or {}
        operation = query.split("(")[0].split("{")[0].split()[-1]
        self.operations.append(operation)
        if operation == "UpsertSweep":
            if "templateVariableValues" in query:
                # An older server; the client tries its older schemas.
                return 400, {"errors": [{"message": 'Unknown argument "templateVariableValues"'}]}
            self.sweep = yaml.safe_load(variables["config"])
            self._trials = _grid(self.sweep["parameters"])
            return _data(upsertSweep={"sweep": {"name": "s1", "project": PROJECT}, "configValidationWarnings": []})
        if operation == "SweepWithRuns":
            sweep = {"id": "i", "name": "s1", "config": yaml.safe_dump(self.sweep), "runs": {"edges": []}}
            return _data(project={"sweep": sweep})
        if operation == "CreateAgent":
            return _data(createAgent={"agent": {"id": "a"}})
        if operation == "Heartbeat":
            running = json.loads(variables["runState"])
            if not running and len(self.handed_out) == self._until_gone:
                return 404, {"errors": [{"message": "sweep not found"}]}
            commands = self._commands(running)
            return _data(agentHeartbeat={"agent": {"id": "a"}, "commands": json.dumps(commands)})
        if operation == "UpsertBucket":
            bucket = {"id": "b", "name": variables["name"], "displayName": "run", "config": "{}", "project": PROJECT}
            return _data(upsertBucket={"bucket": {**bucket, "historyLineCount": 0}, "inserted": True})
        if operation == "CreateRunFiles":
            return _data(createRunFiles={"runID": "b", "uploadHeaders": [], "files": []})
        viewer = {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        return _data(viewer=viewer, serverInfo={"cliVersionInfo": {"max_cli_version": "9"}, "features": []})

    def file_stream(self, path: str, body: dict) -> tuple[int, dict]:
        lines = body.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        self.history.setdefault(path.split("/")[-2], []).extend(map(json.loads, lines))
        return 200, {}

    def _commands(self, running: dict) -> list[dict]:
        if running:
            return []
        trial = next(self._trials, None)
        if trial is None:
            return [{"type": "exit"}]
        self.handed_out.append(trial)
        arguments = {name: {"value": value} for name, value in trial.items()}
        run_id = f"trial{len(self.handed_out)}"
        return [{"type": "run", "run_id": run_id, "program": self.sweep["program"], "args": arguments}]


def _grid(parameters: dict) -> Iterator[dict]:
    choices = [given.get("values", [given.get("value")]) for given in parameters.values()]
    for chosen in itertools.product(*choices):
        yield dict(zip(parameters, chosen, strict=True))


def _data(**fields: object) -> tuple[int, dict]:
    return 200, {"data": fields}
