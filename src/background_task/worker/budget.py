"""What a process may use up: so many tasks, and so much memory."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
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
        # How many of the budget are kept for it: at first what may be taken, then what was.
        self.reserved = most
        self.taken = 0
        # How many of those that were taken have begun; who takes more than one says so.
        self.begun: Callable[[], int] = lambda: self.taken


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
        # Of which some may not have begun.
        self._open: list[Grant] = []
        self._run = 0
        self._lock = threading.Lock()
        # Held by who asks for tasks: what he does not get is there for the next.
        self._asking = threading.Lock()

    @contextmanager
    def grant(self, count: int) -> Iterator[Grant]:
        """Within this block, take tasks: at most ``count``, and no more than are left.

        Who takes tasks that begin after it says how many have, and closes the grant in the end.
        """
        with nullcontext() if self._left is None else self._asking:
            with self._lock:
                grant = Grant(count if self._left is None else min(count, self._left))
                self._open.append(grant)
                if self._left is not None:
                    self._left -= grant.most
            try:
                yield grant
            finally:
                with self._lock:
                    self._run += grant.taken
                    self._take_back(grant.reserved - grant.taken)
                    grant.reserved = grant.taken
                    if grant.begun() == grant.taken:
                        self._open.remove(grant)

    def close(self, grant: Grant) -> None:
        """Say that what has not begun of a grant will not; it may be taken anew."""
        with self._lock:
            if grant in self._open:
                self._open.remove(grant)
                count = grant.taken - grant.begun()
                self._run -= count
                self._take_back(count)

    def _take_back(self, count: int) -> None:
        if self._left is not None:
            self._left += count

    @property
    def left(self) -> int | None:
        """How many tasks may still begin; None is without end."""
        if self._left is None:
            return None
        with self._lock:
            return self._left + sum(grant.reserved - grant.begun() for grant in self._open)

    @property
    def is_spent(self) -> bool:
        """Whether no task may begin any more."""
        return self.left == 0

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
