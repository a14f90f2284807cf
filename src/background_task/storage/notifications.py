"""Tell, and hear at once, that tasks were stored or have finished, where the database can tell.

That is PostgreSQL. Who waits, for a task or for its end, asks the database now and then,
everywhere; what is heard only makes him ask sooner. So nothing depends on it, and it may fail, as
it does behind PgBouncer in transaction mode.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from uuid import UUID

from django.db import NotSupportedError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from background_task import logs, vendors
from background_task.storage.batches import in_batches
from background_task.storage.engine import Engine, apart
from background_task.utils import hold_off_signals

logger = logs.named("background_task.storage")

NEW = "background_task_new"
FINISHED = "background_task_finished"
# A process tells of new rows no more often than this, in seconds, and where they are few than the
# second: every commit that notifies waits for every other. Whoever hears looks once more when the
# longer time is over.
BETWEEN_NOTICES = 0.02
BETWEEN_NOTICES_OF_FEW = 0.01
FEW = 5
# PostgreSQL takes less than 8,000 bytes at a time.
MOST_IDS = 200
BETWEEN_TRIES = 1.0


# When it was told of new rows, and of how many it was not told since, by database.
_told: dict[str, tuple[float, int]] = {}
# Workers inside this process.
_here: dict[str, list[Callable[[], None]]] = {}


def tell_new(using: str) -> None:
    """Once the transaction is committed, if there is one, wake the workers that have nothing to do.

    It may be called by everybody who stores rows, as often as he likes.
    """
    connection = connections[using]
    vendor = vendors.of(connection)
    if not (vendor.can_notify or vendor.has_bell or _here.get(using)):
        return
    if connection.in_atomic_block or connection.get_autocommit():
        transaction.on_commit(partial(_tell_new, using), using=using)
    elif vendor.can_notify:  # nobody tells us when it is committed; the database knows
        vendor.notify(connection, NEW, "")


def tell_freed(engine: Engine) -> None:
    """Wake the workers that have nothing to do, once it is committed that rows wait again."""
    if engine.is_own:
        _tell(engine.using, engine.connection)
    else:
        tell_new(engine.using)


def _tell_new(using: str) -> None:
    _tell(using, connections[using])


def _tell(using: str, connection: BaseDatabaseWrapper) -> None:
    for poke in _here.get(using, ()):
        poke()
    vendor, now = vendors.of(connection), time.monotonic()
    vendor.ring(connection)
    if not vendor.can_notify:
        return
    last, untold = _told.get(using, (0.0, 0))
    if now < last + (BETWEEN_NOTICES_OF_FEW if untold < FEW else BETWEEN_NOTICES):
        _told[using] = last, untold + 1
        return
    _told[using] = now, 0
    try:
        vendor.notify_soon(connection, NEW)
    except Exception as error:  # the row is stored, and will be found
        _told.pop(using, None)
        logger.debug("Cannot tell of new tasks: %s", error)


@contextmanager
def told_here(using: str, poke: Callable[[], None]) -> Iterator[None]:
    """Within this block, call ``poke`` when this process has stored rows."""
    _here.setdefault(using, []).append(poke)
    try:
        yield
    finally:
        _here[using].remove(poke)


def tell_finished(connection: BaseDatabaseWrapper, ids: Iterable[UUID | None]) -> None:
    """Part of a transaction: once it is committed, wake who waits for one of these public ids."""
    vendor = vendors.of(connection)
    if not vendor.is_heard(connection):
        return
    for some in in_batches([str(each) for each in ids if each], most=MOST_IDS):
        vendor.notify(connection, FINISHED, ",".join(some))


def can_hear(using: str) -> bool:
    """Tell whether notifications of this database can be heard; asked in the thread that waits."""
    return vendors.of(connections[using]).can_listen(connections[using])


@contextmanager
def heard(using: str, result_id: str, wake: Callable[[], None]) -> Iterator[None]:
    """Within this block, call ``wake`` when the task of this id has finished, or may have.

    Only where :func:`can_hear` says so.

    Args:
        using: the alias of the database that the task is in.
        result_id: the public id, as text.
        wake: called in another thread, perhaps never, perhaps more than once.
    """
    listener = _listeners.setdefault(using, _Listener(using))
    listener.add(result_id, wake)
    try:
        yield
    finally:
        listener.remove(result_id, wake)


class _Listener:
    """One connection that listens for all who wait in this process, as long as somebody does."""

    def __init__(self, using: str) -> None:
        self._using = using
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Callable[[], None]]] = {}
        self._leave: socket.socket | None = None

    def add(self, result_id: str, wake: Callable[[], None]) -> None:
        with self._lock:
            self._waiting.setdefault(result_id, []).append(wake)
            if self._leave is None:
                asked, self._leave = socket.socketpair()
                threading.Thread(
                    target=self._work, args=[asked], name="notifications", daemon=True
                ).start()

    def remove(self, result_id: str, wake: Callable[[], None]) -> None:
        with self._lock:
            self._waiting[result_id].remove(wake)
            if not self._waiting[result_id]:
                del self._waiting[result_id]
            if not self._waiting and self._leave is not None:
                # At once: a connection that lingers would keep a test database from being dropped.
                # And not only closed: a process that was forked meanwhile may have a copy.
                self._leave.shutdown(socket.SHUT_RDWR)
                self._leave.close()
                self._leave = None

    def _work(self, asked: socket.socket) -> None:
        hold_off_signals()
        with asked:
            while not _is_ready(asked, 0):
                try:
                    self._listen(asked)
                except NotSupportedError:
                    _is_ready(asked, None)
                except Exception as error:  # whoever waits goes on to ask
                    logger.debug("Cannot listen for finished tasks: %s", error)
                    _is_ready(asked, BETWEEN_TRIES)

    def _listen(self, asked: socket.socket) -> None:
        connection = apart(self._using)
        with vendors.of(connection).listening(connection, FINISHED) as ear:
            self._wake(None)  # what finished until now was not heard
            while not _is_ready(asked, None, ear):
                for payload in ear.heard():
                    for result_id in payload.split(","):
                        self._wake(result_id)

    def _wake(self, result_id: str | None) -> None:
        with self._lock:
            ids = list(self._waiting) if result_id is None else [result_id]
            calls = [call for each in ids for call in self._waiting.get(each, [])]
        for call in calls:
            with suppress(RuntimeError):  # its event loop has ended
                call()


def _is_ready(asked: socket.socket, timeout: float | None, *others: Any) -> bool:
    """Wait until there is something to read, and tell whether it is from ``asked``."""
    # Not select(), which knows no more than 1,024 files.
    with selectors.DefaultSelector() as selector:
        for each in (asked, *others):
            selector.register(each, selectors.EVENT_READ)
        return any(key.fileobj is asked for key, _ in selector.select(timeout))


_listeners: dict[str, _Listener] = {}

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_listeners.clear)
