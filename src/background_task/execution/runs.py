"""The rows that this process runs: kept while they run, given back when it has to leave.

A lock is a lease: when it is older than ``MAX_RUN_TIME``, another worker takes the row. So that
this happens to dead workers only, a thread renews the leases of what runs for long.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from types import FrameType
from typing import NamedTuple

from django.db import connections

from background_task import logs, vendors
from background_task.identity import this_worker
from background_task.models import Task
from background_task.policies.runs import RunPolicy
from background_task.settings import app_settings
from background_task.storage import leases
from background_task.storage.batches import in_batches
from background_task.storage.engine import Engine
from background_task.storage.leases import Lock
from background_task.storage.transient import reason
from background_task.utils import hold_off_signals

logger = logs.named("background_task.tasks")

# What the log says of a run that is given up.
HANDED_BACK = "Handed back %s, which had not finished"
CUT_OFF = "%s was cut off, and is not run again, since it must not begin twice"

LONGEST_INTERVAL = 60.0
LONGEST_RENEWAL = 1.0
# How long the server may take to see through what it was asked over a connection that is lost.
LONGEST_DOUBT = 30.0
# After so many seconds a row that was taken is known to those who look after the runs.
LONGEST_BEGIN = 5.0


def must_not_run_twice(policy: RunPolicy) -> bool:
    """Tell whether a task has failed with the first worker that is lost while it runs."""
    return policy.losses_allowed(app_settings.BACKGROUND_TASK_MAX_LOSSES) == 0


class Run:
    """One row while this process runs it; None where a function runs without a row.

    ``cancel`` is what ends it before its time, where something can, and ``reason`` why that was
    done; ``give_up`` records an end that it does not come to, and ``frames`` tells where it stands
    instead. ``has_begun`` says that its body has; ``is_over`` that its outcome is about to be
    written, so its lease is renewed no more; ``is_given_up`` that it has none, since the row was
    handed back.
    """

    def __init__(self, task: Task | None) -> None:
        self.task = task
        self.cancel: Callable[[], None] | None = None
        self.give_up: Callable[[BaseException], None] | None = None
        self.reason: BaseException | None = None
        self.frames: Callable[[], list[FrameType]] = list
        self.has_begun = False
        self.is_over = False
        self.is_given_up = False

    @property
    def is_never_again(self) -> bool:
        """Whether it has begun, and must not do so twice."""
        return self.has_begun and self.task is not None and must_not_run_twice(self.task.policy)

    @property
    def pk(self) -> int | None:
        """The key of the row."""
        return None if self.task is None else self.task.pk

    def end(self) -> None:
        """Begin no renewal any more: the outcome is about to be written.

        One that is on its way is waited for, but not for long: it may itself be waiting for what
        this thread has locked in the database.
        """
        self.is_over = True
        runs.wait_for_renewal()

    def hand_back(self) -> None:
        """Give the row up and end what can be ended. It is not an error when that fails."""
        _hand_back([self])


class Keeping(NamedTuple):
    """What is kept of a run that nobody wants to see as a row."""

    name: str
    # Whether it has begun, and must not do so twice.
    is_never_again: bool = False


Kept = dict[Lock, Keeping]


class Runs:
    """Every run of this process. A forked child has none."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start afresh, as a forked child must: what its parent runs is not its own."""
        self._runs: dict[int, Run] = {}
        self._others: dict[Callable[[], Kept], tuple[str, Collection[int]]] = {}
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._begun = threading.Event()
        self._keeper: threading.Thread | None = None
        self._in_doubt: set[str] = set()
        self._doubtful_until: dict[str, float] = {}

    def begin(self, task: Task | None) -> Run:
        """Count ``task``, which is locked, as running; calling it again changes nothing."""
        if task is None:
            return Run(None)
        with self._lock:
            run = self._runs.setdefault(id(task), Run(task))
            self._watch()
        return run

    def end(self, task: Task | None) -> None:
        """Count ``task`` as running no more."""
        with self._lock:
            self._runs.pop(id(task), None)
            if not self._runs and not self._others:
                self._begun.clear()

    def keep(self, using: str, kept: Callable[[], Kept], keys: Collection[int]) -> None:
        """Keep runs until :meth:`drop`.

        Args:
            using: the alias of the database.
            kept: tells which of them have not ended.
            keys: of all their rows; how some have ended may not be recorded yet.
        """
        with self._lock:
            self._others[kept] = using, keys
            self._watch()

    def drop(self, kept: Callable[[], Kept]) -> None:
        """Keep them no more."""
        with self._lock:
            self._others.pop(kept, None)

    def _watch(self) -> None:
        if self._keeper is None or not self._keeper.is_alive():
            self._keeper = threading.Thread(target=self._keep, name="leases", daemon=True)
            self._keeper.start()
        self._begun.set()

    def keys(self, using: str) -> set[int]:
        """Return the keys of the rows that this process runs, in one database."""
        own = {run.task.pk for run in self._all() if run.task and run.task.database == using}
        with self._lock:
            return own.union(*[keys for where, keys in self._others.values() if where == using])

    def of(self, pk: int) -> list[Run]:
        """Return the runs of a row, in whichever database."""
        return [run for run in self._all() if run.task is not None and run.task.pk == pk]

    def doubt(self, using: str, *, lasts: float = LONGEST_DOUBT) -> None:
        """Say that this process may have locked rows which it does not run: an answer was lost.

        Args:
            using: the alias of the database.
            lasts: how long that may still come true, in seconds.
        """
        self._in_doubt.add(using)
        self._doubtful_until[using] = time.monotonic() + lasts

    def settle_late_doubts(self, engine: Engine) -> None:
        """Look again, for some time after :meth:`doubt`; in any thread."""
        if time.monotonic() < self._doubtful_until.get(engine.using, 0):
            leases.release_forgotten(
                engine, this_worker(), self.keys(engine.using), older_than=LONGEST_BEGIN
            )

    def settle_doubts(self, engine: Engine) -> None:
        """Unlock the rows that this process has locked and does not run; nobody takes one now."""
        if engine.using in self._in_doubt:
            leases.release_forgotten(engine, this_worker(), self.keys(engine.using))
            self._in_doubt.discard(engine.using)

    def hand_back(self, only: Sequence[Run] | None = None) -> None:
        """Give up whatever runs: the process is about to end without waiting for it.

        Args:
            only: give up these and no others, which have not begun: nothing to warn of.
        """
        given_up = self._all() if only is None else only
        level = logging.WARNING if only is None else logging.DEBUG
        if only is None:
            for using, kept in self._kept().items():
                _give_up(using, kept, level)
        _hand_back(given_up, level)
        for run in given_up:
            self.end(run.task)

    def renew(self) -> None:
        """Renew the lease of everything that runs; a database that is away is tried again later."""
        with self._renewing:
            wanted: dict[str, list[Lock]] = defaultdict(list)
            tasks: dict[str, list[Task]] = defaultdict(list)
            for using, kept in self._kept().items():
                wanted[using].extend(kept)
            for run in self._all():
                task = run.task
                # One that is run by hand is not locked.
                if task is not None and not run.is_over and task.locked_at is not None:
                    tasks[task.database].append(task)
                    wanted[task.database].append(Lock.of(task))
            for using, locks in wanted.items():
                for some in in_batches(locks):
                    self._renew(using, some, tasks[using])

    @staticmethod
    def _renew(using: str, locks: Sequence[Lock], tasks: Sequence[Task]) -> None:
        try:
            now = vendors.now(using)
            # Before the statement: when its answer is lost, the run is recognised either way.
            for task in tasks:
                task.leased_at = now
            leases.renew(Engine.on(using), locks, now)
        except Exception as error:
            logger.warning("%d lease(s) could not be renewed: %s", len(locks), reason(error))

    def wait_for_renewal(self) -> None:
        """Wait until no lease is being renewed, but not for long."""
        if self._renewing.acquire(timeout=LONGEST_RENEWAL):
            self._renewing.release()

    def _all(self) -> list[Run]:
        with self._lock:
            return list(self._runs.values())

    def _kept(self) -> dict[str, Kept]:
        with self._lock:
            others = list(self._others.items())
        found: dict[str, Kept] = defaultdict(dict)
        for kept, (using, _) in others:
            found[using].update(kept())
        return found

    def _keep(self) -> None:
        hold_off_signals()
        pause = threading.Event()
        while True:
            self._begun.wait()
            pause.wait(min(app_settings.BACKGROUND_TASK_MAX_RUN_TIME / 4, LONGEST_INTERVAL))
            self.renew()
            with suppress(Exception):
                connections.close_all()  # this thread's own


def _hand_back(given_up: Sequence[Run], level: int = logging.WARNING) -> None:
    by_database: dict[str, Kept] = defaultdict(dict)
    for run in given_up:
        run.is_over = run.is_given_up = True
        # One without a key has just been moved to the history.
        if run.task is not None and run.task.pk is not None:
            keeping = Keeping(str(run.task), run.is_never_again)
            by_database[run.task.database][Lock.of(run.task)] = keeping
    runs.wait_for_renewal()
    for using, kept in by_database.items():
        _give_up(using, kept, level)
    for run in given_up:
        if run.cancel is not None:
            run.cancel()


def _give_up(using: str, kept: Kept, level: int) -> None:
    for some in in_batches(kept):
        never_again = [lock for lock in some if kept[lock].is_never_again]
        try:
            ours = leases.hand_back(Engine.on(using), some, never_again)
        except Exception as error:
            names = ", ".join(sorted({kept[lock].name for lock in some}))
            logger.warning(
                "%s could not be handed back and stays locked until another worker frees it: %s",
                names,
                reason(error),
            )
        else:
            for lock in some:
                if lock.pk in ours:
                    say = CUT_OFF if lock in never_again else HANDED_BACK
                    logger.log(level, say, kept[lock].name)


runs = Runs()

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=runs.forget)
