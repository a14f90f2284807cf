"""Look at what was enqueued."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from django.db import router

from background_task import _compat, signals
from background_task.api import registry
from background_task.api.proxy import TaskProxy
from background_task.exceptions import ArgumentTypeError
from background_task.models import Task


def assert_enqueued(
    task: Any,
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
    *,
    count: int | None = None,
    queue: str | None = None,
) -> list[Task]:
    """Assert that a task waits; return its rows.

    Args:
        task: a function marked with ``@background`` or ``@task``, or the name of one.
        args: exactly these positional arguments; any when None.
        kwargs: exactly these keyword arguments; any when None.
        count: exactly so many; one at least when None.
        queue: the name of the queue; any when None.

    Raises:
        AssertionError: with a list of what waits instead.
        ArgumentTypeError: ``task`` is none, its arguments are no list and no dict, or ``count`` is
            no number.
    """
    if args is not None and not isinstance(args, list | tuple):
        raise ArgumentTypeError(
            f"args must be a list or tuple of all positional arguments, not {type(args).__name__} "
            f"({args!r:.80})."
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ArgumentTypeError(
            f"kwargs must be a dict, not {type(kwargs).__name__} ({kwargs!r:.80})."
        )
    if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
        raise ArgumentTypeError(
            f"count must be a whole number or None, not {type(count).__name__} ({count!r:.80})."
        )
    rows = _waiting(task, args, kwargs, queue)
    if len(rows) == count or (count is None and rows):
        return rows
    expected = "once at least" if count is None else f"{count} time(s)"
    where = "" if queue is None else f" in the queue {queue!r}"
    raise AssertionError(
        f"{_call(_name(task), args, kwargs)} was expected to be enqueued {expected}{where}, "
        f"but it is {len(rows)} time(s). {_what_waits(_database(task))}{_hint(task)}"
    )


def assert_not_enqueued(
    task: Any, args: Any = None, kwargs: dict[str, Any] | None = None, *, queue: str | None = None
) -> None:
    """Assert that a task does not wait. For the arguments see :func:`assert_enqueued`."""
    assert_enqueued(task, args, kwargs, count=0, queue=queue)


@contextmanager
def captured_tasks() -> Iterator[list[Task]]:
    """Give a list that gets the row of each task that is enqueued within the block."""
    captured: list[Task] = []

    def capture(task: Task, **kwargs: Any) -> None:
        captured.append(task)

    signals.task_created.connect(capture)
    try:
        yield captured
    finally:
        signals.task_created.disconnect(capture)


def _waiting(task: Any, args: Any, kwargs: Any, queue: str | None) -> list[Task]:
    rows = Task.objects.using(_database(task)).filter(task_name=_name(task)).order_by("id")
    if queue is not None:
        rows = rows.filter(queue=queue)
    return [
        row
        for row in rows
        if (args is None or row.params()[0] == _as_stored(list(args)))
        and (kwargs is None or row.params()[1] == _as_stored(kwargs))
    ]


def _database(task: Any) -> str:
    """Return where calls of a task are stored."""
    return getattr(_backend(task), "database", None) or router.db_for_write(Task)


def _backend(task: Any) -> Any:
    """Return the backend of a task of Django's; None for all others."""
    if isinstance(task, str | TaskProxy) or not hasattr(task, "get_backend"):
        return None
    return task.get_backend()


def _name(task: Any) -> str:
    if isinstance(task, str):
        return task
    if isinstance(task, TaskProxy):
        return task.name
    if not hasattr(task, "module_path"):
        raise ArgumentTypeError(
            "task must be a function marked with @background or @task, or the name of one, not "
            f"{type(task).__name__} ({task!r:.80})."
        )
    return registry.name_of(task)


def _as_stored(value: Any) -> Any:
    return json.loads(json.dumps(_compat.normalize_json(value) if _compat.HAS_TASKS else value))


def _hint(task: Any) -> str:
    is_late = getattr(task, "on_commit", None)
    if is_late is None:
        is_late = getattr(_backend(task), "commits_first", False)
    if not is_late:
        return ""
    return (
        "\nIt has on_commit, so it is stored when the transaction of the test would be committed: "
        "call it within self.captureOnCommitCallbacks(execute=True)."
    )


def _call(name: str, args: Any, kwargs: Any) -> str:
    given = [] if args is None else [repr(each) for each in args]
    given += [f"{key}={value!r}" for key, value in (kwargs or {}).items()]
    anything = ["…"] if args is None or kwargs is None else []
    return f"{name}({', '.join(given + anything)})"


def _what_waits(database: str) -> str:
    rows = Task.objects.using(database).order_by("id")[:20]
    lines = [
        f"\n  {_call(row.task_name, *row.params())}"
        + ("" if row.queue is None else f" in the queue {row.queue!r}")
        for row in rows
    ]
    return f"There waits:{''.join(lines)}" if lines else "Nothing waits."
