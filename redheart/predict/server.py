"""A local page to try a model: text in, bars out. Only this machine is answered, and nothing else is fetched."""

import html
import json
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

import msgspec

from redheart.core.errors import BadInput, RedHeartError
from redheart.data.records import Record
from redheart.data.scripts import unread_text
from redheart.predict.predictor import Predictor

HOST = "127.0.0.1"
_MAX_BYTES = 1 << 20
_HEADERS = {
    # The page may run its own lines and ask this server; nothing from elsewhere, whatever a text contains.
    "Content-Security-Policy": (
        "default-src 'none'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the page sends."""

    text: str
    title: str = ""
    action: str = ""


def make_server(predictor: Predictor, *, name: str, port: int) -> ThreadingHTTPServer:
    """A server that answers on this machine alone; `serve_forever` runs it, port 0 takes a free one.

    Raises:
        BadInput: the port is taken or not allowed.
    """
    text = files("redheart.predict").joinpath("page.html").read_text(encoding="utf-8")
    page = text.replace("{{name}}", html.escape(name, quote=False)).encode()
    # One text at a time: two at once would each take twice as long and twice the memory.
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = 60

        def handle(self) -> None:
            # Who has left, while sending or before the answer, wants none any more.
            with suppress(ConnectionError, TimeoutError):
                super().handle()

        def do_GET(self) -> None:
            if self._is_foreign():
                return
            if self.path == "/":
                self._answer(HTTPStatus.OK, page, "text/html; charset=utf-8")
            else:
                self._fail(HTTPStatus.NOT_FOUND, "there is only one page: /")

        def do_POST(self) -> None:
            if self._is_foreign():
                return
            if self.path != "/predict":
                self._fail(HTTPStatus.NOT_FOUND, "texts are sent to /predict")
                return
            # A page of another origin cannot send this type without asking, and is not answered when it asks.
            if self.headers.get_content_type() != "application/json":
                self._fail(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
                return
            length = self.headers.get("Content-Length", "")
            # Python refuses to read numbers of thousands of digits.
            if not length.isdecimal() or len(length) > 9 or int(length) > _MAX_BYTES:
                self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {_MAX_BYTES} bytes, and say how many")
                return
            try:
                question = msgspec.json.decode(self.rfile.read(int(length)), type=Question)
                record = Record("text", question.text, question.title, question.action)
                with one_at_a_time:
                    (prediction,) = predictor.predict([record])
            except (ValueError, RecursionError) as error:
                self._fail(HTTPStatus.BAD_REQUEST, f"not understood: {error}")
            except RedHeartError as error:
                self._fail(HTTPStatus.BAD_REQUEST, error.what)
            else:
                script = prediction.unread_script
                warning = unread_text({script: 1}, 1, encoder=predictor.features.encoder) if script else None
                content = json.dumps({"tasks": prediction.tasks, "warning": warning}).encode()
                self._answer(HTTPStatus.OK, content, "application/json")

        def _is_foreign(self) -> bool:
            """Whether the request was meant for another name: a foreign site may point its own name at this address."""
            host = self.headers.get("Host", "").partition(":")[0]
            if host in (HOST, "localhost"):
                return False
            self._fail(HTTPStatus.FORBIDDEN, "this server answers this machine only")
            return True

        def _fail(self, status: HTTPStatus, message: str) -> None:
            self._answer(status, json.dumps({"error": message}).encode(), "application/json")

        def _answer(self, status: HTTPStatus, content: bytes, kind: str) -> None:
            self.send_response(status)
            for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nothing is logged: texts are people's own."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise BadInput(
            "the port cannot be used", where=f"--port {port}", got=error, hint="choose another; 0 takes a free one"
        ) from error
