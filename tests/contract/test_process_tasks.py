"""``process_tasks`` as it is called from Python: ``call_command("process_tasks", ...)``."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import override_settings

from background_task import background
from background_task.management.commands import process_tasks
from background_task.management.commands.process_tasks import Command
from background_task.models import CompletedTask, Task
from background_task.tasks import autodiscover, tasks
from background_task.utils import TTW_FAST, TTW_SLOW, SignalManager

pytestmark = pytest.mark.django_db(transaction=True)

OPTIONS = {
    "--duration": {"dest": "duration", "action": "store", "type": int, "default": 0},
    "--sleep": {"dest": "sleep", "action": "store", "type": float, "default": 5.0},
    "--log-std": {"dest": "log_std", "action": "store_true"},
    "--dev": {"dest": "dev", "action": "store_true"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_option_is_what_it_was(name: str) -> None:
    declared = {names[0]: dict(options) for names, options in Command.OPTIONS}
    assert declared[name].pop("help")
    assert declared[name] == OPTIONS[name]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"duration": 0, "sleep": 5.0, "queue": None, "log_std": False, "dev": False}),
        (
            ["--duration=7", "--sleep=0.5", "--queue=a", "--log-std", "--dev"],
            {"duration": 7, "sleep": 0.5, "queue": "a", "log_std": True, "dev": True},
        ),
    ],
)
def test_the_command_line_is_read_as_before(arguments: list[str], expected: dict[str, Any]) -> None:
    parsed = vars(Command().create_parser("manage.py", "process_tasks").parse_args(arguments))
    assert {name: parsed[name] for name in expected} == expected


def test_a_new_command_has_the_registry_and_no_signals_yet() -> None:
    command = Command()
    assert command._tasks is tasks
    assert command.sig_manager is None


def test_the_worker_runs_what_is_due_and_ends_with_its_duration() -> None:
    ran: list[int] = []
    proxy = background("worked")(ran.append)
    for number in range(5):
        proxy(number)
    proxy(99, schedule=3600)
    begin = time.monotonic()
    call_command("process_tasks", duration=1, sleep=0.1, queue=None, log_std=False, dev=False)
    assert 1 <= time.monotonic() - begin < 5
    assert ran == [0, 1, 2, 3, 4]
    assert Task.objects.get().task_params == "[[99], {}]"
    assert CompletedTask.objects.count() == 5


def test_the_worker_of_a_queue_runs_that_queue_only() -> None:
    ran: list[str] = []
    proxy = background("queued")(ran.append)
    for queue in ("a", "b", None):
        proxy(str(queue), queue=queue)
    call_command("process_tasks", duration=1, sleep=0.1, queue="b")
    assert ran == ["b"]
    assert Task.objects.count() == 2


def test_where_nobody_else_sees_the_rows_the_setting_asks_for_no_threads_and_processes(
    settings: Any,
) -> None:
    settings.BACKGROUND_TASK_WORKER = {"PROCESSES": 2, "THREADS": 4, "QUEUE": "b"}
    ran: list[str] = []
    proxy = background("queued")(ran.append)
    for queue in ("a", "b"):
        proxy(queue, queue=queue)
    with transaction.atomic():
        call_command("process_tasks", burst=True)
    assert ran == ["b"]


@pytest.mark.parametrize(
    ("setting", "options", "told"),
    [
        ({"EXCLUDE_QUEUE": "a"}, {}, "Leave it out of the setting BACKGROUND_TASK_WORKER."),
        ({"THREADS": 4}, {"threads": 2}, "--threads cannot be had here.* Leave it out of the call"),
        ({}, {"processes": 2}, "--processes 2 cannot be had here"),
    ],
)
def test_what_cannot_be_had_where_nobody_else_sees_the_rows_is_refused(
    settings: Any, setting: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    settings.BACKGROUND_TASK_WORKER = setting
    with transaction.atomic(), pytest.raises(CommandError, match=told):
        call_command("process_tasks", burst=True, **options)


def test_the_worker_survives_a_task_that_fails() -> None:
    ran: list[str] = []

    @background("fails")
    def fails() -> None:
        raise ValueError

    fails(priority=1)
    background("works")(ran.append)("after")
    call_command("process_tasks", duration=1, sleep=0.1)
    assert ran == ["after"]
    assert Task.objects.get().attempts == 1


def test_a_task_that_comes_later_is_found_after_the_sleep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[str] = []
    proxy = background("later")(ran.append)
    slept: list[float] = []

    def wait(self: SignalManager, seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 1:
            proxy("found")
        else:
            self.exit_gracefully(None, None)

    monkeypatch.setattr(SignalManager, "wait", wait)
    call_command("process_tasks", sleep=7.5)
    assert ran == ["found"]
    assert slept == [7.5, 7.5]


def test_asked_to_stop_the_worker_finishes_the_task_and_takes_no_other() -> None:
    command = Command()

    @background("asks")
    def asks(number: int) -> None:
        command.sig_manager.exit_gracefully(None, None)

    asks(1), asks(2)
    call_command(command, sleep=0.1)
    assert CompletedTask.objects.get().task_params == "[[1], {}]"
    assert Task.objects.get().locked_by is None


def test_run_can_be_called_with_a_signal_manager_of_ones_own() -> None:
    class Manager:
        kill_now = False
        time_to_wait = TTW_FAST

        def wait(self, seconds: float) -> None:
            self.kill_now = True

        def wake(self) -> None: ...

    ran: list[str] = []
    background("own.manager")(ran.append)("ran")
    command = Command()
    command.sig_manager = Manager()
    command.run(duration=0, sleep=0.1)
    assert ran == ["ran"]


def test_the_manager_of_signals_keeps_the_pace_and_the_wish_to_stop() -> None:
    manager = SignalManager()
    try:
        assert (manager.kill_now, manager.time_to_wait) == (False, TTW_FAST)
        manager.slow_down(None, None)
        assert manager.time_to_wait == TTW_SLOW
        manager.speed_up(None, None)
        assert manager.time_to_wait == TTW_FAST
        manager.exit_gracefully(None, None)
        assert manager.kill_now is True
    finally:
        manager.restore()


def test_the_handlers_of_signals_are_put_back() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    during: list[Any] = []

    @background("looks")
    def looks() -> None:
        during.extend(signal.getsignal(number) for number in numbers)

    looks()
    call_command("process_tasks", duration=1, sleep=0.1)
    assert all(handler not in before for handler in during)
    assert [signal.getsignal(number) for number in numbers] == before


def test_with_log_std_what_is_printed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    @background("prints")
    def prints() -> None:
        print("to standard output")
        print("to standard error", file=sys.stderr)

    prints()
    with caplog.at_level(logging.INFO, process_tasks.__name__):
        before = sys.stdout, sys.stderr
        call_command("process_tasks", duration=1, sleep=0.1, log_std=True)
        assert (sys.stdout, sys.stderr) == before
    for level, line in ((logging.INFO, "to standard output"), (logging.ERROR, "to standard error")):
        assert (process_tasks.__name__, level, line) in caplog.record_tuples


def test_without_log_std_what_is_printed_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    background("prints")(lambda: print("to standard output"))()
    call_command("process_tasks", duration=1, sleep=0.1, log_std=False)
    assert capsys.readouterr().out == "to standard output\n"


def test_with_dev_the_worker_runs_in_the_reloader(monkeypatch: pytest.MonkeyPatch) -> None:
    reloaded: list[Any] = []
    monkeypatch.setattr(
        "django.utils.autoreload.run_with_reloader",
        lambda function, *args, **options: reloaded.append((function, options)),
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        call_command("process_tasks", duration=3, dev=True, queue="a queue")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    [(function, options)] = reloaded
    assert callable(function)
    assert (options["dev"], options["duration"], options["queue"]) == (True, 3, "a queue")


@override_settings(BACKGROUND_TASK_RUN_ASYNC=True)
def test_with_threads_tasks_run_beside_each_other() -> None:
    together = threading.Barrier(2, timeout=20)
    proxy = background("meets")(lambda number: together.wait())
    tasks._pool_runner, before = type(tasks._pool_runner)(tasks._bg_runner, 2), tasks._pool_runner
    proxy(1), proxy(2)
    try:
        call_command("process_tasks", duration=1, sleep=0.1)
    finally:
        pool, tasks._pool_runner = tasks._pool_runner, before
        pool.drain(20)
        pool._pool.terminate()
        pool._pool.join()
    assert CompletedTask.objects.succeeded().count() == 2


# autodiscover


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> str:
    """Install an app that has tasks and one that has none, and return the name of the first."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"app_{abs(hash(tmp_path))}"
    for package in (name, f"{name}_without_tasks"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, package]
    (tmp_path / name / "tasks.py").write_text(
        "from background_task import background\n@background\ndef task(): pass\n"
    )
    return name


def test_the_worker_discovers_the_tasks_of_the_apps(app: str) -> None:
    Task.objects.new_task(f"{app}.tasks.task").save()
    call_command("process_tasks", duration=1, sleep=0.1)
    assert CompletedTask.objects.succeeded().count() == 1


def test_autodiscover_imports_the_tasks_of_each_app_once(app: str) -> None:
    autodiscover()
    proxy = tasks._tasks[f"{app}.tasks.task"]
    autodiscover()
    assert tasks._tasks[f"{app}.tasks.task"] is proxy


def test_a_signal_manager_that_cannot_wait_is_enough() -> None:
    command = process_tasks.Command()
    command.sig_manager = types.SimpleNamespace(kill_now=False, time_to_wait=[0, 0.1])
    command.run(duration=1, sleep=0.1)
    assert command.sig_manager.kill_now is False


@pytest.mark.django_db(transaction=False)
def test_the_worker_works_inside_the_transaction_of_a_test() -> None:
    ran: list[int] = []
    proxy = background("worked")(ran.append)
    proxy(1)
    call_command("process_tasks", duration=1, sleep=0.1)
    proxy(2)
    call_command("process_tasks", duration=1, sleep=0.1)
    assert ran == [1, 2]
    assert CompletedTask.objects.count() == 2
