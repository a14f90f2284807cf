"""Each known bug of the predecessor, B1 to B21, stays mended; child processes are in processes/.

Every test here fails on django-background-tasks 1.2.8.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection, transaction
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from project.models import Account, Follower, Label

from background_task import background, signals
from background_task.discovery import autodiscover
from background_task.exceptions import TaskModuleError
from background_task.identity import this_worker
from background_task.models import CompletedTask, Task
from background_task.storage import readiness
from background_task.storage.engine import Engine
from background_task.tasks import TaskSchedule, tasks
from background_task.worker.duties import MOST_NAMES, Duties

pytestmark = pytest.mark.django_db(transaction=True)


@contextlib.contextmanager
def connected(signal: Any, receiver: Any) -> Any:
    signal.connect(receiver, weak=False)
    try:
        yield
    finally:
        signal.disconnect(receiver)


def soon(task: Task) -> bool:
    return abs(task.run_at - timezone.now()) < timedelta(seconds=2)


# B1: schedule=0 was taken for "no schedule"


@pytest.mark.parametrize("at_once", [0, 0.0, timedelta(0)])
def test_b1_a_schedule_of_nothing_beats_the_default_of_the_decorator(at_once: Any) -> None:
    @background(schedule=60)
    def task() -> None: ...

    assert soon(task(schedule=at_once))
    assert TaskSchedule.create(at_once).merge(TaskSchedule(60)) == TaskSchedule(at_once)


# B2: sensible values raised late


def test_b2_seconds_may_be_fractions_periods_timedeltas_and_priority_none() -> None:
    @background(schedule={"priority": 3})
    def task() -> None: ...

    row = task(schedule=1.5, repeat=timedelta(hours=1), priority=None)
    assert soon(row)
    assert (row.repeat, row.priority) == (3600, 3)


# B3: one over-long run made two chains


def test_b3_an_overlong_run_that_was_taken_over_leaves_one_chain() -> None:
    runs = []

    @background
    def task() -> None:
        runs.append(1)
        if len(runs) == 1:  # the lock expires, and another worker takes the row and finishes it
            Task.objects.update(locked_at=timezone.now() - timedelta(hours=2))
            assert tasks.run_next_task()

    task(repeat=60)
    assert tasks.run_next_task()
    assert len(runs) == 2
    assert Task.objects.count() == 1
    assert CompletedTask.objects.count() == 1


def test_b3_a_run_that_lost_its_lock_cannot_record_its_failure_either() -> None:
    @background
    def task() -> None:
        Task.objects.get().lock("other") or Task.objects.update(
            locked_by="other", epoch=99, locked_at=timezone.now()
        )
        raise ValueError

    task()
    tasks.run_next_task()
    row = Task.objects.get()
    assert (row.locked_by, row.attempts, row.last_error) == ("other", 0, "")


# B4: a row that was deleted while it ran came back


@pytest.mark.parametrize("fails", [False, True])
def test_b4_a_row_deleted_while_it_runs_stays_deleted(fails: bool) -> None:
    @background
    def task() -> None:
        Task.objects.all().delete()
        if fails:
            raise ValueError

    task(repeat=60)
    assert tasks.run_next_task()
    assert not Task.objects.exists()
    assert not CompletedTask.objects.exists()


# B5: finishing was three commits


@pytest.mark.parametrize("fails", [False, True])
def test_b5_finishing_is_one_transaction(fails: bool, settings: Any) -> None:
    settings.MAX_ATTEMPTS = 1

    @background
    def task() -> None:
        if fails:
            raise ValueError

    task(repeat=60)
    row = Task.objects.get().lock("me")
    commits = []

    def committed(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        result = execute(sql, params, many, context)
        if sql.startswith(("INSERT", "UPDATE", "DELETE")):
            commits.append(not context["connection"].in_atomic_block)
        return result

    with connection.execute_wrapper(committed):
        tasks.run_task(row)
    assert len(commits) >= 3
    assert not any(commits), "a row was written outside the transaction"


def test_b5_when_the_last_step_of_finishing_fails_none_of_it_remains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unplugged(BaseException):
        pass

    @background
    def task() -> None: ...

    def delete(self: Task) -> None:
        raise Unplugged

    task(repeat=60)
    monkeypatch.setattr(Task, "delete", delete)
    tasks.run_next_task()
    assert Task.objects.count() == 1
    assert not CompletedTask.objects.exists()


# B6: a raising receiver undid a finished task, or killed the worker


@pytest.mark.parametrize("name", ["task_started", "task_successful", "task_finished"])
@pytest.mark.parametrize("how", ["raises", "breaks the transaction", "breaks it silently"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_b6_no_receiver_undoes_a_success(name: str, how: str) -> None:
    def receiver(**kwargs: Any) -> None:
        if how == "raises":
            raise ValueError(how)
        with contextlib.suppress(Exception) if "silently" in how else contextlib.nullcontext():
            connection.cursor().execute("SELECT * FROM there_is_no_such_table")

    @background
    def task() -> None: ...

    task(repeat=60)
    with connected(getattr(signals, name), receiver):
        assert tasks.run_next_task()
    assert CompletedTask.objects.get().failed_at is None
    assert Task.objects.get().attempts == 0


@pytest.mark.parametrize(
    ("name", "attempts"), [("task_error", 25), ("task_rescheduled", 25), ("task_failed", 1)]
)
def test_b6_no_receiver_undoes_a_failure(name: str, attempts: int) -> None:
    def receiver(**kwargs: Any) -> None:
        connection.cursor().execute("SELECT * FROM there_is_no_such_table")

    @background
    def task() -> None:
        raise ValueError("the first error")

    task()
    with connected(getattr(signals, name), receiver), override_settings(MAX_ATTEMPTS=attempts):
        assert tasks.run_next_task()
    row: Any = Task.objects.first() or CompletedTask.objects.get()
    assert row.attempts == 1
    assert "the first error" in row.last_error


# B7: run_task(name) swallowed errors, and did not work without arguments


def test_b7_a_run_by_name_without_a_row_logs_its_error(caplog: pytest.LogCaptureFixture) -> None:
    @background("by.name")
    def task() -> None:
        raise ValueError("told")

    tasks.run_task("by.name")
    assert "by.name" in caplog.text
    assert "told" in caplog.text


def test_b7_a_run_by_name_needs_no_arguments() -> None:
    runs = []

    @background("by.name")
    def task() -> None:
        runs.append(1)

    tasks.run_task("by.name")
    assert runs == [1]


# B8: SystemExit and KeyboardInterrupt killed the worker


@pytest.mark.parametrize("error", [SystemExit(2), KeyboardInterrupt(), GeneratorExit()])
def test_b8_whatever_a_task_raises_is_its_failure(error: BaseException) -> None:
    @background
    def task() -> None:
        raise error

    task()
    assert tasks.run_next_task()
    row = Task.objects.get()
    assert (row.attempts, row.locked_by) == (1, None)
    assert type(error).__name__ in row.last_error


# B9, B10, B11: slots of the pool of threads


@override_settings(BACKGROUND_TASK_RUN_ASYNC=True, BACKGROUND_TASK_ASYNC_THREADS=2)
@pytest.mark.parametrize("age", [timedelta(hours=2), timedelta(0)], ids=["expired", "fresh"])
def test_b9_locks_of_other_workers_take_no_slot(age: timedelta) -> None:
    @background
    def task() -> None: ...

    for _ in range(3):
        task()
    Task.objects.update(locked_by="99999999", locked_at=timezone.now() - age)
    task()
    assert Task.objects.find_available()
    assert tasks.run_next_task()
    assert tasks._pool_runner.drain(10)


@override_settings(BACKGROUND_TASK_RUN_ASYNC=True, BACKGROUND_TASK_ASYNC_THREADS=2)
def test_b10_rows_of_unknown_names_do_not_starve_the_others_in_threads() -> None:
    ran = threading.Event()

    @background
    def task() -> None:
        ran.set()

    for number in range(20):
        Task.objects.new_task("of.nobody", [number], priority=10).save()
    task()
    assert tasks.run_next_task()
    assert ran.wait(10)
    assert tasks._pool_runner.drain(10)


@override_settings(BACKGROUND_TASK_RUN_ASYNC=True)
def test_b11_the_end_of_the_duration_waits_for_the_threads() -> None:
    begun, release = threading.Event(), threading.Event()

    @background
    def task() -> None:
        begun.set()
        release.wait(10)

    task()
    threading.Timer(1.5, release.set).start()
    call_command("process_tasks", duration=1, sleep=0.05)
    assert begun.is_set()
    assert CompletedTask.objects.count() == 1


# B12, B13: finding the next task


def test_b12_finding_a_task_reads_a_few_rows_however_deep_the_queue() -> None:
    @background
    def task(number: int) -> None: ...

    for number in range(30):
        task(number)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert tasks._runner.get_task_to_run(tasks)
    reads = [
        query["sql"]
        for query in queries
        if query["sql"].startswith("SELECT") and "ORDER" in query["sql"]
    ]
    assert reads
    assert all("LIMIT" in sql for sql in reads)


def test_b13_a_worker_that_loses_every_candidate_asks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @background
    def task(number: int) -> None: ...

    for number in range(30):
        task(number)
    lock, lost = Task.lock, []

    def contested(self: Task, locked_by: str) -> Task | None:
        if len(lost) < 20:
            lost.append(lock(self, "faster"))
            return None
        return lock(self, locked_by)

    monkeypatch.setattr(Task, "lock", contested)
    assert tasks._runner.get_task_to_run(tasks)


# B14: asking whether a process lives


def test_b14_asking_whether_the_worker_lives_sends_no_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed = []
    monkeypatch.setattr("os.kill", lambda *args: killed.append(args))
    row = Task.objects.new_task("any")
    assert row.locked_by_pid_running() is None
    row.save()
    assert row.lock(tasks._runner.worker_name).locked_by_pid_running() is True
    row.locked_by, row.locked_at = "4194999", timezone.now()  # above the largest pid
    assert row.locked_by_pid_running() is False
    assert killed == []


def test_b14_a_process_of_another_host_is_not_looked_for_on_this_one() -> None:
    row = Task.objects.new_task("any")
    row.locked_by, row.worker_id = "1", "elsewhere:1:abcdef01"  # process 1 lives on every host
    row.locked_at = timezone.now() - timedelta(hours=2)
    assert row.locked_by_pid_running() is False
    row.locked_at = timezone.now()
    assert row.locked_by_pid_running() is True


# B15: discovery


def add_app(tmp_path: Path, name: str, tasks_py: str) -> str:
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "apps.py").write_text(
        f"from django.apps import AppConfig\nclass Own(AppConfig):\n    name = {name!r}\n"
    )
    (package / "tasks.py").write_text(tasks_py)
    return f"{name}.apps.Own"


def test_b15_an_app_named_by_its_config_is_discovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    entry = add_app(
        tmp_path, "by_config", "from background_task import background\n@background\ndef f(): pass"
    )
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, entry]
    autodiscover()
    assert "by_config.tasks.f" in tasks._tasks


@pytest.mark.parametrize(
    "code",
    [
        "import there_is_no_such_module",
        "1 / 0",
        "def broken(:",
        "raise RuntimeError('x')",
        "raise SystemExit(3)",
    ],
)
def test_b15_a_broken_tasks_module_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any, code: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"broken_{abs(hash(code))}"
    entry = add_app(tmp_path, name, f"\n{code}\n")
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, entry]
    with pytest.raises(TaskModuleError) as caught:
        autodiscover()
    assert f"{tmp_path / name / 'tasks.py'}, line 2" in str(caught.value)


def test_b15_a_broken_one_of_an_installed_package_is_logged_and_passed_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sysconfig.get_path", lambda scheme: str(tmp_path))
    entry = add_app(tmp_path, "third_party", "import there_is_no_such_module")
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, entry]
    autodiscover()
    assert "third_party.tasks cannot be imported" in caplog.text
    settings.BACKGROUND_TASK_STRICT_DISCOVERY = True
    with pytest.raises(TaskModuleError):
        autodiscover()


# B16: rows of unknown names


def test_b16_rows_of_unknown_names_are_reported_once_and_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Task.objects.new_task("of.nobody").save()
    duties = Duties(tasks)
    duties.report_unknown_names()
    duties.report_unknown_names()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "of.nobody" in warnings[0].getMessage()
    assert not tasks.run_next_task()
    assert Task.objects.get().locked_by is None


def test_b16_a_row_that_names_a_script_ends_nobody_who_imports_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Task.objects.new_task("project.script.function").save()
    Task.objects.new_task("of.nobody").save()
    Duties(tasks).report_unknown_names()
    assert "project.script cannot be imported: its tasks wait until it is mended." in caplog.text
    assert "of.nobody" in caplog.text


def test_b16_a_name_that_is_no_text_is_reported_like_any_other(
    caplog: pytest.LogCaptureFixture, vendor: str
) -> None:
    if vendor != "sqlite":
        pytest.skip("only SQLite stores bytes in a column of text")
    Task.objects.new_task("of.nobody").save()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE background_task SET task_name = x'ff'")
    duties = Duties(tasks)
    duties.report_unknown_names()
    assert "1 due row(s) are named b'\\xff'" in caplog.text
    assert b"\xff" in duties.known()


def test_b16_while_others_are_due_rows_of_unknown_names_are_looked_for_at_the_front_only() -> None:
    Task.objects.new_task("of.a", priority=2).save()
    Task.objects.new_task("of.nobody").save()
    Task.objects.new_task("of.b", priority=1).save()
    engine = Engine.on("default")
    assert list(readiness.unknown(engine, ["of.a"], among=2)) == [("of.b", 1)]
    assert list(readiness.unknown(engine, ["of.a"])) == [("of.b", 1), ("of.nobody", 1)]
    assert list(readiness.unknown(engine, [])) == [("of.a", 1), ("of.b", 1), ("of.nobody", 1)]


def test_b16_there_is_an_end_of_unknown_names(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(MOST_NAMES + 20):
        Task.objects.new_task(f"of.nobody{number}").save()
    duties = Duties(tasks)
    assert "any" not in duties.known()
    for _ in range(2):
        duties.report_unknown_names()
    warnings = [record for record in caplog.records if "of.nobody" in record.getMessage()]
    assert len(warnings) == MOST_NAMES
    assert caplog.text.count("no more are told") == 1
    assert not duties.known(), "so many may be more than a statement takes"


# B17: finishing overwrote an operator's edits


def test_b17_what_an_operator_edits_while_a_task_runs_is_kept() -> None:
    @background
    def task() -> None:
        Task.objects.update(repeat=120, priority=5, queue="moved", verbose_name="edited")

    task(repeat=60)
    before = Task.objects.get().run_at
    assert tasks.run_next_task()
    for row in (Task.objects.get(), CompletedTask.objects.get()):
        assert (row.repeat, row.priority, row.queue) == (120, 5, "moved")
        assert row.verbose_name == "edited"
    assert Task.objects.get().run_at == before + timedelta(seconds=120)


def test_b17_so_is_an_edit_of_a_task_that_then_fails() -> None:
    @background
    def task() -> None:
        Task.objects.update(priority=5, queue="moved")
        raise ValueError

    task()
    assert tasks.run_next_task()
    row = Task.objects.get()
    assert (row.priority, row.queue, row.attempts) == (5, "moved", 1)


def test_b17_an_edit_in_the_admin_does_not_unlock_a_row_that_was_taken_meanwhile(
    admin_client: Client,
) -> None:
    row = Task.objects.new_task("any")
    row.save()
    url = f"/admin/background_task/task/{row.pk}/change/"
    page = admin_client.get(url).context["adminform"].form
    shown = {name: page[name].value() for name in page.fields}
    form = {name: "" if value is None else value for name, value in shown.items()}
    for name in ("run_at", "repeat_until", "failed_at"):
        moment = form.pop(name)
        form[f"{name}_0"] = timezone.localtime(moment).strftime("%Y-%m-%d") if moment else ""
        form[f"{name}_1"] = timezone.localtime(moment).strftime("%H:%M:%S") if moment else ""
    assert row.lock("worker")
    response = admin_client.post(url, {**form, "priority": "7"})
    assert response.status_code == 302, response.context["errors"]
    row.refresh_from_db()
    assert (row.priority, row.locked_by) == (7, "worker")


def test_b17_a_lock_can_be_released_in_the_admin_and_its_run_then_records_nothing(
    admin_client: Client,
) -> None:
    @background
    def task() -> None:
        admin_client.post(
            "/admin/background_task/task/",
            {"action": "release_lock", "_selected_action": [Task.objects.get().pk]},
        )

    task()
    assert tasks.run_next_task()
    row = Task.objects.get()
    assert (row.locked_by, row.attempts) == (None, 0)
    assert not CompletedTask.objects.exists()


# B18: a lock without a time


def test_b18_a_lock_without_a_time_is_no_lock() -> None:
    @background
    def task() -> None: ...

    task()
    Task.objects.update(locked_by="somebody", locked_at=None)
    assert tasks.run_next_task()
    assert CompletedTask.objects.exists()


# B19: ties


def test_b19_tasks_due_at_the_same_time_run_in_the_order_they_came() -> None:
    at, order = timezone.now(), []

    @background
    def task(number: int) -> None:
        order.append(number)

    for number in range(20):
        task(number, schedule=at)
    # Without a rule it is the order of the table or of an index, which nothing promises.
    assert Task.objects.find_available().query.order_by == ("-priority", "run_at", "id")
    while tasks.run_next_task():
        pass
    assert order == list(range(20))


# B20: creators


@pytest.mark.parametrize("kind", [Account, Label, User])
def test_b20_a_creator_may_have_a_key_of_any_type(kind: Any) -> None:
    if kind is User:
        creator: Any = User.objects.create(username="ana")
    else:
        creator = kind.objects.create(pk="ñandú") if kind is Label else kind.objects.create()
    other = User.objects.create(username="other")

    @background
    def task() -> None: ...

    task(creator=creator)
    assert Task.objects.get().creator == creator
    assert Task.objects.prefetch_related("creator").get().creator == creator
    assert Task.objects.created_by(creator).count() == 1
    assert Task.objects.created_by(other).count() == 0
    tasks.run_next_task()
    assert CompletedTask.objects.get().creator == creator
    assert CompletedTask.objects.created_by(creator).succeeded().count() == 1


def test_b20_so_may_one_whose_number_does_not_fit_the_column() -> None:
    row = Task.objects.new_task("any")
    for key in (2**31 - 1, 2**31, -1, None):
        row.creator_pk = key
        row.save()
        assert str(Task.objects.get().creator_pk) == str(key)


# B21: the type of the keys


def test_b21_the_keys_do_not_depend_on_the_project() -> None:
    # makemigrations itself is asked in upgrade/test_migrations.py
    own = vars(type(apps.get_app_config("background_task")))
    assert own["default_auto_field"] == "django.db.models.BigAutoField"
    for model in (Task, CompletedTask):
        assert model._meta.pk.get_internal_type() == "BigAutoField"


# Beside the list: what a project hangs on a row


def test_a_row_that_a_project_refers_to_can_be_finished() -> None:
    @background
    def task() -> None: ...

    Follower.objects.create(task=task())
    assert tasks.run_next_task()
    assert Follower.objects.get().task is None


@pytest.mark.parametrize("commits", [True, False])
def test_a_transaction_that_a_task_leaves_open_is_rolled_back_and_the_outcome_kept(
    commits: bool,
) -> None:
    @background
    def task() -> None:
        transaction.set_autocommit(False)
        Label.objects.create(name="left open")
        if commits:
            transaction.commit()

    task()
    assert tasks.run_next_task()
    assert transaction.get_autocommit()
    assert CompletedTask.objects.exists() is commits
    assert Label.objects.exists() is commits
    assert commits or "has left a transaction open on the database" in Task.objects.get().last_error


def test_the_worker_of_a_row_has_a_name_that_no_other_process_has() -> None:
    @background
    def task() -> None: ...

    task()
    tasks.run_next_task()
    assert CompletedTask.objects.get().worker_id == this_worker()
    assert len(this_worker()) <= 64
    assert this_worker().count(":") == 2
