"""Where one system is measured: its folder, its commands, its records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import processes
from processes import Child, Records
from systems import System


@dataclass(frozen=True)
class Place:
    """A system, and the folder that its files are in."""

    system: System
    folder: Path
    count: int

    @property
    def log(self) -> Path:
        """What its workers print."""
        return self.folder / "worker.log"

    def run(self, *act: object) -> str:
        """Let its program act, and return what that prints."""
        return processes.run(self.system.command(*act), self._environment())

    def run_module(self, *arguments: object) -> str:
        """Run another module in its environment, and return what that prints."""
        command = [self.system.interpreter(), "-m", *map(str, arguments)]
        return processes.run(command, self._environment())

    def _environment(self) -> dict[str, str]:
        return self.system.environment(self.folder)

    @contextmanager
    def workers(self, records: Records, number: int = 1) -> Iterator[list[Child]]:
        """Run so many workers, and stop them in the end."""
        with self.started(records, *[self.system.command("work")] * number) as children:
            yield children

    @contextmanager
    def started(
        self, records: Records, *commands: list[str], **variables: str
    ) -> Iterator[list[Child]]:
        """Run processes that write down what they begin, and stop them in the end."""
        environment = self._environment() | variables
        environment["BENCH_RECORDS"] = str(records.path)
        self.log.unlink(missing_ok=True)
        with processes.started(commands, environment, self.log) as children:
            yield children
