"""What Django's signals and contexts are told of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from django.db import transaction

from background_task import logs, signals
from background_task._compat import HAS_TASKS
from background_task.api import aliases, registry
from background_task.api.proxy import DeclaredTask
from background_task.exceptions import BackgroundTaskError
from background_task.models import CompletedTask, Task
from background_task.policies.runs import ONCE, RunPolicy, check_seconds
from background_task.storage import lookup

logger = logs.named("background_task.tasks")


def policy_of(proxy: Any, alias: str | None, name: Any) -> RunPolicy:
    """Return what is said about the runs of a task: by itself, then by the options of its backend.

    Args:
        proxy: what stands in for the function.
        alias: through which backend of Django's door the call came; None if through no such.
        name: what a message calls it.
    """
    own: RunPolicy = getattr(proxy, "policy", None) or RunPolicy()
    if alias is None or not isinstance(proxy, DeclaredTask):
        return own
    try:
        return own.over(getattr(aliases.backend(alias), "policy", ONCE))
    except Exception as error:
        logger.error(
            "The backend %r of %s cannot be asked for its retry policy, so the task is tried "
            "once unless it says more itself: %s",
            alias,
            name,
            error,
        )
        return own.over(ONCE)


class Notices:
    """Speaks for one run of a row. Only rows that came through Django's door are announced there.

    Args:
        proxy: what stands in for the function.
        row: the row as it was claimed; None when the function runs without one.
    """

    def __init__(self, proxy: Any, row: Task | None) -> None:
        self._proxy = proxy
        self._row = row
        self._alias = None if row is None or not HAS_TASKS else row.backend

    @cached_property
    def policy(self) -> RunPolicy:
        """What is said about runs: by the task, then by the options of its backend."""
        return policy_of(self._proxy, self._alias, self._row)

    @cached_property
    def context(self) -> Any:
        """The ``TaskContext`` of the run."""
        aliases.require_tasks()
        from background_task._compat import tasks_base

        return tasks_base.TaskContext(task_result=self.running())

    def running(self) -> Any:
        """Return the result as it is while the task runs."""
        aliases.require_tasks()
        from background_task.api import results

        if self._row is None:
            raise BackgroundTaskError(
                "A function that is run by its name, without a row, has no context."
            )
        return results.of_live_row(self._row, self._proxy.definition, lookup.log_of(self._row))

    def announce_start(self) -> None:
        """Send Django's ``task_started``."""
        if self._alias is not None:
            _announce("task_started", self._alias, self._row, lambda: self.context.task_result)

    def announce_end(self, completed: CompletedTask | None = None) -> None:
        """Send Django's ``task_finished``, if the task has finished and not only this attempt.

        After the commit, and where the exception is being handled: error trackers ask for it.

        Args:
            completed: the row of the history, where it is at hand; else it is looked up.
        """
        if self._alias is not None:
            _announce("task_finished", self._alias, self._row, lambda: self._finished(completed))

    def _finished(self, completed: CompletedTask | None) -> Any:
        from background_task.api import results

        if self._row is None or self._row.result_id is None:
            return None
        if completed is not None:
            log = lookup.log_of(completed)
            return results.of_finished_row(completed, self._proxy.definition, log)
        found = lookup.by_result_id(self._row.database, self._row.result_id)
        result = None if found is None else results.of(found, self._proxy.definition)
        return result if result is not None and result.is_finished else None

    def ask_backoff(self, error: BaseException) -> tuple[float | None] | None:
        """Return what the task's ``backoff`` answers; None where it is no callable."""
        backoff = self.policy.backoff
        if not callable(backoff) or self._row is None:
            return None
        try:
            seconds = backoff(error, self.running() if HAS_TASKS else None)
            return (None,) if seconds is None else (check_seconds("What backoff returns", seconds),)
        except BaseException:  # not even sys.exit() in it may lose the failure
            logger.exception("The backoff of %s has failed; it waits as by default", self._row)
            return None


def _announce(name: str, alias: str, row: Any, make: Callable[[], Any]) -> None:
    from background_task._compat import tasks_signals

    signal = getattr(tasks_signals, name)
    try:
        backend = type(aliases.backend(alias))
        result = make() if signal.has_listeners(backend) else None
    except Exception:  # to tell of a run must not harm it
        logger.exception("Receivers of %s could not be told of %s", name, row)
        return
    if result is not None:
        signals.announce(signal, backend, task_result=result)


def tell_of_cancelled(completed_task: CompletedTask, **kwargs: Any) -> None:
    """After the commit, send Django's ``task_finished`` of what was cancelled while it waited.

    Of what ran, its worker does that.
    """
    alias, name = completed_task.backend, completed_task.task_name
    if not HAS_TASKS or alias is None or completed_task.locked_by is not None:
        return
    from background_task.api import results

    def make() -> Any:
        definition = registry.definition(name)
        log = lookup.log_of(completed_task)
        return definition and results.of_finished_row(completed_task, definition, log)

    transaction.on_commit(
        lambda: _announce("task_finished", alias, completed_task, make),
        using=completed_task._state.db,
    )
