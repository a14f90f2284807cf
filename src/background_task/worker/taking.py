"""What taking rows has in common for functions and coroutines."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from django.conf import settings
from django.db import connections

from background_task import logs, vendors
from background_task import tasks as hooks
from background_task.api import aliases
from background_task.api.proxy import DeclaredTask, TaskProxy
from background_task.execution.notices import policy_of
from background_task.execution.runs import must_not_run_twice, runs
from background_task.identity import this_worker
from background_task.models import CompletedTask, Task
from background_task.policies.runs import ONCE, RunPolicy, is_async
from background_task.records import Claim, Mark, Wanted
from background_task.storage import claim, leases, oddities
from background_task.storage.engine import Engine
from background_task.storage.overrides import replaced
from background_task.storage.transient import (
    HURRIED,
    TRANSIENT,
    disconnect,
    outlast,
    persevere,
    reason,
)

if TYPE_CHECKING:
    from background_task.tasks import Tasks

logger = logs.named("background_task.tasks")

Taken = TypeVar("Taken")

# How long close() waits for what is being taken, in seconds.
LONGEST_CLAIM = 2.0

# One thread of this process takes rows at a time, so that what it has locked is what it runs.
_lock = threading.Lock()
# How suspect the rows are that run here and have lost a worker, by database and key.
_suspects: dict[tuple[str, int], int] = {}


def is_alone(tasks: Tasks, using: str | None = None) -> bool:
    """Tell whether no other thread can see the rows, of a database that an option has named."""
    connection = connections[using or tasks.queue_database()]
    return connection.in_atomic_block or vendors.of(connection).is_in_memory(connection)


def reason_against(tasks: Tasks) -> str | None:
    """Return why tasks have to be taken one by one, by the predecessor's steps; None if not so."""
    if is_alone(tasks):
        return "no other thread can see the rows"
    if tasks.elsewhere is not None:
        return "this worker runs inside of another"
    own = (
        replaced(tasks._runner, "run_next_task", "get_task_to_run", "run_task")
        or replaced(tasks, "run_next_task", "run_task")
        or replaced(Task, "lock", "params")
        or (None if tasks._bg_runner is hooks.bg_runner else "tasks._bg_runner")
    )
    return f"{own} is the project's own" if own else None


def mark_of(tasks: Tasks) -> Mark:
    """Return what this process writes into the rows it takes."""
    return Mark(tasks._runner.worker_name, this_worker())


class Names:
    """Which of the registered tasks are functions, and which are coroutines for the event loop.

    Args:
        tasks: the registry.
    """

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._seen: list[tuple[str, Any]] = []
        self._functions: frozenset[str] = frozenset()
        self._coroutines: frozenset[str] = frozenset()
        self._alone: frozenset[str] = frozenset()

    def functions(self) -> frozenset[str]:
        """Return the names of those that run in a thread."""
        self._look()
        return self._functions

    def coroutines(self) -> frozenset[str]:
        """Return the names of those that run on the event loop, and that nobody else is to take."""
        self._look()
        return self._coroutines

    def have_to_be_cut(self, names: Collection[str]) -> bool:
        """Tell whether what is claimed of these may have to be cut by :func:`together`."""
        self._look()
        return not self._alone.isdisjoint(names)

    def _look(self) -> None:
        self._tasks.adopt_declared()
        seen = list(self._tasks._tasks.items())
        if seen == self._seen:
            return
        for_the_loop = {name for name, proxy in seen if _is_for_the_loop(proxy)}
        self._coroutines = frozenset(for_the_loop)
        self._functions = frozenset(self._tasks._tasks) - for_the_loop
        of_backends = [RunPolicy(), *_policies_of_backends()]
        self._alone = frozenset(
            name
            for name, proxy in seen
            if any(must_not_run_twice(policy_of(proxy, None, name).over(p)) for p in of_backends)
        )
        self._seen = seen


def _policies_of_backends() -> Iterator[RunPolicy]:
    """Yield what each entry of ``TASKS`` says about runs; what cannot be asked says nothing."""
    for alias in getattr(settings, "TASKS", None) or {}:
        with suppress(Exception):
            yield getattr(aliases.backend(alias), "policy", ONCE)


def _is_for_the_loop(proxy: Any) -> bool:
    return type(proxy) in (TaskProxy, DeclaredTask) and is_async(proxy.task_function)


def together(tasks: Tasks, claims: Sequence[Claim]) -> int:
    """Return how many of these, from the first, may be one batch.

    Nobody knows which of a batch have run when its process is lost. So what must not run again
    then is taken alone: it has failed, and others that had not begun would have to fail with it.
    """
    is_alone: dict[tuple[str, str | None], bool] = {}
    for count, each in enumerate(claims):
        key = (each.name, each.backend)
        if key not in is_alone:
            is_alone[key] = _must_not_run_twice(tasks, each)
        if is_alone[key]:
            return max(count, 1)
    return len(claims)


def has_to_be_alone(tasks: Tasks, claims: Sequence[Claim]) -> bool:
    """Tell whether this is the one row of a batch by itself, see :func:`together`."""
    return len(claims) == 1 and _must_not_run_twice(tasks, claims[0])


def _must_not_run_twice(tasks: Tasks, claimed: Claim) -> bool:
    proxy = tasks._tasks.get(claimed.name)
    return must_not_run_twice(policy_of(proxy, claimed.backend, claimed.name))


def take(engine: Engine, verb: Callable[[], Taken], otherwise: Taken) -> Taken:
    """Return ``verb()``, which claims rows and keeps them; when the database is away, otherwise."""
    with _lock:
        known = runs.keys(engine.using) if _suspects else set()
        for using, key in list(_suspects):
            if using == engine.using and key not in known:  # it has ended
                del _suspects[using, key]
        with engine.lock:
            return hooks.unless_unreachable(
                engine.connection, lambda: _over_a_sound_connection(engine, verb), otherwise
            )


def rescued(engine: Engine, wanted: Wanted, most: int, by: Mark) -> list[Claim]:
    """Within :func:`take`: take rows that have lost a worker, as many as there is room for.

    All that runs in this process shares the room, since all of it is lost with it.
    """
    claims = claim.rescued(engine, wanted, most, claim.SUSPECTS - sum(_suspects.values()), by)
    for each in claims:
        _suspects[engine.using, each.pk] = claim.suspicion(each.losses or 0)
    return claims


def settle_late_doubts(engine: Engine) -> None:
    """Look again, for some time after an answer was lost, unless rows are taken in this moment."""
    runs.give_up_left(engine)
    if _lock.acquire(blocking=False):
        try:
            runs.settle_late_doubts(engine)
        finally:
            _lock.release()


def close() -> None:
    """Let nothing be taken any more in this process, which is about to end."""
    _lock.acquire(timeout=LONGEST_CLAIM)


def _over_a_sound_connection(engine: Engine, verb: Callable[[], Taken]) -> Taken:
    try:
        return _without_doubt(engine, verb)
    except TRANSIENT:
        connection = engine.connection
        if connection.in_atomic_block or connection.connection is None or connection.is_usable():
            raise
        # It was lost some time ago. Whoever has told us of work will not do so again.
        disconnect(connection)
        return _without_doubt(engine, verb)


def _without_doubt(engine: Engine, verb: Callable[[], Taken]) -> Taken:
    runs.settle_doubts(engine)
    try:
        return verb()
    except TRANSIENT:
        runs.doubt(engine.using)
        raise


def read(using: str, claims: Sequence[Claim], by: Mark) -> dict[int, Task]:
    """Return the rows of claims by their keys, but for those that are not ours any more.

    One that cannot be read is passed over, and given back at the next claim.
    """
    if not claims:
        return {}
    try:
        return persevere(
            connections[using], "read rows", lambda: leases.rows(using, claims, by), HURRIED
        )
    except claim.ODD as error:
        if len(claims) > 1:
            return {pk: row for each in claims for pk, row in read(using, [each], by).items()}
        oddities.pass_over(claims[0].pk, claims[0].name, f"it cannot be read ({error})")
    except TRANSIENT as error:
        logger.warning(
            "%d rows could not be read and are given back: %s", len(claims), reason(error)
        )
    except Exception:
        logger.exception("%d rows could not be read; they are given back", len(claims))
    runs.doubt(using)
    return {}


def read_again(using: str, claimed: Claim, by: Mark) -> Task | None:
    """Return the row of a task that has run, None if it is not ours any more.

    Raises:
        UnrecordedError: this process is to stop, and the database is away.
        Exception: the row cannot be read.
    """
    try:
        rows = outlast(connections[using], "read a row", lambda: leases.rows(using, [claimed], by))
    except claim.ODD as error:
        oddities.pass_over(claimed.pk, claimed.name, f"it cannot be read ({error})")
        raise
    return rows.get(claimed.pk)


def finished(using: str, rows: Sequence[Task | None]) -> dict[int, CompletedTask]:
    """Return the history of tasks by the keys that their rows had, as far as it can be found."""
    keys = {row.result_id: row.pk for row in rows if row is not None}
    with suppress(Exception):  # whoever has to be told of one looks for it
        found = CompletedTask.objects.using(using).filter(result_id__in=keys)
        return {keys[each.result_id]: each for each in found}
    return {}
