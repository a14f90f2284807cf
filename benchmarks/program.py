"""What every measured system can be asked to do; see ``act.py``."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


class Program:
    """A system to measure: at least how it stores one task, and how its worker starts."""

    def prepare(self) -> None:
        """Make the tables."""

    def empty(self) -> None:
        """Forget all tasks."""

    def enqueue(self) -> None:
        """Store one task, by the call that a project would use."""
        raise NotImplementedError

    def enqueue_one_by_one(self, count: int) -> None:
        """Store tasks with a call for each."""
        for _ in range(count):
            self.enqueue()

    def enqueue_many(self, count: int) -> None:
        """Store tasks by the fastest way it offers."""
        self.enqueue_one_by_one(count)

    def work(self) -> None:
        """Become a worker."""
        raise NotImplementedError


def become(*arguments: str) -> NoReturn:
    """Go on as another Python program, as if it had been started from a shell."""
    os.execv(sys.executable, [sys.executable, *arguments])
