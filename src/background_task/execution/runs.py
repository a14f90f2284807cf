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
from datetime import datetime
from types import FrameType
from typing import NamedTuple

from django.db import ProgrammingError, connections

from background_task import logs, vendors
from background_task.identity import this_worker
from background_task.models import Task
from background_task.policies.runs import RunPolicy
from background_task.records import Claim
from background_task.settings import app_settings
from background_task.storage import leases
from background_task.storage.batches import in_batches
from background_task.storage.engine import Engine
from background_task.storage.leases import Lock
from background_task.storage.transient import TRANSIENT, reason
from background_task.utils import hold_off_signals

logger = logs.named("background_task.tasks")

# What the log says of a run that is given up, and of one that has ended in vain, and how.
HANDED_BACK = "Handed back %s, which had not finished"
CUT_OFF = "%s was cut off, and is not run again, since it must not begin twice"
NOT_OURS = "%s %s, but its row was deleted or taken over meanwhile"

LONGEST_INTERVAL = 60.0
# How long one thread waits for what another does with the leases.
LONGEST_WAIT = 1.0
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

    @property
    def kept(self) -> Kept:
        """What is kept of it when it is given up.

        That is nothing if its row is in the history by now, or was not locked by this process: who
        runs a function by hand takes a row as it is.
        """
        if self.task is None or self.task.worker_id not in (None, this_worker()):
            return {}
        lock = Lock.of(self.task)
        if lock.pk is None or lock.locked_by is None:
            return {}
        return {lock: Keeping(str(self.task), self.is_never_again)}

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
    # Whether it is given up since the process was not to wait for it.
    is_cut_off: bool = False


Kept = dict[Lock, Keeping]


class Others(NamedTuple):
    """Runs that are kept together, see :meth:`Runs.keep`."""

    using: str
    keys: Collection[int]
    let_go: Callable[[], None]


class Runs:
    """Every run of this process. A forked child has none."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start afresh, as a forked child must: what its parent runs is not its own."""
        self._runs: dict[int, Run] = {}
        self._others: dict[Callable[[], Kept], Others] = {}
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._freeing = threading.Lock()
        self._begun = threading.Event()
        self._keeper: threading.Thread | None = None
        self._in_doubt: set[str] = set()
        self._doubtful_until: dict[str, float] = {}
        self._left: dict[str, Kept] = defaultdict(dict)
        self._stuck: dict[str, set[Lock]] = defaultdict(set)
        self._renewed: dict[str, datetime] = {}
        self._some_was_cut_off = False

    def begin(self, task: Task | None) -> Run:
        """Count ``task``, which is locked, as running; calling it again changes nothing."""
        if task is None:
            return Run(None)
        using = task.database  # which may ask routers of the project
        with self._lock:
            run = self._runs.setdefault(id(task), Run(task))
            self._expect_renewal(task, self._renewed.get(using))
            self._watch()
        return run

    @staticmethod
    def _expect_renewal(task: Task, renewed: datetime | None) -> None:
        """Let the run be recognised whether or not its lease is renewed at that time."""
        if renewed is not None and task.locked_at is not None and renewed > task.locked_at:
            task.leased_at = renewed

    def end(self, task: Task | None) -> None:
        """Count ``task`` as running no more."""
        with self._lock:
            self._runs.pop(id(task), None)
            if not self._runs and not self._others:
                self._begun.clear()

    def keep(
        self,
        using: str,
        kept: Callable[[], Kept],
        keys: Collection[int],
        let_go: Callable[[], None] = lambda: None,
    ) -> None:
        """Keep runs until :meth:`drop`.

        Args:
            using: the alias of the database.
            kept: tells which of them have not ended.
            keys: of all their rows; how some have ended may not be recorded yet.
            let_go: records that, and gives back what has not begun.
        """
        with self._lock:
            self._others[kept] = Others(using, keys, let_go)
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

    @property
    def is_empty(self) -> bool:
        """Whether nothing runs here."""
        with self._lock:
            return not (self._runs or self._others)

    @property
    def were_cut_off(self) -> bool:
        """Whether something that ran was given up, since the process was not to wait for it."""
        with self._lock:
            left = [each for kept in self._left.values() for each in kept.values()]
        # Of what is about to be handed back nobody knows whether it has just ended.
        return self._some_was_cut_off or any(each.is_cut_off for each in left)

    def note_cut_off(self) -> None:
        """Note that something was."""
        self._some_was_cut_off = True

    def keys(self, using: str) -> set[int]:
        """Return the keys of the rows that this process runs, in one database."""
        own = {run.task.pk for run in self._all() if run.task and run.task.database == using}
        with self._lock:
            others = [each.keys for each in self._others.values() if each.using == using]
        return own.union(*others)

    def of(self, pk: int) -> list[Run]:
        """Return the runs of a row, in whichever database."""
        return [run for run in self._all() if run.task is not None and run.task.pk == pk]

    def give_up(self, engine: Engine, kept: Kept, *, is_cut_off: bool) -> None:
        """Hand rows back; those are left with which that fails.

        Args:
            engine: where.
            kept: the rows.
            is_cut_off: see :meth:`leave`; it is what the log warns of.
        """
        level = logging.WARNING if is_cut_off else logging.DEBUG
        self.leave(engine.using, kept, is_cut_off=is_cut_off)
        for some in in_batches(kept):
            never_again = _never_again(some, kept)
            try:
                ours = leases.hand_back(engine, some, never_again)
            except Exception as error:
                names = ", ".join(sorted({kept[lock].name for lock in some}))
                logger.warning(
                    "%s could not be handed back and stays locked until a worker frees it: %s",
                    names,
                    reason(error),
                )
            else:
                if is_cut_off and ours:
                    self.note_cut_off()
                # Another thread that has freed one of them may be about to note it.
                is_open = is_cut_off and len(ours) < len(some) and not self._wait_for(self._freeing)
                self._forget(
                    engine.using, [each for each in some if each.pk in ours or not is_open]
                )
                for lock in some:
                    if lock.pk in ours:
                        say = CUT_OFF if lock in never_again else HANDED_BACK
                        logger.log(level, say, kept[lock].name)

    def leave(self, using: str, kept: Kept, *, is_cut_off: bool = False) -> None:
        """Leave rows locked, for :meth:`give_up_left` to hand them back as soon as it can.

        They are not forgotten meanwhile: nobody else knows what must not begin twice.

        Args:
            using: the alias of the database.
            kept: the rows.
            is_cut_off: whether they are given up since the process was not to wait for them.
        """
        left = {lock: each._replace(is_cut_off=is_cut_off) for lock, each in kept.items()}
        with self._lock:
            self._left[using].update(left)

    def leave_unrecorded(self, using: str, kept: Kept, why: Exception) -> None:
        """The same with what has run, and whose end cannot be recorded; say so."""
        for each in kept.values():
            logger.warning(
                "%s has run, and how it has ended could not be recorded (%s): %s",
                each.name,
                reason(why),
                "it fails, since it must not begin twice"
                if each.is_never_again
                else "it runs again",
            )
        self.leave(using, kept)

    def leave_to_others(
        self, using: str, run: Task | Claim, what: str, *, may_be_unlocked: bool = True
    ) -> None:
        """Say that a run has ended whose row is not ours any more, and how.

        Args:
            using: the alias of the database.
            run: the row as it was claimed.
            what: how it has ended, for the log.
            may_be_unlocked: whether somebody may have taken the lock off it.
        """
        logger.warning(NOT_OURS, run, what)
        if not may_be_unlocked:
            return
        try:
            leases.lose_unlocked(Engine.on(using), run)
        except Exception as error:
            logger.warning("It cannot be told whether %s is unlocked: %s", run, reason(error))

    def leave_stuck(self, using: str, kept: Kept) -> None:
        """Leave rows locked until ``MAX_RUN_TIME`` is over, when their run counts as lost."""
        with self._lock:
            self._stuck[using].update(kept)

    def _forget(self, using: str, locks: Collection[Lock]) -> None:
        with self._lock:
            for lock in locks:
                self._left[using].pop(lock, None)

    def give_up_left(self, engine: Engine) -> None:
        """Hand back what was left, but for what a transaction holds; in any thread."""
        with self._lock:
            if not self._left[engine.using]:
                return
        with self._freeing:
            with self._lock:
                kept = dict(self._left[engine.using])
            for some in in_batches(kept):
                self._free_left(engine, some, kept)

    def _free_left(self, engine: Engine, some: Sequence[Lock], kept: Kept) -> None:
        held: set[int] = set()
        try:
            freed, held = leases.free_left(engine, some, _never_again(some, kept))
            if any(kept[lock].is_cut_off for lock in some if lock.pk in freed):
                self.note_cut_off()
        except (*TRANSIENT, ProgrammingError):  # the next try may have a better session
            raise
        except Exception:
            logger.exception(
                "%d rows stay locked until MAX_RUN_TIME is over, and count as lost then",
                len(some),
            )
            self.leave_stuck(engine.using, {lock: kept[lock] for lock in some})
            if any(kept[lock].is_cut_off for lock in some):
                self.note_cut_off()
        self._forget(engine.using, [lock for lock in some if lock.pk not in held])

    def doubt(self, using: str, *, lasts: float = LONGEST_DOUBT) -> None:
        """Say that this process may have locked rows which it does not run: an answer was lost.

        Args:
            using: the alias of the database.
            lasts: how long that may still come true, in seconds.
        """
        self._in_doubt.add(using)
        until = max(self._doubtful_until.get(using, 0.0), time.monotonic() + lasts)
        self._doubtful_until[using] = until

    def settle_late_doubts(self, engine: Engine) -> None:
        """Look again, for some time after :meth:`doubt`; in any thread."""
        if time.monotonic() < self._doubtful_until.get(engine.using, 0):
            self._release_forgotten(engine, older_than=LONGEST_BEGIN)

    def settle_doubts(self, engine: Engine) -> None:
        """Unlock the rows that this process has locked and does not run; nobody takes one now."""
        self.give_up_left(engine)
        if engine.using in self._in_doubt:
            self._in_doubt.discard(engine.using)
            try:
                self._release_forgotten(engine)
            except BaseException:
                self._in_doubt.add(engine.using)
                raise

    def _release_forgotten(self, engine: Engine, *, older_than: float = 0) -> None:
        known = self.keys(engine.using)
        with self._lock:
            left = {*self._left[engine.using], *self._stuck[engine.using]}
        leases.release_forgotten(engine, this_worker(), known, left, older_than=older_than)

    def let_go(self) -> None:
        """Let what is kept together be recorded as far as it has ended, and else be given back."""
        with self._lock:
            others = list(self._others.values())
        for each in others:
            try:
                each.let_go()
            except Exception as error:
                logger.warning("What has ended could not be recorded: %s", reason(error))

    def hand_back(self, only: Sequence[Run] | None = None) -> None:
        """Give up whatever runs: the process is about to end without waiting for it.

        What has no thread yet is counted until it gets one, and ends there without beginning.

        Args:
            only: give up these and no others, which nobody is about to begin: nothing to warn of.
        """
        given_up = self._all() if only is None else only
        is_cut_off = only is None
        if is_cut_off:
            for using, kept in self._kept().items():
                self.give_up(Engine.on(using), kept, is_cut_off=True)
        _hand_back(given_up, is_cut_off=is_cut_off)
        for run in only or ():
            self.end(run.task)

    def renew(self) -> None:
        """Renew the lease of everything that runs; a database that is away is tried again later."""
        with self._renewing:
            wanted: dict[str, list[Lock]] = defaultdict(list)
            over: set[Lock] = set()
            for run in self._all():
                if run.task is not None and run.is_over:
                    over.update(run.kept)
                elif run.task is not None:
                    wanted[run.task.database].extend(run.kept)
            for using, kept in self._kept().items():
                wanted[using].extend(lock for lock in kept if lock not in over)
            for using, locks in wanted.items():
                for some in in_batches(locks):
                    self._renew(using, some)

    def _renew(self, using: str, locks: Sequence[Lock]) -> None:
        try:
            now = vendors.now(using)
            # Before the statement: when its answer is lost, the run is recognised either way.
            with self._lock:
                self._renewed[using] = now
                for run in self._runs.values():
                    if run.task is not None and run.task.database == using:
                        self._expect_renewal(run.task, now)
            leases.renew(Engine.on(using), locks, now)
        except Exception as error:
            logger.warning("%d lease(s) could not be renewed: %s", len(locks), reason(error))

    def wait_for_renewal(self) -> None:
        """Wait until no lease is being renewed, but not for long."""
        self._wait_for(self._renewing)

    @staticmethod
    def _wait_for(lock: threading.Lock) -> bool:
        """Wait until nobody holds it, but not for long; tells whether that is so."""
        if is_free := lock.acquire(timeout=LONGEST_WAIT):
            lock.release()
        return is_free

    def _all(self) -> list[Run]:
        with self._lock:
            return list(self._runs.values())

    def _kept(self) -> dict[str, Kept]:
        with self._lock:
            others = list(self._others.items())
        found: dict[str, Kept] = defaultdict(dict)
        for kept, each in others:
            found[each.using].update(kept())
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


def _never_again(some: Sequence[Lock], kept: Kept) -> list[Lock]:
    return [lock for lock in some if kept[lock].is_never_again]


def _hand_back(given_up: Sequence[Run], *, is_cut_off: bool = True) -> None:
    by_database: dict[str, Kept] = defaultdict(dict)
    for run in given_up:
        if run.task is not None:
            # Before it ends since it is given up.
            runs.leave(run.task.database, run.kept, is_cut_off=is_cut_off)
            run.is_over = run.is_given_up = True
            kept = run.kept  # it may have begun before that
            runs.leave(run.task.database, kept, is_cut_off=is_cut_off)
            by_database[run.task.database].update(kept)
    runs.wait_for_renewal()
    for using, kept in by_database.items():
        runs.give_up(Engine.on(using), kept, is_cut_off=is_cut_off)
    for run in given_up:
        if run.cancel is not None:
            run.cancel()


runs = Runs()

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=runs.forget)
