"""Servers in wandb's place, over real sockets."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any, ClassVar


class Greeting(http.server.BaseHTTPRequestHandler):
    """Greets, and hangs in every real request."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        threading.Event().wait(60)

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet."""


class Dying(Greeting):
    """Lets a run begin, as wandb's server would, and answers nothing any more once its rows come."""

    answers: ClassVar[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked: dict[str, Any] = json.loads(body)
        if asked.get("operationName") not in self.answers:
            super().do_POST()
        content = json.dumps({"data": self.answers[asked["operationName"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


ME = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
PROJECT = {"name": "optland", "entity": {"name": "me"}}
BUCKET = {
    "id": "1",
    "name": "x",
    "displayName": "x",
    "config": "{}",
    "project": PROJECT,
    "historyLineCount": 0,
}
ANSWERS: dict[str, Any] = {
    "Viewer": {"viewer": ME},
    "RunResumeStatus": {"model": None},
    "UpsertBucket": {"upsertBucket": {"bucket": {**BUCKET, "sweepName": None}, "inserted": True}},
    "OrganizationCoreWeaveOrganizationID": {"entity": None},
}
"""What wandb asks for before a run may begin."""
Dying.answers = ANSWERS


class Forgetting(Dying):
    """As the other, and asked for the user it knows nobody."""

    answers: ClassVar[dict[str, Any]] = {**ANSWERS, "Viewer": {"viewer": None}}


@contextlib.contextmanager
def serve(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[int]:
    """The port of a running server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
