"""Start programs, stop them, and wait for what they do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import body

HERE = Path(__file__).parent

Child = subprocess.Popen[bytes]


class Failure(Exception):  # noqa: N818
    """Something could not be measured; the message says why."""


def run(command: Sequence[str], environment: dict[str, str]) -> str:
    """Run a program to its end and return what it prints."""
    try:
        done = subprocess.run(
            command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=900
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failure(str(error)) from error
    if done.returncode:
        raise Failure(_last_line(done.stderr) or f"ended with {done.returncode}")
    return done.stdout


@contextmanager
def started(
    commands: Sequence[Sequence[str]], environment: dict[str, str], log: Path
) -> Iterator[list[Child]]:
    """Run programs, each in a session of its own, and stop them in the end."""
    with log.open("ab") as output:
        children = [
            subprocess.Popen(
                command, cwd=HERE, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )
            for command in commands
        ]  # fmt: skip
    try:
        yield children
    finally:
        for child in children:
            child.terminate()
        for child in children:
            _wait(child)


def _wait(child: Child) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(30)
    kill(child)


def kill(child: Child) -> None:
    """Kill what is left of a session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def check(child: Child, log: Path) -> None:
    """Fail where a program has ended that should run."""
    if child.poll() is not None:
        raise Failure(f"it has ended: {_last_line(log.read_text(errors='replace'))}")


def wait_for(
    condition: Callable[[], object], children: Sequence[Child], log: Path, seconds: float = 60
) -> None:
    """Wait until something is so; it is looked at every 10 ms."""
    end = time.monotonic() + seconds
    while not condition():
        if all(child.poll() is not None for child in children) and not condition():
            raise Failure(f"the worker has ended: {_last_line(log.read_text(errors='replace'))}")
        if time.monotonic() > end:
            raise Failure(f"nothing came of it within {seconds:.0f} seconds")
        time.sleep(0.01)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


class Records:
    """What tasks have written down."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "records"
        self.path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return self.path.stat().st_size // body.LENGTH if self.path.exists() else 0

    def wait(self, count: int, children: Sequence[Child], log: Path) -> None:
        """Wait until so many have begun, as long as some begin at all."""
        while (before := len(self)) < count:
            wait_for(lambda: len(self) >= min(count, before + 1), children, log)

    def moments(self) -> list[int]:
        """Return when tasks have begun, in nanoseconds, in order."""
        return sorted(int(line) for line in self.path.read_bytes().split())
