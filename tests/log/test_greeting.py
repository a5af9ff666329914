"""A silent server is told from one that answers, over real sockets."""

from __future__ import annotations

import http.server
import socket
import threading

import pytest

from optland.log.greeting import silence


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert "refused" in silence(f"http://127.0.0.1:{port}")


def test_a_server_that_takes_connections_and_never_says_a_word() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert "timed out" in silence(f"http://127.0.0.1:{server.getsockname()[1]}", timeout=0.2)


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet."""


def test_a_refusal_is_an_answer() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        threading.Thread(target=refusing.handle_request, daemon=True).start()
        assert silence(f"http://127.0.0.1:{refusing.server_port}") == ""


def test_another_language_is_an_answer_too() -> None:
    """A server that speaks no HTTP, or HTTPS with a certificate unknown here, is for wandb to judge."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def mutter() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"not http\r\n\r\n")

        threading.Thread(target=mutter, daemon=True).start()
        assert silence(f"http://127.0.0.1:{server.getsockname()[1]}") == ""
