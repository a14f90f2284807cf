"""What a process may use up: so many tasks, and so much memory."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from background_task import logs

logger = logs.named("background_task.tasks")


class Grant:
    """What may be taken now, and what was.

    Args:
        most: how many tasks may be.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0


class Budget:
    """How much a process may still use.

    Args:
        most: how many tasks in all; None is without end.
        heaviest: how much memory, in MiB; None is without end.
    """

    def __init__(self, most: int | None = None, heaviest: float | None = None) -> None:
        self._left = most
        self._heaviest = heaviest
        # Whether it has used too much memory.
        self.was_too_heavy = False
        self._reserved = 0
        self._run = 0
        self._lock = threading.Lock()
        # Held by who asks for tasks: what he does not get is there for the next.
        self._asking = threading.Lock()

    @contextmanager
    def grant(self, count: int) -> Iterator[Grant]:
        """Within this block, take tasks: at most ``count``, and no more than are left."""
        with nullcontext() if self._left is None else self._asking:
            with self._lock:
                grant = Grant(count if self._left is None else min(count, self._left))
                self._reserved += grant.most
                if self._left is not None:
                    self._left -= grant.most
            try:
                yield grant
            finally:
                with self._lock:
                    self._reserved -= grant.most
                    self._run += grant.most
                self.give_back(grant.most - grant.taken)

    def give_back(self, count: int) -> None:
        """Count so many as not run after all."""
        with self._lock:
            self._run -= count
            if self._left is not None:
                self._left += count

    @property
    def left(self) -> int | None:
        """How many tasks may still be run; None is without end."""
        return self._left

    @property
    def is_spent(self) -> bool:
        """Whether no task may be run any more."""
        with self._lock:
            return self._left == 0 and not self._reserved

    def weigh(self) -> bool:
        """Tell whether the process uses too much memory."""
        # Not before a task has run: what a process weighs at its start, the next would weigh too.
        if self._heaviest is None or self._run <= 0:
            return False
        weight = memory()
        if weight > self._heaviest:
            logger.info(
                "This process uses %.0f MiB, and %.0f are the limit", weight, self._heaviest
            )
            self.was_too_heavy = True
        return weight > self._heaviest


def memory() -> float:
    """Return how much memory this process uses, in MiB: now on Linux, elsewhere at most."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * _page_size() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)


def _page_size() -> int:
    import resource

    return resource.getpagesize()
