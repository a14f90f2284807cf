"""What the figures depend on."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import databases


def described(used: Iterable[str]) -> dict[str, Any]:
    """Return cores, processor, kernel and versions."""
    versions = {}
    for database in sorted(used):
        with contextlib.suppress(Exception):  # its systems are left out, with the reason
            versions[database] = databases.version(database)
    return {
        "cores": os.cpu_count(),
        "cpu": _processor(),
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "databases": versions,
        "day": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
