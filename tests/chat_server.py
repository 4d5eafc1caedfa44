"""A chat endpoint on a free port of this machine, for as long as a test needs it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]  # status, JSON value (or bytes), headers


@dataclass
class ChatServer:
    """``url``, and what it was asked: ``requests`` are (headers, payload)."""

    url: str = ""
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        return [payload["messages"][-1]["content"] for _, payload in self.requests]


def said(text: str, finish: str = "stop") -> Reply:
    """A reply as OpenAI has it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    used = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return 200, {"object": "chat.completion", "model": "stub-1", "choices": [choice], "usage": used}, {}


@contextmanager
def chat_server(answer: Callable[[dict[str, Any]], Reply]) -> Iterator[ChatServer]:
    """Answers ``POST /v1/chat/completions`` with what ``answer`` makes of the payload."""
    server, lock = ChatServer(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                status, value, headers = 404, {"error": {"message": f"no route {self.path}"}}, {}
            else:
                with lock:
                    server.requests.append((dict(self.headers), payload))
                status, value, headers = answer(payload)
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, header in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, header)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join(5)
