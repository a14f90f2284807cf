"""With ``atomic=True`` what a task writes, and its success, are one transaction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, OperationalError, connection, transaction
from project import jobs
from project.models import Note

import background_task
from background_task import background, signals, vendors
from background_task._compat import InvalidTask
from background_task.exceptions import ArgumentValueError
from background_task.execution.runs import runs
from background_task.models import CompletedTask, Task
from background_task.states import State
from background_task.storage import finish
from background_task.tasks import tasks

pytestmark = pytest.mark.django_db(transaction=True)


def declared(body: Callable[[], Any], **options: Any) -> Any:
    proxy: Any = background("atomic", atomic=True, **options)(body)
    return proxy


def texts() -> list[str]:
    return list(Note.objects.order_by("pk").values_list("text", flat=True))


def test_the_body_runs_in_a_transaction_of_its_own() -> None:
    def body() -> None:
        Note.objects.create(text=str(connection.in_atomic_block))
        assert len(connection.atomic_blocks) == 1

    declared(body)()
    assert tasks.run_next_task()
    assert texts() == ["True"]
    assert CompletedTask.objects.succeeded().count() == 1


def test_what_a_failed_body_has_written_is_undone_and_the_failure_is_recorded() -> None:
    def body() -> None:
        Note.objects.create(text="undone")
        raise LookupError("on purpose")

    declared(body)()
    assert tasks.run_next_task()
    assert texts() == []
    row = Task.objects.get()
    assert (row.attempts, row.locked_by) == (1, None)
    assert "LookupError" in row.last_error


def test_what_the_body_has_written_goes_with_the_success_that_cannot_be_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: Task) -> None:
        raise RuntimeError("no history today")

    monkeypatch.setattr(Task, "create_completed_task", refuse)
    declared(lambda: Note.objects.create(text="undone") and None)()
    assert tasks.run_next_task()
    assert texts() == []
    assert "no history today" in Task.objects.get().last_error


def test_a_run_whose_row_was_taken_over_leaves_nothing_behind() -> None:
    def body() -> None:
        Note.objects.create(text="undone")
        Task.objects.all().release()

    declared(body)()
    assert tasks.run_next_task()
    assert texts() == []
    assert not CompletedTask.objects.exists()
    row = Task.objects.get()
    assert (row.attempts, row.last_error) == (0, "")


def test_receivers_of_the_success_write_in_the_same_transaction() -> None:
    def receive(**kwargs: Any) -> None:
        Note.objects.create(text="received")

    def body() -> None:
        Note.objects.create(text="written")
        transaction.on_commit(lambda: Note.objects.create(text="committed") and None)

    signals.task_successful.connect(receive)
    try:
        declared(body)()
        assert tasks.run_next_task()
    finally:
        signals.task_successful.disconnect(receive)
    assert texts() == ["written", "received", "committed"]


@pytest.fixture
def refuse_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Let the first success that is to be recorded be refused, by this error."""

    def refuse(error: Exception) -> None:
        left, succeed = [error], finish.succeed

        def once(*args: Any) -> Any:
            if left:
                raise left.pop()
            return succeed(*args)

        monkeypatch.setattr(finish, "succeed", once)

    return refuse


def test_a_deadlock_at_the_end_lets_it_run_again(
    refuse_once: Callable[[Exception], None],
) -> None:
    refuse_once(OperationalError("deadlock detected"))
    runs = []

    def body() -> None:
        runs.append(Note.objects.create(text=f"run {len(runs) + 1}"))

    declared(body)()
    assert tasks.run_next_task()
    assert texts() == ["run 2"], "what the first has written is undone"
    assert CompletedTask.objects.get().attempts == 1


@pytest.mark.parametrize("error", [OperationalError("deadlock detected"), LookupError("a hook")])
def test_what_must_not_begin_twice_has_failed_when_it_cannot_be_committed(
    refuse_once: Callable[[Exception], None], error: Exception
) -> None:
    refuse_once(error)
    runs = []

    def body() -> None:
        runs.append(Note.objects.create(text="written"))

    declared(body, on_worker_loss="fail")()
    assert tasks.run_next_task()
    assert len(runs) == 1
    assert texts() == []
    done = CompletedTask.objects.get()
    assert done.state == State.FAILED
    assert "could not be committed" in done.last_error


@pytest.fixture
def lose_answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the connection break so many times after a COMMIT, before its answer is there."""

    def lose(count: int) -> None:
        left = [None] * count
        commit = connection.commit

        def commit_unheard() -> None:
            commit()
            if left:
                left.pop()
                connection.connection.close()
                raise OperationalError("the answer is lost")

        monkeypatch.setattr(connection, "commit", commit_unheard)

    return lose


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_committed_stays_the_only_effect_though_the_answer_is_lost(
    lose_answers: Callable[[int], None], count: int
) -> None:
    def body() -> None:
        lose_answers(count)
        Note.objects.create(text="written")

    declared(body)()
    assert tasks.run_next_task()
    assert texts() == ["written"]
    assert CompletedTask.objects.get().state == State.SUCCESSFUL


def test_a_commit_that_is_seen_only_when_the_body_has_run_again_stays_the_only_effect(
    lose_answers: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, looks = finish.recorded, []

    def look(task: Task) -> CompletedTask | None:
        looks.append(task)
        return None if len(looks) == 1 else recorded(task)

    monkeypatch.setattr(finish, "recorded", look)

    def body() -> None:
        if not looks:
            lose_answers(1)
        Note.objects.create(text="written")

    declared(body)()
    assert tasks.run_next_task()
    assert len(looks) == 2
    assert texts() == ["written"]
    assert CompletedTask.objects.get().state == State.SUCCESSFUL


def test_a_database_error_of_the_body_is_its_failure() -> None:
    runs = []

    def body() -> None:
        runs.append(1)
        raise OperationalError("another database is away")

    declared(body)()
    assert tasks.run_next_task()
    assert len(runs) == 1
    assert Task.objects.get().attempts == 1


@pytest.mark.parametrize("times", [1, 3])
def test_a_body_is_not_charged_with_a_transaction_that_could_not_begin(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    begin_write, left = vendors.begin_write, [None] * times

    def refuse(alias: str) -> None:
        if left:
            left.pop()
            raise OperationalError("the database is locked")
        begin_write(alias)

    def body() -> None:
        Note.objects.create(text="written")

    declared(body, max_attempts=1, on_worker_loss="fail")()
    monkeypatch.setattr(vendors, "begin_write", refuse)
    assert tasks.run_next_task()
    assert texts() == ["written"]
    assert CompletedTask.objects.get().attempts == 1


@pytest.mark.parametrize("on_worker_loss", ["retry", "fail"])
@pytest.mark.parametrize(
    "how",
    ["broken", "open", "closed", "ended", "replaced", "by the driver", "swallowed", "exchanged"],
)
def test_a_body_that_breaks_its_transaction_has_failed(
    how: str, vendor: str, on_worker_loss: str
) -> None:
    if how == "swallowed" and vendor != "postgresql":
        pytest.skip("only PostgreSQL breaks a transaction for an error")
    begun = []

    def body() -> None:
        begun.append(1)
        Note.objects.create(text="undone")
        if how == "open":
            transaction.atomic().__enter__()
        elif how == "closed":
            connection.close()
        elif how == "ended":
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK")
        elif how == "replaced":
            with connection.cursor() as cursor:
                cursor.execute("ROLLBACK")
                cursor.execute("BEGIN")
        elif how == "by the driver":
            connection.connection.rollback()
            Note.objects.exists()
        elif how == "swallowed":
            with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
                cursor.execute("SELECT * FROM there_is_no_such_table")
        elif how == "exchanged":
            connection.connection.close()
            connection.connection = None
        else:
            transaction.set_rollback(True)

    declared(body, on_worker_loss=on_worker_loss)()
    assert tasks.run_next_task()
    assert len(begun) == 1
    assert texts() == []
    assert Task.objects.get().attempts == 1
    assert not connection.in_atomic_block
    assert not CompletedTask.objects.exists()


def test_the_body_may_choose_the_isolation_of_its_transaction(vendor: str) -> None:
    if vendor != "postgresql":
        pytest.skip("the others let it be chosen before a transaction only")

    def body() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        Note.objects.create(text="written")

    declared(body)()
    assert tasks.run_next_task()
    assert CompletedTask.objects.get().state == State.SUCCESSFUL


def test_a_body_that_swallows_an_error_in_a_test_of_a_project_undoes_only_its_own() -> None:
    def body() -> None:
        Note.objects.create(text="undone")
        with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
            cursor.execute("SELECT * FROM there_is_no_such_table")
        Note.objects.create(text="undone, too")

    with transaction.atomic():
        Note.objects.create(text="before")
        declared(body)()
        tasks.run_next_task()
        Note.objects.create(text="after")
        assert connection.in_atomic_block
    assert {"before", "after"} <= set(texts())


def test_an_error_that_the_body_has_caught_in_a_savepoint_does_no_harm() -> None:
    def body() -> None:
        first = Note.objects.create(text="kept")
        with contextlib.suppress(IntegrityError), transaction.atomic():
            Note.objects.create(pk=first.pk, text="undone")

    declared(body)()
    assert tasks.run_next_task()
    assert texts() == ["kept"]
    assert CompletedTask.objects.succeeded().exists()


def test_the_next_of_a_chain_is_stored_in_the_same_transaction() -> None:
    declared(lambda: Note.objects.create(text="again") and None)(repeat=60)
    assert tasks.run_next_task()
    assert Task.objects.get().repeat == 60


def test_an_async_function_cannot_be_atomic() -> None:
    async def body() -> None: ...

    with pytest.raises(ArgumentValueError, match="atomic=True is for plain functions only"):
        declared(body)
    with pytest.raises(ArgumentValueError, match="atomic=True is for plain functions only"):
        background_task.task(atomic=True)(jobs.add_async.func)


def test_a_task_of_djangos_door_may_be_atomic_too() -> None:
    task = background_task.task(atomic=True)(jobs.add.func)
    result = task.enqueue(1, 2)
    assert tasks.run_next_task()
    result.refresh()
    assert result.return_value == 3


def test_the_options_of_a_backend_may_say_so_for_all_but_async_tasks(settings: Any) -> None:
    settings.TASKS = {
        "default": {
            "BACKEND": "background_task.backends.DatabaseBackend",
            "OPTIONS": {"ATOMIC": True},
        }
    }
    jobs.writes_and_raises.enqueue("undone")
    assert tasks.run_next_task()
    assert texts() == []
    assert CompletedTask.objects.failed().count() == 1
    with pytest.raises(InvalidTask, match="say atomic=False"):
        jobs.add_async.enqueue(1, 2)


def test_a_batch_of_them_is_run_by_the_worker(worker: Callable[..., Any]) -> None:
    for number in range(20):
        task = Task.objects.new_task("project.tasks.write_atomically", [f"task {number}"])
        task.save()
    child = worker("--burst")
    assert child.wait() == 0, child.text()
    assert CompletedTask.objects.succeeded().count() == 20
    assert sorted(texts()) == sorted(f"task {number} in a transaction" for number in range(20))


@pytest.mark.parametrize("on_worker_loss", ["retry", "fail"])
def test_errors_at_the_commit_are_its_failure(vendor: str, on_worker_loss: str) -> None:
    if vendor == "mysql":
        pytest.skip("MySQL defers no constraint")
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE deferring (id integer PRIMARY KEY, note_id bigint REFERENCES "
            "project_note (id) DEFERRABLE INITIALLY DEFERRED)"
        )

    def body() -> None:
        Note.objects.create(text="undone")
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO deferring VALUES (1, 4711)")

    try:
        declared(body, on_worker_loss=on_worker_loss)()
        with contextlib.suppress(DatabaseError):
            assert tasks.run_next_task()
        assert texts() == []
        row = Task.objects.get()
        assert row.attempts == 1
        assert "IntegrityError" in row.last_error
        assert not CompletedTask.objects.exists()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE deferring")


def test_a_body_whose_row_was_handed_back_meanwhile_does_not_begin_again() -> None:
    begun = []

    def body() -> None:
        begun.append(1)
        runs.hand_back()
        raise OperationalError("a connection was cut")

    declared(body)()
    assert tasks.run_next_task()
    assert len(begun) == 1
