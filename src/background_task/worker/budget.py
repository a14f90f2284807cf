"""How many tasks a process may run."""

from __future__ import annotations

import threading


class Budget:
    """How many tasks a process may still run.

    Args:
        most: how many in all; None is without end.
    """

    def __init__(self, most: int | None = None) -> None:
        self._left = most
        self._reserved = 0
        self._run = 0
        self._lock = threading.Lock()

    def reserve(self, count: int) -> int:
        """Return how many of ``count`` tasks may be taken now; :meth:`use` says how many were."""
        with self._lock:
            granted = count if self._left is None else min(count, self._left)
            self._reserved += granted
            if self._left is not None:
                self._left -= granted
            return granted

    def use(self, granted: int, taken: int) -> None:
        """Count ``taken`` tasks as run, of those that were reserved."""
        with self._lock:
            self._reserved -= granted
            self._run += granted
        self.give_back(granted - taken)

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
    def is_touched(self) -> bool:
        """Whether a task was run."""
        return self._run > 0

    @property
    def is_spent(self) -> bool:
        """Whether no task may be run any more."""
        with self._lock:
            return self._left == 0 and not self._reserved
