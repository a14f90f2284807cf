"""One run of the demo in real processes, as ``scripts/demo`` starts it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from support import wait_until

SERVE = Path(__file__).parents[2] / "demo" / "serve.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children_of(pid: int) -> list[int]:
    """Return the processes that ``pid`` has started and that still live."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def lives(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


class Demo:
    """One run of the demo."""

    def __init__(self, data: Path, *arguments: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.log = data / f"demo-{self.port}.log"
        environment = {**os.environ, "DEMO_DATA": str(data), "PYTHONUNBUFFERED": "1"}
        environment.pop("DJANGO_SETTINGS_MODULE", None)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SERVE), "--port", str(self.port), *arguments],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.children: list[int] = []

    def text(self) -> str:
        return self.log.read_text()

    def ready(self) -> Demo:
        wait_until(lambda: "Ctrl-C" in self.text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.text()
        self.children = children_of(self.process.pid)
        return self

    def worker(self) -> int:
        """Return the process number of the worker."""
        return next(
            child
            for child in self.children
            if b"process_tasks" in Path(f"/proc/{child}/cmdline").read_bytes()
        )

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Return status, JSON and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(
                method, path, body, {k.replace("_", "-"): v for k, v in headers.items()}
            )
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else {}, dict(answer.headers)
        finally:
            connection.close()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        for child in self.children:
            if lives(child):
                os.kill(child, signal.SIGKILL)
