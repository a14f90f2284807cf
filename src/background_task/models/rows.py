"""What a waiting task and a finished one have in common: the columns, and how they read."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from django.contrib import admin
from django.db import models
from django.utils import timezone

from background_task._compat import uuid7
from background_task.models.creators import HasCreator
from background_task.settings import app_settings

HOURLY = 3600
DAILY = 24 * HOURLY
WEEKLY = 7 * DAILY
EVERY_2_WEEKS = 2 * WEEKLY
EVERY_4_WEEKS = 4 * WEEKLY
NEVER = 0
REPEAT_CHOICES = (
    (HOURLY, "hourly"),
    (DAILY, "daily"),
    (WEEKLY, "weekly"),
    (EVERY_2_WEEKS, "every 2 weeks"),
    (EVERY_4_WEEKS, "every 4 weeks"),
    (NEVER, "never"),
)


class Row(HasCreator):
    """The predecessor's sixteen columns, and ours, which are NULL wherever its code wrote the row.

    ``result_id`` names a task for ever: it is known before the row is stored, stands in whichever
    of the two tables holds the task, and is safe to put in a URL. ``worker_id`` tells which process
    holds or held the run; ``locked_by`` keeps the predecessor's text, a bare process number.
    """

    task_name = models.CharField(max_length=190)
    task_params = models.TextField()
    task_hash = models.CharField(max_length=40)
    verbose_name = models.CharField(max_length=255, null=True, blank=True)
    priority = models.IntegerField(default=0)
    run_at = models.DateTimeField()
    repeat = models.BigIntegerField(choices=REPEAT_CHOICES, default=NEVER)
    repeat_until = models.DateTimeField(null=True, blank=True)
    queue = models.CharField(max_length=190, null=True, blank=True)
    attempts = models.IntegerField(default=0)
    failed_at = models.DateTimeField(null=True, blank=True)
    last_error = models.TextField(blank=True)
    locked_by = models.CharField(max_length=64, null=True, blank=True)
    locked_at = models.DateTimeField(null=True, blank=True)
    creator_object_id = models.PositiveIntegerField(null=True, blank=True)
    creator_key = models.CharField(max_length=255, null=True, blank=True, editable=False)

    result_id = models.UUIDField(null=True, blank=True, editable=False)
    enqueued_at = models.DateTimeField(null=True, blank=True, editable=False)
    started_at = models.DateTimeField(null=True, blank=True, editable=False)
    worker_id = models.CharField(max_length=64, null=True, blank=True, editable=False)
    backend = models.CharField(max_length=64, null=True, blank=True, editable=False)
    losses = models.SmallIntegerField(null=True, blank=True, editable=False)
    options = models.TextField(null=True, blank=True, editable=False)
    return_value = models.TextField(null=True, blank=True, editable=False)

    # What the next insert is to carry of the values that make a row this one and no other.
    _identity: Mapping[str, Any] = MappingProxyType({})

    class Meta:
        abstract = True

    def identify(self, **values: Any) -> None:
        """Say what the row is to be known by once it is stored.

        Without this a row that is inserted gets an identity of its own, wherever its other columns
        come from: projects copy rows, by ``pk = None`` or column by column.
        """
        self._identity = values

    def _begin(self, **values: Any) -> None:
        if self._state.adding or self.pk is None:
            for name, value in {**values, **self._identity}.items():
                setattr(self, name, value)
            if "result_id" not in self._identity:
                self.result_id = uuid7()
            self._identity = MappingProxyType({})

    @admin.display(boolean=True)
    def locked_by_pid_running(self) -> bool | None:
        """Tell whether the process that holds the lock lives; None when the row is not locked.

        A process of another host cannot be asked, so a lock of such a one counts as alive until it
        is ``MAX_RUN_TIME`` old. No signal is ever sent: on Windows, number 0 is Ctrl-C.
        """
        if not self.locked_by:
            return None
        host, pid = _parse(self.worker_id)
        if host is None or str(pid) != self.locked_by:
            # Locked by the predecessor, or by a runner with a name of its own.
            host, pid = _hostname(), int(self.locked_by) if self.locked_by.isdecimal() else None
        if pid is None:
            return False
        if host == _hostname() and (alive := _process_exists(pid)) is not None:
            return alive
        lease = timedelta(seconds=app_settings.BACKGROUND_TASK_MAX_RUN_TIME)
        return self.locked_at is not None and self.locked_at > timezone.now() - lease

    @admin.display(boolean=True)
    def has_error(self) -> bool:
        """Tell whether an attempt has failed."""
        return bool(self.last_error)


@cache
def _hostname() -> str:
    return socket.gethostname()[:40].replace(":", "-")


@cache
def _process_token(pid: int) -> str:
    return uuid.uuid4().hex[:8]


def this_worker() -> str:
    """Return the name of this process, unique among all hosts: ``host:pid:token``."""
    return f"{_hostname()}:{os.getpid()}:{_process_token(os.getpid())}"


def has_ended(worker_id: str) -> bool | None:
    """Tell whether a worker was a process of this host that is no more; None if it is unknown."""
    host, pid = _parse(worker_id)
    if host != _hostname() or pid is None:
        return None
    if pid == os.getpid():
        return worker_id != this_worker()  # its number is ours now, as it is in containers
    exists = _process_exists(pid)
    return None if exists is None else not exists


def _parse(worker_id: str | None) -> tuple[str | None, int | None]:
    with contextlib.suppress(ValueError):
        host, pid, _ = (worker_id or "").split(":")
        return host, int(pid)
    return None, None


def _process_exists(pid: int) -> bool | None:
    """Look for a process of this host without touching it; None where that cannot be seen."""
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
