"""An idle worker takes a task at once, whoever stored it, however rarely it looks by itself."""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.backends.signals import connection_created
from django.utils import timezone
from notes import noted
from project.models import Note
from project.tasks import note
from support import Child, wait_until

from background_task import vendors
from background_task._compat import HAS_TASKS
from background_task.models import CompletedTask, Task, Worker
from background_task.records import Wanted
from background_task.states import State
from background_task.storage import workers
from background_task.storage.engine import Engine
from background_task.storage.notifications import BETWEEN_NOTICES, NEW
from background_task.worker import lookout as looking
from background_task.worker.lookout import BETWEEN_LOOKS, MOMENTS, Lookout

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def idle(command: Callable[..., Child]) -> Callable[..., Child]:
    """Start a worker that would look after two minutes, and wait until it has nothing to do."""

    def start(*arguments: str, **environment: str) -> Child:
        Task.objects.new_task("project.tasks.note", ["awake"]).save()
        child = command("process_tasks", "--sleep", "120", *arguments, **environment)
        wait_until(CompletedTask.objects.exists)
        return child

    return start


STORE = "from project.tasks import note, query_async; "


@pytest.mark.parametrize("name", ["note", "query_async"])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_task_of_another_process_is_taken_at_once(
    command: Callable[..., Child], idle: Callable[..., Child], name: str, threads: str
) -> None:
    idle("--threads", threads)
    for number in range(5):
        command("shell", "-v0", "-c", f"{STORE}{name}('{number}')").wait()
        wait_until(noted(str(number)))


def test_a_task_is_taken_as_soon_as_it_is_due(
    command: Callable[..., Child], idle: Callable[..., Child]
) -> None:
    idle()
    command("shell", "-v0", "-c", f"{STORE}note('later', schedule=2)").wait()
    row = Task.objects.get()
    wait_until(noted("later"))
    assert timezone.now() >= row.run_at


def test_a_task_is_taken_when_the_transaction_that_stored_it_commits(
    command: Callable[..., Child], idle: Callable[..., Child]
) -> None:
    idle()
    code = (
        "import time; from django.db import transaction; "
        "from project.models import Note; from project.tasks import note\n"
        "with transaction.atomic():\n"
        "    note('inside')\n"
        "    time.sleep(0.5)\n"
        "    Note.objects.create(text='stored')\n"
    )
    command("shell", "-v0", "-c", code).wait()
    wait_until(noted("inside"))
    order = list(Note.objects.order_by("pk").values_list("text", flat=True))
    assert order == ["awake", "stored", "inside"]


def test_many_that_are_stored_one_after_the_other_are_all_taken(
    command: Callable[..., Child], idle: Callable[..., Child]
) -> None:
    idle("--processes", "2")
    command("shell", "-v0", "-c", f"{STORE}[note(str(number)) for number in range(200)]").wait()
    wait_until(lambda: CompletedTask.objects.count() == 201)
    assert Worker.objects.count() == 3


@pytest.mark.parametrize("name", ["note", "query_async"])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_repetition_is_taken_as_soon_as_it_is_due(
    command: Callable[..., Child], idle: Callable[..., Child], name: str, threads: str
) -> None:
    idle("--threads", threads)
    command("shell", "-v0", "-c", f"{STORE}{name}('again', repeat=1)").wait()
    wait_until(lambda: Note.objects.filter(text="again").count() >= 4)


@pytest.mark.parametrize("name", ["fail", "fail_async"])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_task_is_tried_again_as_soon_as_it_is_due(
    command: Callable[..., Child], idle: Callable[..., Child], name: str, threads: str
) -> None:
    idle("--threads", threads)
    command("shell", "-v0", "-c", f"from project.tasks import *; {name}('again')").wait()
    wait_until(lambda: Note.objects.filter(text="again").count() >= 4)


def test_what_waits_behind_a_long_function_is_taken_by_threads_that_have_nothing_to_do(
    command: Callable[..., Child], idle: Callable[..., Child]
) -> None:
    idle("--threads", "4")
    store = "[nothing() for _ in range(200)]"  # by which they learn that it is worth many at once
    command("shell", "-v0", "-c", f"from project.tasks import *; {store}").wait()
    wait_until(lambda: not Task.objects.exists())
    store = "transaction.atomic()(lambda: [slow(str(number), 60) for number in range(4)])()"
    command("shell", "-v0", "-c", f"from project.tasks import *; {store}").wait()
    wait_until(lambda: Note.objects.filter(text__endswith="begins").count() == 4)


def test_tasks_that_have_lost_their_worker_are_taken_by_all_threads_that_have_nothing_to_do(
    command: Callable[..., Child], idle: Callable[..., Child]
) -> None:
    idle("--threads", "6")
    store = "from project.tasks import *; [nothing() for _ in range(200)]"
    command("shell", "-v0", "-c", store).wait()
    wait_until(lambda: not Task.objects.exists())
    rows = [Task.objects.new_task("project.tasks.slow", [str(n), 60]) for n in range(6)]
    for row in rows:
        row.losses = 1
    Task.objects.bulk_create(rows)
    command("shell", "-v0", "-c", f"{STORE}note('told')").wait()
    wait_until(lambda: Note.objects.filter(text__endswith="begins").count() == 6)


def test_async_tasks_that_must_not_run_twice_begin_one_after_the_other_without_a_pause(
    command: Callable[..., Child], idle: Callable[..., Child]
) -> None:
    idle()
    store = "transaction.atomic()(lambda: [stay_once_async(str(n)) for n in range(8)])()"
    command("shell", "-v0", "-c", f"from project.tasks import *; {store}").wait()
    wait_until(lambda: Note.objects.filter(text__endswith="begins").count() == 8)


def test_a_worker_that_is_to_run_so_many_tasks_takes_what_is_due_at_once(
    worker: Callable[..., Child],
) -> None:
    for part in range(4):
        rows = [Task.objects.new_task("project.tasks.note", [f"{part} {n}"]) for n in range(8)]
        Task.objects.bulk_create(rows)
        child = worker("--max-tasks", "100", "--sleep", "60")
        wait_until(lambda: not Task.objects.exists())
        child.end()


def test_a_row_that_the_predecessors_code_has_stored_is_taken_too(
    idle: Callable[..., Child],
) -> None:
    idle("--sleep", "0.2")  # nobody tells of it
    row = Task.objects.new_task("project.tasks.note", ["theirs"])
    Task.objects.bulk_create([row])
    wait_until(noted("theirs"))


@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_task_of_a_module_that_nobody_has_imported_yet_is_taken(
    idle: Callable[..., Child], threads: str
) -> None:
    if not HAS_TASKS:
        pytest.skip("there is no django.tasks")
    idle("--sleep", "0.5", "--threads", threads)
    for name in ("add", "add_async"):
        Task.objects.new_task(f"project.jobs.{name}", [1, 2]).save()
    wait_until(lambda: CompletedTask.objects.succeeded().count() == 3)


def test_an_idle_worker_asks_postgresql_less_than_once_a_second() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("of the others it is the time on a core that counts")
    asked: list[float] = []

    def note(execute: Callable[..., Any], *arguments: Any) -> Any:
        asked.append(time.monotonic())
        return execute(*arguments)

    def listen(connection: Any, **kwargs: Any) -> None:
        connection.execute_wrappers.append(note)

    connection_created.connect(listen)
    try:
        call_command("process_tasks", duration=14)
    finally:
        connection_created.disconnect(listen)
    settled, end = asked[0] + 3, asked[-1] - 1
    idle = [when for when in asked if settled < when < end]
    assert 3 < len(idle) < end - settled


def test_a_connection_that_takes_tasks_hears_of_new_ones_until_its_next_statement() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL tells over a connection")
    engine = Engine("default")
    assert engine.listen(NEW) is None, "it is not connected yet"
    engine.fetch("SELECT 1")
    file = engine.listen(NEW)
    try:
        with selectors.DefaultSelector() as selector:
            assert file is not None
            selector.register(file, selectors.EVENT_READ)
            assert not selector.select(0)
            engine.vendor.notify(connection, NEW, "")
            assert selector.select(20)
            engine.fetch("SELECT 1")
            assert not selector.select(0)
        assert engine.listen(NEW) == file
        engine.stop_listening(NEW)
        assert engine.fetch("SELECT pg_listening_channels()") == []
    finally:
        engine.close()


def test_what_is_told_with_the_answer_to_a_statement_is_heard_too() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL tells over a connection")
    engine = Engine("default")
    watch = engine.vendor.watch(engine.connection, NEW)
    try:
        assert not watch.was_told
        engine.vendor.notify(connection, NEW, "")
        wait_until(lambda: engine.fetch("SELECT 1") and watch.was_told)
        assert watch.has_news()
        assert not watch.was_told
        assert not watch.has_news()
    finally:
        engine.close()


class Waiting:
    """Who waits for a task of one name, or is busy."""

    hears = False

    def __init__(self, name: str, *, is_hungry: bool, is_busy: bool = True) -> None:
        self._wanted = Wanted(frozenset([name]))
        self.is_hungry = is_hungry
        self.is_busy = is_busy
        self.looks = 0
        self.looked = 0.0
        self.woken = threading.Event()

    def wanted(self) -> Wanted:
        self.looks += 1
        self.looked = time.monotonic()
        return self._wanted

    def wake(self) -> None:
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


@contextmanager
def looking_out(*drivers: Waiting) -> Iterator[Lookout]:
    lookout = Lookout("default", name="", queues="*", drivers=drivers, sleep=120)
    lookout.start()
    try:
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

        wait_until(lambda: busy.looks >= 2)
        busy.then = become_hungry
        assert busy.woken.wait(20)


def test_after_news_there_is_a_look_for_what_nobody_may_tell_of_whoever_waits() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL tells over a connection")
    busy = Becoming("project.tasks.note", is_hungry=False)
    with looking_out(busy) as lookout:
        wait_until(lambda: busy.looks >= 2)
        busy.then = lookout.expect_hunger
        vendors.of(connection).notify(connection, NEW, "")
        told = time.monotonic()
        wait_until(lambda: busy.looked > told + BETWEEN_NOTICES)


def test_what_sqlite_tells_of_before_it_can_be_read_is_found_by_who_begins_to_wait_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("the others tell of what can be read")
    monkeypatch.setattr(workers, "BETWEEN_BEATS", 60)  # a beat changes the file, too
    busy = Becoming("project.tasks.note", is_hungry=False)
    with looking_out(busy) as lookout:
        wait_until(lambda: busy.looks >= 2)
        busy.then = lookout.expect_hunger
        told = time.monotonic()
        os.utime(connection.settings_dict["NAME"])
        wait_until(lambda: busy.looked > told + MOMENTS[-1] / 2)


def test_who_was_busy_when_others_were_looked_for_is_looked_for_as_soon_as_he_waits() -> None:
    other = Waiting("project.tasks.query_async", is_hungry=True)
    busy = Waiting("project.tasks.note", is_hungry=False)
    with looking_out(other, busy) as lookout:
        wait_until(lambda: other.looks >= 2)  # when it has begun it looks once more
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
        wait_until(lambda: hungry.looks >= 2)
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


def test_nothing_piles_up_of_which_a_worker_is_told_while_a_function_runs(
    command: Callable[..., Child], idle: Callable[..., Child]
) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL tells over a connection")

    def has_stopped_to_listen() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT 1 FROM pg_stat_activity "
                "WHERE datname = current_database() AND query LIKE 'UNLISTEN%'"
            )
            return cursor.fetchone() is not None

    idle()
    command("shell", "-v0", "-c", "from project.tasks import slow; slow('long', 60)").wait()
    wait_until(noted("long begins"))
    wait_until(has_stopped_to_listen)
