"""Sends what is printed to the log."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

logger = logging.getLogger("background_task.management.commands.process_tasks")


class LogWriter:
    """Stands in for a standard stream, and writes lines to the log.

    Args:
        level: of the log.
        stream: the stream; what a handler of the log writes goes there.
    """

    def __init__(self, level: int, stream: Any) -> None:
        self._level = level
        self._stream = stream
        self._thread = threading.local()

    def write(self, text: str) -> int:
        """Write lines."""
        if getattr(self._thread, "is_logging", False):
            # A handler writes to this very stream, as logging does where nothing is configured.
            return int(self._stream.write(text)) if self._stream else len(text)
        self._thread.is_logging = True
        try:
            if text.strip():
                logger.log(self._level, text.rstrip("\n"))
        finally:
            self._thread.is_logging = False
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        if self._stream:
            self._stream.flush()

    def isatty(self) -> bool:
        """It is no terminal."""
        return False


def log_what_is_printed() -> None:
    """Send what is printed to the log: standard output as INFO, standard error as ERROR."""
    sys.stdout = LogWriter(logging.INFO, sys.stdout)
    sys.stderr = LogWriter(logging.ERROR, sys.stderr)
