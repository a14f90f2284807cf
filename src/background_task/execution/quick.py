"""The quick way to run a function of which nobody wants to know more than that it ran.

An :class:`Attempt` sends signals, makes a ``TaskResult`` for Django's, and has the row at hand as
an instance. Where nobody listens, that is a hundred times the work of a short function. A
:class:`Plan` is what is left: which function to call, and how to store what it returns.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from background_task import signals
from background_task._compat import HAS_TASKS
from background_task.api import aliases
from background_task.api.proxy import DeclaredTask, TaskProxy
from background_task.execution.notices import policy_of
from background_task.models import Task
from background_task.policies.runs import is_async
from background_task.records import Claim
from background_task.utils import would_log

# They look after threads, in which tasks are run in full.
_OWN = (signals.reset_queries, signals.close_old_connections)


class Plan(NamedTuple):
    """How to run the tasks of one name that came through one door."""

    function: Callable[..., Any]
    # Whether what it returns has to be JSON.
    is_strict: bool
    # How long it may take, in seconds; None is as long as it likes.
    timeout: float | None


class Plans:
    """What can be run the quick way, as things stand: made anew for each batch.

    Args:
        proxies: the registered tasks by name.
    """

    def __init__(self, proxies: dict[str, TaskProxy[..., Any]]) -> None:
        self._proxies = proxies
        self._plans: dict[tuple[str, str | None], Plan | None] = {}
        self._is_watched = any(
            signals.is_heard(signal, Task, but_for=_OWN)
            for signal in (signals.task_started, signals.task_finished)
        )

    def of(self, claim: Claim) -> Plan | None:
        """Return the plan for a row; None where a whole :class:`Attempt` is needed."""
        if claim.losses:
            return None  # whether it may run at all depends on its policy
        key = (claim.name, claim.backend)
        try:
            return self._plans[key]
        except KeyError:
            return self._plans.setdefault(key, self._make(*key))

    def _make(self, name: str, backend: str | None) -> Plan | None:
        proxy = self._proxies.get(name)
        if (
            proxy is None
            or self._is_watched
            or type(proxy) not in (TaskProxy, DeclaredTask)
            or proxy.takes_context
            or is_async(proxy.task_function)
            or (backend is not None and _is_told_of(backend))
        ):
            return None
        policy = policy_of(proxy, backend, name)
        if policy.atomic:
            return None  # it ends in its own transaction
        is_strict = backend is not None and type(proxy) is DeclaredTask
        return Plan(proxy.task_function, is_strict, policy.timeout)


def _is_told_of(alias: str) -> bool:
    """Tell whether somebody listens to Django's signals about tasks of this alias.

    Django itself does, to write its log. That counts only where somebody reads the log.
    """
    if not HAS_TASKS:
        return False
    from background_task._compat import tasks_signals

    try:
        sender = type(aliases.backend(alias))
    except Exception:
        return True  # the Attempt will say what is wrong
    own = (tasks_signals.log_task_started, tasks_signals.log_task_finished)
    for signal in (tasks_signals.task_started, tasks_signals.task_finished):
        if signals.is_heard(signal, sender, but_for=own):
            return True
    return would_log(tasks_signals.logger, logging.INFO)
