"""Waits for changes of files without asking for them, by Linux' ``inotify(7)``."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# From <sys/inotify.h>: the contents or the times have changed, or the file itself has gone.
_CHANGES = 0x002 | 0x004 | 0x400 | 0x800
_LARGEST_READ = 65_536


class FileWatch:
    """Can be read when one of these files has changed.

    Args:
        paths: of the files, which exist.

    Raises:
        OSError: there is no inotify, no more of it, or no such file.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("inotify is of Linux")
        library = ctypes.CDLL(None, use_errno=True)
        self._file = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "inotify cannot be had")
        for path in paths:
            if library.inotify_add_watch(self._file, os.fsencode(path), _CHANGES) < 0:
                self.close()
                raise OSError(ctypes.get_errno(), "This file cannot be watched", str(path))

    def fileno(self) -> int:
        """The file to wait for."""
        return int(self._file)

    def drain(self) -> bool:
        """Forget what was told until now; tells whether there was something."""
        is_told = False
        with suppress(BlockingIOError):
            while os.read(self._file, _LARGEST_READ):
                is_told = True
        return is_told

    def close(self) -> None:
        """Watch no more."""
        with suppress(OSError):
            os.close(self._file)
