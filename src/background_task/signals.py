"""The signals of the predecessor, with its senders and arguments, and one of ours.

==================  ===========================  ================================
signal              sender                       arguments
==================  ===========================  ================================
task_created        the runner's class           ``task``
task_started        ``Task``                     none
task_finished       ``Task``                     none (after success and failure)
task_successful     ``Task``                     ``task_id``, ``completed_task``
task_error          the exception's class        ``task``
task_rescheduled    ``Task``                     ``task``
task_failed         ``Task``                     ``task_id``, ``completed_task``
task_cancelled      ``Task``                     ``task_id``, ``completed_task``
==================  ===========================  ================================

``task_successful``, ``task_rescheduled``, and the last two, are sent inside the transaction that
records the outcome: what a receiver writes is kept if, and only if, the outcome is. Work that is
slow or leaves the database belongs in ``transaction.on_commit``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from django.db import DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.dispatch import Signal

from background_task import logs
from background_task.settings import app_settings

logger = logs.named("background_task.signals")

task_created = Signal()
task_error = Signal()
task_rescheduled = Signal()
task_failed = Signal()
task_cancelled = Signal()
task_successful = Signal()
task_started = Signal()
task_finished = Signal()


def announce(
    signal: Signal, sender: Any, *, using: str | Collection[str] = (), **arguments: Any
) -> None:
    """Send ``signal`` so that no receiver can harm what it is told about.

    Exceptions are logged by Django's own dispatcher (logger ``django.dispatch``) and go no
    further. With ``using``, transactions are open on these databases: the receivers run in
    savepoints which are given up when one of them raises, since a failed statement would otherwise
    take the whole transaction with it.
    """
    if not using or not signal.has_listeners(sender):
        _send(signal, sender, arguments)
        return
    aliases = [using] if isinstance(using, str) else using
    with contextlib.suppress(_ReceiverFailedError), contextlib.ExitStack() as stack:
        for alias in aliases:
            stack.enter_context(_kept_open(connections[alias]))
            stack.enter_context(transaction.atomic(using=alias))
        if not _send(signal, sender, arguments):
            raise _ReceiverFailedError
        # A receiver may have caught a database error that still broke the transaction.
        if not all(connections[alias].is_usable() for alias in aliases):
            raise _ReceiverFailedError


def _send(signal: Signal, sender: Any, arguments: dict[str, Any]) -> bool:
    """Send and tell whether no receiver raised; not even ``sys.exit()`` in one ends the worker."""
    try:
        responses = signal.send_robust(sender, **arguments)
    except BaseException:
        logger.exception("A receiver of a signal has called for an exit; the worker goes on")
        return False
    return not any(isinstance(response, Exception) for _, response in responses)


@contextlib.contextmanager
def _kept_open(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Let ``close()`` wait until the transaction is over.

    Projects close connections in receivers, since threads would hoard them. Inside a transaction
    that would give up the transaction, and the outcome of the task with it.
    """
    asked = False

    def close() -> None:
        nonlocal asked
        asked = True

    outer = vars(connection).get("close")  # a receiver may run another task
    vars(connection)["close"] = close
    try:
        yield
    finally:
        del vars(connection)["close"]
        if outer is not None:
            vars(connection)["close"] = outer
        if asked and outer is not None:
            outer()
        elif asked:
            transaction.on_commit(connection.close, using=connection.alias)


class _ReceiverFailedError(DatabaseError):
    """Gives up the savepoint of :func:`announce`; never leaves it."""


def reset_queries(**kwargs: Any) -> None:
    """Forget the queries that DEBUG collects, when tasks run in threads that never end."""
    if app_settings.BACKGROUND_TASK_RUN_ASYNC:
        for connection in connections.all(initialized_only=True):
            connection.queries_log.clear()


def close_old() -> None:
    """Close this thread's connections that are past their lifetime, or broken.

    Django's own function would do so inside a transaction too, as that of a ``TestCase``.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def close_old_connections(**kwargs: Any) -> None:
    """Do so between two tasks, when they run in threads."""
    if app_settings.BACKGROUND_TASK_RUN_ASYNC:
        close_old()


task_started.connect(reset_queries)
task_started.connect(close_old_connections)
task_finished.connect(close_old_connections)


# By this the receiver of task_created is known that runs a task at once, where that is asked for.
EAGER = "background_task.eager"


def is_heard(signal: Signal, sender: Any, *, but_for: Collection[Callable[..., Any] | str]) -> bool:
    """Tell whether anybody listens to ``signal`` beside these receivers.

    Args:
        signal: the signal.
        sender: by whom it would be sent.
        but_for: what does not count: functions that are connected for every sender, or the
            ``dispatch_uid`` of such.
    """
    own = {each if isinstance(each, str) else id(each) for each in but_for}
    # The first part of an entry is what identifies its receiver and its sender.
    others = [entry for entry in signal.receivers if entry[0][0] not in own]
    return bool(others) and signal.has_listeners(sender)
