"""Which task runs here: for code that was not handed the context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any

_current: ContextVar[Callable[[], Any] | None] = ContextVar("background_task", default=None)


def current_task() -> Any:
    """Return the ``TaskContext`` of the task that runs here, in plain and async code; None outside.

    It is what Django passes to a task with ``takes_context=True``: ``task_result`` and ``attempt``.

    Raises:
        ImproperlyConfigured: there is no ``django.tasks``.
    """
    make = _current.get()
    return None if make is None else make()


def enter(make: Callable[[], Any]) -> Token[Callable[[], Any] | None]:
    """Let :func:`current_task` return what ``make`` makes, until :func:`leave`."""
    return _current.set(make)


def leave(token: Token[Callable[[], Any] | None]) -> None:
    """Undo what :func:`enter` has done, which has returned ``token``."""
    _current.reset(token)


@contextmanager
def running(make: Callable[[], Any] | None) -> Iterator[None]:
    """Let :func:`current_task` return what ``make`` makes, within this block."""
    token = _current.set(make)
    try:
        yield
    finally:
        _current.reset(token)
