"""Where a batch is held that follows on another: behind what the last one has deleted."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.utils import timezone

from background_task.models import Task
from background_task.records import Claim, Wanted
from background_task.states import State
from background_task.storage import claim
from background_task.storage.engine import Engine
from background_task.tasks import Tasks
from background_task.worker import bookmark as bookmarks
from background_task.worker.bookmark import Bookmark
from background_task.worker.budget import Budget
from background_task.worker.functions import Functions
from background_task.worker.options import Queues

pytestmark = pytest.mark.django_db(transaction=True)

WANTED = Wanted(frozenset({"a task"}))


@pytest.fixture
def engine(engine: Engine) -> Engine:
    if not engine.vendor.can_hold:
        pytest.skip("SQLite locks the whole database, so nothing is held")
    return engine


@pytest.fixture
def bookmark(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Bookmark:
    """One that is relied on for as long as a test takes."""
    monkeypatch.setattr(bookmarks, "SHORTEST_USE", 600)
    monkeypatch.setattr(bookmarks, "LONGEST_USE", 600)
    return Bookmark(engine)


@pytest.fixture
def run(engine: Engine, bookmark: Bookmark) -> Callable[[int], list[str]]:
    """Hold so many rows, delete them, and return the arguments of their tasks."""

    def run(most: int) -> list[str]:
        claims: list[Claim] = []
        with engine.transaction():
            claims = bookmark.hold(WANTED, most)
            if len(claims) == most:
                bookmark.put(claims[-1])
            for each in claims:
                engine.run(f"DELETE FROM background_task WHERE id = {each.pk}")
        return [each.params for each in claims]

    return run


def store(*priorities: int) -> list[str]:
    """Store rows that have been due for some seconds; return their arguments, in their order."""
    now = timezone.now() - timedelta(seconds=10)
    rows = []
    for number, priority in enumerate(priorities):
        run_at = now + timedelta(seconds=random.randrange(3))
        row = Task.objects.new_task("a task", [number], run_at=run_at, priority=priority)
        row.state = State.READY
        row.save()
        rows.append(row)
    rows.sort(key=lambda row: (-row.priority, row.run_at, row.pk))
    return [row.task_params for row in rows]


def test_every_row_is_held_once_and_in_order(run: Callable[[int], list[str]]) -> None:
    stored = store(*[random.randrange(4) for _ in range(50)])
    held: list[str] = []
    while some := run(7):
        held += some
    assert held == stored


def test_on_mariadb_a_search_does_not_begin_among_what_was_deleted(
    run: Callable[[int], list[str]], engine: Engine
) -> None:
    if not engine.vendor.wants_a_bookmark(engine.connection):
        pytest.skip("the others do not keep what was deleted in the way")
    first, second, third, fourth = store(0, 0, 0, 0)
    assert run(2) == [first, second]
    (urgent,) = store(5)
    assert run(2) == [third, fourth]
    assert run(2) == [urgent]


def test_what_is_more_urgent_is_held_when_the_bookmark_has_been_relied_on_for_long(
    run: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bookmarks, "LONGEST_USE", 0)
    first, second, third, _ = store(0, 0, 0, 0)
    assert run(2) == [first, second]
    (urgent,) = store(5)
    assert run(2) == [urgent, third]


def test_no_row_stays_locked_that_was_found_behind_the_bookmark_and_is_not_taken(
    engine: Engine, bookmark: Bookmark, run: Callable[[int], list[str]]
) -> None:
    first, second, third = store(0, 0, 0)
    assert run(2) == [first, second]
    urgent = store(5, 5)
    other = Engine("default")
    with engine.transaction():
        assert [each.params for each in bookmark.hold(WANTED, 2)] == urgent
        with other.transaction():
            assert [each.params for each in claim.hold(other, WANTED, 2)] == [third]
    other.close()


def test_what_was_given_back_is_held_when_the_bookmark_was_removed(
    engine: Engine, bookmark: Bookmark, run: Callable[[int], list[str]]
) -> None:
    stored = store(0, 0, 0, 0)
    engine.begin()
    bookmark.put(bookmark.hold(WANTED, 2)[-1])
    engine.roll_back()
    bookmark.remove()
    assert run(2) == stored[:2]


def test_what_waited_behind_a_long_function_is_still_run_in_order(
    engine: Engine, bookmark: Bookmark
) -> None:
    done: list[int] = []
    tasks = Tasks()

    @tasks.background(name="a task")
    def work(number: int) -> None:
        done.append(number)
        time.sleep(0.4 if number == 150 else 0)

    store(*[-number for number in range(300)])
    functions = Functions(tasks, engine, Queues(), None, Budget(), lambda keys: True)
    while functions.run_some():
        pass
    functions.close()
    assert done == list(range(300))


def test_the_bookmark_of_one_queue_counts_in_no_other(
    engine: Engine, bookmark: Bookmark, run: Callable[[int], list[str]]
) -> None:
    store(0, 0)
    Task.objects.update(queue="other")
    with engine.transaction():
        bookmark.put(bookmark.hold(Wanted(WANTED.names, ("other",)), 1)[-1])
    assert len(run(2)) == 2
