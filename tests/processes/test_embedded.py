"""A worker inside the web server: one, however many processes that has."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from notes import enqueue, noted
from support import Child, break_other_connections, wait_until

from background_task import vendors
from background_task.models import CompletedTask, Task, Worker
from background_task.storage.workers import lock_key

pytestmark = pytest.mark.django_db(transaction=True)

# When a process whose connection was lost has noticed that.
LATER = timedelta(seconds=3)


@pytest.fixture
def port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def number() -> int:
    """Return the number of the process whose worker takes tasks: there is one."""
    wait_until(Worker.objects.exists)
    return int(Worker.objects.get().worker_id.split(":")[1])


@pytest.mark.parametrize("reloads", [True, False])
def test_runserver_runs_tasks_when_the_setting_says_so(
    command: Callable[..., Child], port: str, reloads: bool
) -> None:
    enqueue("note", "embedded")
    options = [] if reloads else ["--noreload"]
    child = command("runserver", port, *options, TEST_EMBEDDED="1")
    wait_until(noted("embedded"))
    wait_until(CompletedTask.objects.exists)
    # The process that serves, and not the one that restarts it.
    assert (number() == child.process.pid) is not reloads
    wait_until(lambda: "Quit the server" in child.text())
    enqueue("slow", "long", 1)
    wait_until(noted("long begins"))
    child.send_to_all(signal.SIGINT)
    assert child.wait() == 0, child.text()
    wait_until(noted("long ends"))
    wait_until(lambda: not Worker.objects.exists())
    assert not Task.objects.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("send", [Child.send, Child.send_to_all])
def test_a_signal_to_the_process_that_reloads_runserver_lets_what_runs_finish(
    command: Callable[..., Child], port: str, send: Callable[..., None], number: signal.Signals
) -> None:
    enqueue("slow", "long", 1.5)
    child = command("runserver", port, TEST_EMBEDDED="1")
    wait_until(noted("long begins"))
    wait_until(lambda: "Quit the server" in child.text())
    send(child, number)
    assert child.wait() == 0, child.text()
    assert CompletedTask.objects.get().attempts == 1
    assert not Worker.objects.exists()
    assert "Traceback" not in child.text()


def test_what_takes_too_long_is_handed_back_when_the_web_server_ends(
    command: Callable[..., Child], port: str
) -> None:
    enqueue("slow", "long", 600)
    child = command("runserver", port, TEST_EMBEDDED="1")
    wait_until(noted("long begins"))
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.text()
    row = Task.objects.get()
    assert (row.locked_by, row.attempts, row.losses) == (None, 0, None)


def test_without_tables_the_embedded_worker_says_what_to_do_and_no_more(
    command: Callable[..., Child], port: str, empty_database: str
) -> None:
    child = command("runserver", port, "--noreload", TEST_EMBEDDED="1", TEST_NAME=empty_database)
    wait_until(lambda: "lacks the table background_task" in child.text())
    wait_until(lambda: "Quit the server" in child.text())
    assert "run manage.py migrate" in child.text()
    assert "Traceback" not in child.text()


def test_the_events_of_the_servers_life_go_on_to_the_application(
    command: Callable[..., Child], port: str, tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn")
    journal = tmp_path / "journal"
    child = command(
        *("project.asgi:mounted", "--port", port, "--lifespan", "on"),
        TEST_MODULE="uvicorn",
        TEST_JOURNAL=str(journal),
    )
    enqueue("note", "embedded")
    wait_until(noted("embedded"))
    assert journal.read_text().split() == ["startup"]
    child.send(signal.SIGTERM)
    child.wait()
    assert journal.read_text().split() == ["startup", "shutdown"]
    assert not Worker.objects.exists()


def test_runserver_alone_runs_nothing(command: Callable[..., Child], port: str) -> None:
    enqueue("note", "never")
    child = command("runserver", port, "--noreload")
    wait_until(lambda: "Quit the server" in child.text())
    command("check", TEST_EMBEDDED="1").wait()
    assert not Worker.objects.exists()
    assert Task.objects.exists()


@pytest.fixture(params=["uvicorn", "gunicorn"])
def server(request: pytest.FixtureRequest, command: Callable[..., Child], port: str) -> Child:
    """A web server of two processes with a worker in it."""
    arguments = {
        "uvicorn": [
            "project.asgi:application",
            "--port",
            port,
            "--workers",
            "2",
            "--lifespan",
            "on",
        ],
        "gunicorn": [
            "project.wsgi:application",
            "--bind",
            f"127.0.0.1:{port}",
            "--workers",
            "2",
            "--config",
            "python:project.gunicorn_conf",
        ],
    }
    pytest.importorskip(request.param)
    return command(*arguments[request.param], TEST_MODULE=request.param)


def test_one_process_of_a_web_server_runs_tasks_and_another_goes_on_when_it_ends(
    server: Child,
) -> None:
    enqueue("note", "first")
    wait_until(noted("first"))
    first = number()
    os.kill(first, signal.SIGKILL)
    enqueue("note", "second")
    wait_until(noted("second"))
    wait_until(lambda: Worker.objects.count() == 1 and number() != first)
    server.send(signal.SIGTERM)
    server.wait()
    wait_until(lambda: not Worker.objects.exists())


def test_what_runs_is_finished_when_the_web_server_ends(server: Child) -> None:
    enqueue("slow", "long", 1)
    wait_until(noted("long begins"))
    server.send(signal.SIGTERM)
    wait_until(noted("long ends"))
    wait_until(CompletedTask.objects.exists)
    server.wait()
    assert not Task.objects.exists()


def test_a_worker_that_is_started_again_waits_for_what_the_last_one_runs(
    command: Callable[..., Child],
) -> None:
    enqueue("slow_once", "long", 2)
    child = command(TEST_MODULE="project.restarting")
    wait_until(lambda: "started again" in child.text())
    enqueue("note", "second")
    wait_until(noted("second"))
    assert noted("long ends")()
    assert number() == child.process.pid


@pytest.fixture
def cut(vendor: str) -> Callable[[], int]:
    """Cut every connection of the children."""
    if vendor == "sqlite":
        pytest.skip("SQLite has no connections to break")
    return break_other_connections


def test_after_a_restart_of_the_database_there_is_one_again(
    server: Child, cut: Callable[[], int]
) -> None:
    enqueue("note", "first")
    wait_until(noted("first"))
    cut()
    enqueue("note", "second")
    wait_until(noted("second"))
    # By then whoever has lost its turn knows of that.
    enqueue("note", "third", run_at=timezone.now() + LATER)
    wait_until(noted("third"))
    wait_until(lambda: Worker.objects.count() == 1)
    assert connection.is_usable()


def test_where_nobody_else_is_there_a_lost_connection_is_no_reason_to_give_way(
    command: Callable[..., Child], port: str, cut: Callable[[], int]
) -> None:
    enqueue("slow_async", "long", 600)
    child = command("runserver", port, "--noreload", TEST_EMBEDDED="1")
    wait_until(noted("long begins"))
    for number in range(2):  # what was taken anew may be lost again
        cut()
        enqueue("note", f"{number}", run_at=timezone.now() + LATER)
        wait_until(noted(f"{number}"))
    assert "gives way to another" not in child.text()
    assert not noted("long ends")()


def test_who_gives_way_and_hands_back_what_runs_goes_on_when_it_is_his_turn_again(
    command: Callable[..., Child], port: str, cut: Callable[[], int], tmp_path: Path
) -> None:
    patience = 'BACKGROUND_TASK_WORKER = {"SHUTDOWN_TIMEOUT": 1}'
    (tmp_path / "impatient.py").write_text(f"from project.settings import *\n{patience}\n")
    enqueue("slow_async", "long", 600)
    environment = {"TEST_PATH": str(tmp_path), "DJANGO_SETTINGS_MODULE": "impatient"}
    child = command("runserver", port, "--noreload", TEST_EMBEDDED="1", **environment)
    wait_until(noted("long begins"))

    def take_turn() -> Any:
        cut()
        return vendors.of(connection).session_lock(connection, lock_key("embedded impatient"))

    turn = wait_until(take_turn)
    wait_until(lambda: "gives way to another" in child.text())
    wait_until(Task.objects.filter(locked_by=None).exists)
    turn.release()
    enqueue("note", "second")
    wait_until(noted("second"))
