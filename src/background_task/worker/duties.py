"""What a worker does between tasks: keep the declared chains, and tell of rows nobody can run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db import connections, router

from background_task import logs, signals
from background_task.api import registry, startup
from background_task.models import Task
from background_task.policies.repetition import chain_key
from background_task.storage import chains, readiness
from background_task.storage.engine import Engine
from background_task.storage.transient import PATIENT, TRANSIENT, disconnect, reason

if TYPE_CHECKING:
    from background_task.api.proxy import TaskProxy
    from background_task.tasks import Tasks

logger = logs.named("background_task.tasks")

INTERVAL = 60.0
AFTER_A_FAILURE = 5.0
BETWEEN_LOOKS = 5.0
# While others may be due, rows of unknown names are looked for among so many.
AMONG = 1000
# Of so many unknown names the log is told; where there are more, something else is wrong.
MOST_NAMES = 100


class Duties:
    """Done when the worker starts and once a minute; one that fails stops neither it nor others."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._reported: set[str] = set()
        self._next = 0.0
        self._next_look = 0.0
        self._delays: tuple[float, ...] = PATIENT

    def run_if_due(self) -> None:
        """Do every duty, unless that was done within the last minute."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + INTERVAL
        self._delays = PATIENT
        if self._tasks.queue_database() == router.db_for_write(Task):
            # Chains are where the calls of a project go; a worker of another database has none.
            for attempt in startup.postponed():
                self._try("schedule what a module asked for at import", attempt)
            self.keep_declared_chains()
        self._try("report unknown names", partial(self.report_unknown_names, AMONG))

    def known(self) -> Collection[str] | None:
        """Return the names of which there is nothing to find out; None if there is no end of them.

        They are the parameters of a statement, and databases take only so many.
        """
        if len(self._reported) >= MOST_NAMES:
            return None
        return {*self._tasks._tasks, *self._reported}

    def expect_unknown(self) -> None:
        """Know that a row has another name; safe in any thread."""
        self._next_look = 0.0

    def run_when_idle(self, *, is_told: bool) -> bool:
        """Look whether what waits is declared in a module that nobody has imported yet.

        Where nothing else is due the look is cheap, however many rows wait for their time.

        Args:
            is_told: whether somebody sees to it that :meth:`expect_unknown` is called.

        Returns:
            whether there are tasks now that were not known before.
        """
        if time.monotonic() < self._next_look:
            return False
        self._next_look = math.inf if is_told else time.monotonic() + BETWEEN_LOOKS
        known = len(self._tasks._tasks)
        self._try("report unknown names", self.report_unknown_names)
        return len(self._tasks._tasks) > known

    def _try(self, what: str, duty: Callable[[], object]) -> None:
        try:
            duty()
        except TRANSIENT as error:
            logger.warning("Could not %s; it must wait for the database: %s", what, reason(error))
            disconnect(connections[self._tasks.queue_database()])
            self._delays = ()  # enough patience for this time: tasks are waiting
            self._next = time.monotonic() + AFTER_A_FAILURE
        except Exception:
            logger.exception("Could not %s", what)

    def keep_declared_chains(self) -> None:
        """Make the rows agree with what ``@background(every=…)`` declares in the code."""
        declared = set()
        for proxy in list(self._tasks._tasks.values()):  # another thread may add to it
            if getattr(proxy, "every", 0):
                declared.add(proxy.declared_hash)
                self._try(f"keep the chain of {proxy.name}", partial(self._keep, proxy))
        self._try("end chains that are no longer declared", partial(self._end, declared))

    def _keep(self, proxy: TaskProxy[..., Any]) -> None:
        wanted = proxy.declared_task()
        row, is_new = chains.ensure(
            wanted,
            chain_key(wanted.task_hash),
            replace=partial(_declaration_changed, wanted),
            delays=self._delays,
        )
        if is_new:
            signals.announce(signals.task_created, type(proxy.runner), task=row)

    def _end(self, declared: set[str]) -> None:
        for name in chains.end_undeclared(declared, _is_declared_here):
            logger.info("%s is no longer declared with every=…: its chain has ended.", name)

    def report_unknown_names(self, among: int | None = None) -> None:
        """Warn, once for each name, of due rows whose name no ``tasks.py`` registers.

        Args:
            among: see :func:`readiness.unknown`.
        """
        engine = Engine.on(self._tasks.queue_database())
        for name, count in readiness.unknown(engine, [*self._tasks._tasks], among):
            # Django's tasks may be declared in any module; this imports it. SQLite stores in a
            # column of text whatever it is given.
            if isinstance(name, str) and registry.resolve(name) is not None:
                self._tasks.adopt_declared()
            elif name not in self._reported and len(self._reported) < MOST_NAMES:
                self._reported.add(name)
                if len(self._reported) == MOST_NAMES:
                    logger.warning("Rows of %d unknown names are due; no more are told", MOST_NAMES)
                logger.warning(
                    "%d due row(s) are named %r, which no tasks.py of the installed apps "
                    "registers: they wait until it does. Restore the task, start the worker that "
                    "knows it, or delete the rows.",
                    count,
                    name,
                )


def _declaration_changed(wanted: Task, row: Task) -> bool:
    return (row.queue, row.priority) != (wanted.queue, wanted.priority)


def _is_declared_here(row: Task) -> bool:
    """Tell whether the module that declared ``row`` belongs to an app of this project.

    Another project may keep its tasks in the same database; what it declares is not ours to end.
    """
    try:
        module = json.loads(row.options or "")["declared_in"]
    except (ValueError, TypeError, KeyError):
        return False
    return any(f"{module}.".startswith(f"{config.name}.") for config in apps.get_app_configs())
