"""The page of `redheart demo`: it answers this machine, refuses the rest, and needs nothing from elsewhere."""

import json
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import ROOT, environment, launch

from redheart.core.errors import BadInput
from redheart.predict.server import make_server
from redheart.study.final import open_run

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def address(finished_run: Path) -> Iterator[str]:
    with make_server(open_run(finished_run), name="a <b> & c", port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def ask(url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes, str]:
    request = urllib.request.Request(url, data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read(), answer.headers["Content-Security-Policy"]
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers["Content-Security-Policy"]


def test_the_page_stands_alone(address: str) -> None:
    status, content, policy = ask(address + "/")
    text = content.decode()
    assert status == 200 and "<title>a &lt;b&gt; &amp; c</title>" in text and "{{" not in text
    assert "default-src 'none'" in policy
    # Nothing is loaded: no address, and no source or link but the empty icon.
    assert "http:" not in text and "https:" not in text and "//" not in re.sub(r"// Never", "", text)
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == ["data:,"]


def test_a_text_is_answered_as_the_model_answers(address: str, finished_run: Path) -> None:
    text = "오늘 나는 몹시 화났고 <script>alert(1)</script>"
    status, content, _ = ask(address + "/predict", json.dumps({"text": text}).encode(), JSON)
    (expected,) = open_run(finished_run).predict([text])
    assert status == 200 and json.loads(content) == {"tasks": expected.tasks, "warning": None}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_port_80_is_no_part_of_a_hosts_name(host: str, address: str) -> None:
    assert ask(address + "/", None, {"Host": host})[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/other", None, {}, 404),
        ("/../../etc/passwd", None, {}, 404),
        ("/other", b"{}", JSON, 404),
        ("/predict", b"{", JSON, 400),
        ("/predict", b"[" * 100_000, JSON, 400),
        ("/predict", b'{"text": "\\ud800"}', JSON, 400),
        ("/predict", b'{"text": " "}', JSON, 400),
        ("/predict", b'{"text": "a", "more": 1}', JSON, 400),
        ("/predict", b'{"text": "a"}', {"Content-Type": "text/plain"}, 415),
        ("/predict", b" " * ((1 << 20) + 1), JSON, 413),
        ("/predict", b'{"text": "a"}', {**JSON, "Host": "evil.example:80"}, 403),
        ("/", None, {"Host": "evil.example"}, 403),
    ],
)
def test_what_is_not_meant_is_refused(
    path: str, body: bytes | None, headers: dict[str, str], status: int, address: str
) -> None:
    try:
        found, content, _ = ask(address + path, body, headers)
    except (urllib.error.URLError, ConnectionError):
        # The server had answered and closed before all of a body that is too large was sent.
        assert status == 413
        return
    assert found == status and "error" in json.loads(content)


def test_a_port_in_use_is_one_clear_error(address: str, finished_run: Path) -> None:
    for port in (int(address.rpartition(":")[2]), 70_000):
        with pytest.raises(BadInput, match="the port cannot be used"):
            make_server(open_run(finished_run), name="x", port=port)


def test_the_command_serves_until_it_is_ended(finished_run: Path) -> None:
    command = [sys.executable, "-m", "redheart", "demo", str(finished_run), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[0]
        assert ask(url)[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        _, errors = process.communicate()
    assert errors == ""


@pytest.mark.skipif(shutil.which("node") is None, reason="no JavaScript engine here")
@pytest.mark.parametrize(("is_ok", "warning"), [(True, None), (True, "in Hangul"), (False, None)])
def test_the_page_shows_what_is_answered(is_ok: bool, warning: str | None) -> None:
    tasks = {"emotion": {"joy": 0.25, "<i>": 0.75}, "regret": {"regret_factor": 0.5}}
    answer = {"tasks": tasks, "warning": warning} if is_ok else {"error": "a text is empty"}
    page = ROOT / "redheart" / "predict" / "page.html"
    script = Path(__file__).with_name("page_in_node.js")
    done = launch(["node"], script, page, json.dumps(answer), "ok" if is_ok else "failed")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    sent = {"text": "오늘 <b>", "title": "", "action": ""}
    assert found["sent"] == {"url": "/predict", "body": sent, "type": "application/json"}
    assert found["disabled"] is False
    emotion = ["emotion", ["<i>", "75%", "75.0 %"], ["joy", "25%", "25.0 %"]]
    assert found["rows"] == ([emotion, ["regret", ["regret_factor", "50%", "0.50"]]] if is_ok else [])
    assert found["error"] == ((warning or "") if is_ok else "a text is empty")


def test_who_sends_too_much_or_leaves_is_no_trouble(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    host, port = address.removeprefix("http://").split(":")
    head = "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"{head}{'9' * 5000}\r\n\r\n".encode())
        assert b" 413 " in client.recv(100)
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"{head}5000000\r\n\r\n".encode())
        # Who asks first whether to send so much is not kept waiting.
        assert b" 413 " in client.recv(100)
    body = json.dumps({"text": "gone before the answer"})
    for sent in (body, body[:9]):
        with socket.create_connection((host, int(port))) as client:
            client.sendall(f"{head}{len(body)}\r\n\r\n{sent}".encode())
            # A reset instead of an end, as a closed tab sends it.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert ask(address + "/predict", json.dumps({"text": "still there"}).encode(), JSON)[0] == 200
    assert "Traceback" not in capfd.readouterr().err
