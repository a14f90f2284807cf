"""The lookout finds what may run, for who waits and as seldom as it can."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone
from project.tasks import note
from support import wait_until

from background_task import vendors
from background_task.models import Task
from background_task.records import Wanted
from background_task.states import State
from background_task.storage import workers
from background_task.storage.engine import Engine
from background_task.storage.notifications import BETWEEN_NOTICES, NEW
from background_task.tasks import Tasks
from background_task.worker import lookout as looking
from background_task.worker.budget import Budget
from background_task.worker.functions import Functions
from background_task.worker.lookout import BETWEEN_LOOKS, LEAST_SLEEP, MOMENTS, Lookout
from background_task.worker.options import Queues

pytestmark = pytest.mark.django_db(transaction=True)


class Waiting:
    """Who waits for a task of one name, or of none, or is busy."""

    hears = False

    def __init__(self, name: str, *, is_hungry: bool, is_busy: bool = True) -> None:
        self._wanted = Wanted(frozenset(name.split()))
        self.is_hungry = is_hungry
        self.is_busy = is_busy
        self.looks = self.wakes = 0
        self.looked = 0.0
        self.woken = threading.Event()

    def wanted(self) -> Wanted:
        self.looks += 1
        self.looked = time.monotonic()
        return self._wanted

    def wake(self) -> None:
        self.wakes += 1
        self.woken.set()


class Becoming(Waiting):
    """Who begins to wait in the moment in which somebody asks, and was not told yet that he does.

    ``then`` is called in that moment, once it is set.
    """

    then: Callable[[], None] | None = None

    @property
    def is_hungry(self) -> bool:
        was_hungry = self._is_hungry
        if self.then is not None:
            then, self.then, self._is_hungry = self.then, None, True
            then()
        return was_hungry

    @is_hungry.setter
    def is_hungry(self, value: bool) -> None:
        self._is_hungry = value


class Hindering(Waiting):
    """Who keeps the lookout that asks, once ``goes_on`` is cleared, until it is set."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hinders = threading.Event()
        self.goes_on = threading.Event()
        self.goes_on.set()

    def wanted(self) -> Wanted:
        if not self.goes_on.is_set():
            self.hinders.set()
            self.goes_on.wait(20)
        return super().wanted()


# One; another in case that who has just told of a row does not do so again; and a question.
FIRST_LOOKS = {"sqlite": 1, "postgresql": 2, "mysql": 3}


@contextmanager
def looking_out(*drivers: Waiting, **options: Any) -> Iterator[Lookout]:
    """Look out for these, from when the looks are over with which it begins."""
    options = {"name": "", "queues": "*", "drivers": drivers, "sleep": 120, **options}
    lookout = Lookout("default", **options)
    lookout.start()
    try:
        wait_until(lambda: drivers[0].looks >= FIRST_LOOKS[connection.vendor])
        yield lookout
    finally:
        lookout.stop()


def test_who_begins_to_wait_while_others_are_about_to_be_looked_for_is_looked_for_too() -> None:
    busy = Becoming("project.tasks.note", is_hungry=False)
    other = Waiting("project.tasks.query_async", is_hungry=False)
    with looking_out(busy, other) as lookout:

        def become_hungry() -> None:
            lookout.expect_hunger()
            other.is_hungry = True
            Task.objects.new_task("project.tasks.note", ["unheard"]).save()
            connection.close()  # that of the lookout's thread

        busy.then = become_hungry
        assert busy.woken.wait(20)


def test_after_news_there_is_a_look_for_what_nobody_may_tell_of_whoever_waits() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL tells over a connection")
    busy = Becoming("project.tasks.note", is_hungry=False)
    with looking_out(busy) as lookout:
        busy.then = lookout.expect_hunger
        told = time.monotonic()  # before, since it may be heard at once
        vendors.of(connection).notify(connection, NEW, "")
        wait_until(lambda: busy.looked > told + BETWEEN_NOTICES)


class Late:
    """A watch of SQLite that cannot read yet what the files have told of.

    Args:
        watch: that of the vendor.
        lasts: how long it cannot, in seconds.
    """

    def __init__(self, watch: vendors.Watch, lasts: float) -> None:
        self._watch = watch
        self._lasts = lasts
        self.told = 0.0
        self.asked = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watch, name)

    def has_news(self) -> bool:
        self._watch.has_news()
        self.told = time.monotonic()
        return False

    def may_have_changed(self) -> bool:
        self.asked = time.monotonic()
        return self.asked > self.told + self._lasts


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> list[Late]:
    """Return a list of the watches that there will be, each of which is late."""
    if connection.vendor != "sqlite":
        pytest.skip("the others tell of what can be read")
    monkeypatch.setattr(workers, "BETWEEN_BEATS", 60)  # a beat changes the file, too
    watches: list[Late] = []
    vendor = type(vendors.of(connection))
    watch = vendor.watch

    def watch_late(self: Any, *arguments: Any) -> Late:
        watches.append(Late(watch(self, *arguments), lasts=MOMENTS[-1] / 2))
        return watches[-1]

    monkeypatch.setattr(vendor, "watch", watch_late)
    return watches


def test_the_beats_of_a_heart_make_it_look_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("the others do not tell of them")
    monkeypatch.setattr(workers, "BETWEEN_BEATS", 0.05)
    beats: list[int] = []
    hungry = Waiting("project.tasks.note", is_hungry=True)
    with looking_out(hungry, on_beat=lambda: beats.append(hungry.looks)):
        wait_until(lambda: len(beats) >= 10)
    assert beats[-1] == 1


def test_what_sqlite_tells_of_before_it_can_be_read_is_found(late: list[Late]) -> None:
    hungry = Waiting("project.tasks.note", is_hungry=True)
    with looking_out(hungry):
        note("late")
        assert hungry.woken.wait(20)


def test_what_sqlite_tells_of_before_it_can_be_read_is_found_by_who_begins_to_wait_then(
    late: list[Late],
) -> None:
    busy = Becoming("project.tasks.note", is_hungry=False)
    with looking_out(busy) as lookout:
        busy.then = lookout.expect_hunger
        os.utime(connection.settings_dict["NAME"])
        wait_until(lambda: late[0].told and late[0].asked > late[0].told + MOMENTS[-1] / 2)


def test_who_was_busy_when_others_were_looked_for_is_looked_for_as_soon_as_he_waits() -> None:
    other = Waiting("project.tasks.query_async", is_hungry=True)
    busy = Waiting("project.tasks.note", is_hungry=False)
    with looking_out(other, busy) as lookout:
        Task.objects.new_task("project.tasks.note", ["unheard"]).save()  # which tells nobody
        looks = other.looks
        lookout.poke()
        wait_until(lambda: other.looks > looks)
        busy.is_hungry = True
        lookout.expect_hunger()
        assert busy.woken.wait(20)


def test_who_has_nothing_to_take_makes_nobody_wait_for_a_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("the others tell of rows, so that nobody has to look first")
    monkeypatch.setattr(workers, "BETWEEN_BEATS", 60)
    monkeypatch.setattr(looking, "LONGEST_REST", 60)
    monkeypatch.setattr(looking, "LARGEST_SHARE_OF_TIME", 1e-6)
    hungry = Waiting("project.tasks.note", is_hungry=True)
    without_tasks = Waiting("of.nobody", is_hungry=False, is_busy=False)
    with looking_out(hungry, without_tasks):
        note("told")
        assert hungry.woken.wait(20)


def test_a_row_that_is_due_and_locked_by_somebody_is_looked_for_now_and_then_only() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite locks no row by itself, and MySQL is asked now and then anyway")
    row = Task.objects.new_task("project.tasks.note", ["locked"])
    row.save()
    due = timezone.now()
    Task.objects.filter(pk=row.pk).update(state=State.SCHEDULED, run_at=due)
    hungry = Waiting("project.tasks.note", is_hungry=True)
    lookout = Lookout("default", name="", queues="*", drivers=[hungry], sleep=120)
    try:
        with transaction.atomic():
            Task.objects.select_for_update().get(pk=row.pk)
            lookout.start()
            wait_until(lambda: hungry.looks >= 3)  # when it has begun it looks once more
            looks, began = hungry.looks, hungry.looked
            wait_until(lambda: hungry.looks >= looks + 3)
            assert hungry.looked - began > 2 * BETWEEN_LOOKS
            assert not hungry.woken.is_set()
        assert hungry.woken.wait(20)
    finally:
        lookout.stop()


def test_who_is_to_sleep_for_no_time_looks_now_and_then_only() -> None:
    hungry = Waiting("project.tasks.note", is_hungry=True)
    with looking_out(hungry, sleep=0):
        looks, began = hungry.looks, hungry.looked
        wait_until(lambda: hungry.looks >= looks + 10)
        # Where it has to ask, too, each look comes with a question.
        assert hungry.looked - began > 4 * LEAST_SLEEP


def test_all_of_thousands_that_are_due_at_once_may_run_at_once_though_somebody_is_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(looking, "LONGEST_REST", 60)
    monkeypatch.setattr(looking, "LARGEST_SHARE_OF_TIME", 1e-6)
    due = timezone.now() + timedelta(seconds=1)
    rows = [Task.objects.new_task("project.tasks.note", [n], run_at=due) for n in range(2500)]
    for row in rows:
        row.state = State.SCHEDULED
    Task.objects.bulk_create(rows)
    with looking_out(Waiting("project.tasks.note", is_hungry=False)):
        wait_until(lambda: Task.objects.filter(state=State.READY).count() == len(rows))


def test_where_no_task_is_known_yet_it_is_told_of_those_that_wait() -> None:
    nobodys = Waiting("", is_hungry=True)
    told = threading.Event()
    with looking_out(nobodys, known=set, on_unknown=told.set):
        note("first")
        assert told.wait(20)
    assert Functions(Tasks(), Engine("default"), Queues(), None, Budget()).listen() is None


def test_a_row_that_is_not_taken_is_asked_for_now_and_then_only() -> None:
    if connection.vendor != "mysql":
        pytest.skip("the others need not be asked")
    Task.objects.new_task("project.tasks.note", ["locked"]).save()
    hungry = Waiting("project.tasks.note", is_hungry=True)
    with looking_out(hungry):
        wait_until(lambda: hungry.wakes >= 3)
        wakes, began = hungry.wakes, time.monotonic()
        wait_until(lambda: hungry.wakes >= wakes + 3)
        assert time.monotonic() - began > 2 * BETWEEN_LOOKS


def test_a_row_that_is_moved_to_now_is_found_at_once() -> None:
    if connection.vendor == "postgresql":
        pytest.skip("nobody tells it of what is changed past our functions")
    later = timezone.now() + timedelta(hours=1)
    Task.objects.new_task("project.tasks.note", ["moved"], run_at=later).save()
    hungry = Waiting("project.tasks.note", is_hungry=True)
    with looking_out(hungry):
        Task.objects.update(run_at=timezone.now())
        assert hungry.woken.wait(20)


def test_a_row_without_a_state_that_somebody_has_locked_keeps_no_other_waiting() -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite locks no row by itself")
    Task.objects.new_task("project.tasks.query_async", ["theirs"]).save()
    Task.objects.update(state=None, result_id=None)
    due = timezone.now() + timedelta(seconds=0.5)
    Task.objects.new_task("project.tasks.note", ["ours"], run_at=due).save()
    hungry = Waiting("project.tasks.note", is_hungry=True)
    with transaction.atomic():
        Task.objects.select_for_update().get(state=None)
        with looking_out(hungry):
            assert hungry.woken.wait(20)


lists_open_files = pytest.mark.skipif(
    sys.platform != "linux", reason="open files are listed elsewhere, or nowhere"
)


@lists_open_files
def test_a_lookout_that_has_ended_leaves_no_file_open() -> None:
    opened = []
    for _ in range(2):
        with looking_out(Waiting("project.tasks.note", is_hungry=True)):
            pass
        opened.append(open_files())
    before, after = opened
    assert len(after) == len(before), f"{before} became {after}"


@lists_open_files
def test_a_lookout_that_ends_after_it_was_waited_for_leaves_no_file_open() -> None:
    opened, ended = [], []  # which keeps the collector from closing what they have left
    for _ in range(2):
        hindering = Hindering("project.tasks.note", is_hungry=True)
        with looking_out(hindering) as lookout:
            hindering.goes_on.clear()
            lookout.poke()
            assert hindering.hinders.wait(20)
        assert lookout.is_alive
        ended.append(lookout)
        hindering.goes_on.set()
        wait_until(lambda: not lookout.is_alive)
        opened.append(open_files())
    before, after = opened
    assert len(after) == len(before), f"{before} became {after}"


@lists_open_files
def test_a_lookout_that_could_not_begin_leaves_no_file_open() -> None:
    before = open_files()
    lookout = Lookout("default", name="", queues="*", drivers=[], sleep=120)
    assert len(open_files()) > len(before)
    lookout.stop()
    assert len(open_files()) == len(before)


def open_files() -> list[str]:
    """Return what this process has open, but for the folder by which it is listed."""
    files = Path("/proc/self/fd").iterdir()
    return sorted(str(file.readlink()) for file in files if file.is_symlink())
