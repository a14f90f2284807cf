"""An idle worker takes a task at once, whoever stored it, however rarely it looks by itself."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.backends.signals import connection_created
from django.utils import timezone
from notes import enqueue, noted
from project.models import Note
from support import Child, wait_until

from background_task._compat import HAS_TASKS
from background_task.models import CompletedTask, Task, Worker
from background_task.storage.engine import Engine
from background_task.storage.notifications import NEW
from background_task.tasks import tasks
from background_task.utils import TTW_FAST
from background_task.worker.budget import Budget, Grant
from background_task.worker.coroutines import Coroutines
from background_task.worker.lookout import LEAST_SLEEP
from background_task.worker.options import Options, Queues
from background_task.worker.process import Process

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
        child = worker("--max-tasks", "100", "--sleep", "600")
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


class Pausing:
    """Signals of a project's own, which stop a worker when it has waited often, or never does."""

    time_to_wait = TTW_FAST

    def __init__(self) -> None:
        self.looks = 0
        self.pauses: list[float] = []

    @property
    def kill_now(self) -> bool:
        self.looks += 1
        return len(self.pauses) >= 5 or self.looks >= 1000

    def wait(self, seconds: float, *files: int) -> bool:
        self.pauses.append(seconds)
        time.sleep(seconds)
        return False


@pytest.mark.parametrize(("threads", "is_told"), [(1, True), (4, True), (1, False)])
def test_a_worker_that_is_to_sleep_for_no_time_waits_between_two_looks(
    threads: int, is_told: bool
) -> None:
    signals = Pausing()
    # In a transaction nobody else sees the rows, so nobody tells.
    with nullcontext() if is_told else transaction.atomic():
        Process(tasks, Options.of({"sleep": 0, "threads": threads}), signals).run()
    assert len(signals.pauses) == 5
    assert min(signals.pauses) >= LEAST_SLEEP


class Waking(Budget):
    """A budget of which ``then`` is called, once, when tasks were claimed and none was found."""

    then: Callable[[], None] | None = None

    @contextmanager
    def grant(self, count: int) -> Iterator[Grant]:
        with super().grant(count) as grant:
            yield grant
        if self.then is not None and not grant.taken:
            then, self.then = self.then, None
            then()


def test_who_is_woken_while_he_claims_coroutines_claims_once_more() -> None:
    budget = Waking()
    coroutines = Coroutines(tasks, Queues(), None, 4, budget, on_hunger=lambda: None)

    def store() -> None:
        Task.objects.new_task("project.tasks.query_async", ["late"]).save()
        coroutines.wake()

    budget.then = store
    coroutines.start()
    try:
        wait_until(noted("late"))
    finally:
        coroutines.close()


def test_a_module_that_takes_signals_is_imported_where_it_may_do_so(
    idle: Callable[..., Child], tmp_path: Path
) -> None:
    if not HAS_TASKS:
        pytest.skip("there is no django.tasks")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").touch()
    (tmp_path / "app" / "jobs.py").write_text(
        "import signal\n"
        "from background_task._compat import django_tasks\n"
        "signal.signal(signal.SIGUSR2, signal.SIG_IGN)\n"
        "@django_tasks.task\n"
        "def say(text):\n"
        "    print(text)\n"
    )
    child = idle("--sleep", "0.2", TEST_APPS="app", TEST_PATH=str(tmp_path))
    enqueue("slow", "long", 1.5)  # other threads are not to import it meanwhile
    wait_until(noted("long begins"))
    Task.objects.new_task("app.jobs.say", ["heard"]).save()
    wait_until(lambda: "heard" in child.text())


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
