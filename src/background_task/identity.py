"""The names of processes, unique among all hosts, and whether one that has such a name still lives.

A name is ``host:pid:token``. The token begins with the place: machines and containers may share a
host name, and a process number means another process in each of them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from functools import cache
from hashlib import blake2b
from pathlib import Path

_UNIQUE = 8


def this_worker() -> str:
    """Return the name of this process; 64 characters at most."""
    return f"{_hostname()}:{os.getpid()}:{_token(os.getpid())}"


def has_ended(worker_id: str | None) -> bool | None:
    """Tell whether a process of this place is no more; None if it is of another, or unknown."""
    with contextlib.suppress(ValueError):
        host, number, token = (worker_id or "").split(":")
        if (host, token[:-_UNIQUE]) == (_hostname(), _place(os.getpid())):
            if int(number) == os.getpid():
                return worker_id != this_worker()  # its number is ours now, as it is in containers
            exists = process_exists(int(number))
            return None if exists is None else not exists
    return None


def number_of(worker_id: str | None) -> str | None:
    """Return the process number that a name contains."""
    parts = (worker_id or "").split(":")
    return parts[1] if len(parts) == 3 else None


def process_exists(pid: int) -> bool | None:
    """Look for a process of this place without touching it; None where that cannot be seen.

    No signal is ever sent: on Windows, number 0 is Ctrl-C.
    """
    if Path("/proc/self").exists():
        return Path(f"/proc/{pid}").exists()
    if os.name != "posix":
        return None
    try:
        os.kill(pid, 0)  # POSIX: checks only, sends nothing
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@cache
def _hostname() -> str:
    return socket.gethostname()[:40].replace(":", "-")


@cache
def _token(pid: int) -> str:
    return f"{_place(pid)}{uuid.uuid4().hex[:_UNIQUE]}"


@cache
def _place(pid: int) -> str:
    """Return what tells places apart; by the process, since a fork may have entered another."""
    try:  # Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return "0000"
    return blake2b(f"{boot}{namespace}".encode(), digest_size=2).hexdigest()
