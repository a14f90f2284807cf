"""A worker of several processes: how they are started, watched, replaced and stopped."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from notes import enqueue, noted
from project.models import Note
from support import Child, wait_until

from background_task.models import Attempt, CompletedTask, Task, Worker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def supervisor(worker: Callable[..., Child]) -> Callable[..., Child]:
    """Start a worker of two processes."""
    return lambda *arguments, **environment: worker("--processes", "2", *arguments, **environment)


def numbers() -> list[int]:
    """Return the numbers of the processes that run tasks."""
    ids = Worker.objects.exclude(supervisor=None).values_list("worker_id", flat=True)
    return sorted(int(each.split(":")[1]) for each in ids)


def all_are_there() -> bool:
    return len(numbers()) == 2


def running(text: str = "long") -> int:
    """Return the number of the process that runs a task of this text."""
    wait_until(noted(f"{text} begins"))
    return int(wait_until(lambda: Task.objects.exclude(locked_by=None).first()).locked_by)


def is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_processes_run_two_functions_at_a_time(supervisor: Callable[..., Child]) -> None:
    for text in ("one", "other"):
        enqueue("slow", text, 600)
    supervisor()
    wait_until(lambda: Note.objects.filter(text__endswith="begins").count() == 2)
    holders = set(Task.objects.values_list("locked_by", flat=True))
    assert holders == {str(number) for number in numbers()}


def test_what_a_killed_process_ran_runs_again_and_another_takes_its_place(
    supervisor: Callable[..., Child],
) -> None:
    enqueue("slow", "long", 3)
    child = supervisor()
    wait_until(all_are_there)
    killed = running()
    Note.objects.all().delete()
    os.kill(killed, signal.SIGKILL)
    wait_until(noted("long ends"))
    done = wait_until(CompletedTask.objects.first)
    assert (done.losses, done.attempts) == (1, 1)
    wait_until(lambda: all_are_there() and killed not in numbers())
    lost = Attempt.objects.get(exception_class_path__endswith="WorkerLostError")
    assert "it was ended by SIGKILL" in lost.traceback
    assert "was ended by SIGKILL" in child.text()
    assert "1 task(s) that" in child.text(), "the supervisor knew, and did not have to guess"


def test_what_a_killed_process_ran_is_taken_at_once_by_another_however_slowly_its_successor_starts(
    supervisor: Callable[..., Child], tmp_path: Path
) -> None:
    (tmp_path / "slow_app").mkdir()
    (tmp_path / "slow_app" / "__init__.py").touch()
    gate = tmp_path / "gate"
    gate.touch()
    (tmp_path / "slow_app" / "tasks.py").write_text(
        "import pathlib, time\n"
        f"while not pathlib.Path({str(gate)!r}).exists():\n    time.sleep(0.05)\n"
    )
    enqueue("slow", "long", 3)
    supervisor("--sleep", "120", TEST_APPS="slow_app", TEST_PATH=str(tmp_path))
    wait_until(all_are_there)
    killed = running()
    gate.unlink()
    os.kill(killed, signal.SIGKILL)
    wait_until(noted("long ends"))


def test_a_function_that_ends_its_process_has_failed_in_the_end(
    supervisor: Callable[..., Child],
) -> None:
    enqueue("leave", "kill")
    for number in range(10):
        enqueue("note", f"innocent {number}")
    supervisor()
    failed = wait_until(CompletedTask.objects.failed().first)
    assert "was lost 4 times" in failed.last_error
    wait_until(lambda: CompletedTask.objects.succeeded().count() == 10)
    assert Note.objects.filter(text__startswith="innocent").count() == 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGTSTP])
@pytest.mark.parametrize("to_all", [False, True])
def test_one_signal_lets_what_runs_finish_even_if_every_process_gets_it(
    supervisor: Callable[..., Child], number: signal.Signals, to_all: bool
) -> None:
    enqueue("slow", "long", 1.5)
    child = supervisor()
    wait_until(all_are_there)
    running()
    if to_all:
        child.send_to_all(number)
    else:
        child.send(number)
    assert child.wait() == 0, child.text()
    assert noted("long ends")()
    assert CompletedTask.objects.get().attempts == 1
    assert not Worker.objects.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["sitecustomize", "starting"])
def test_one_signal_to_every_process_stops_the_worker_while_they_start(
    supervisor: Callable[..., Child], tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    (tmp_path / "starting.py").touch()
    (tmp_path / f"{moment}.py").write_text(
        "import os, sys\n"
        "if '--multiprocessing-fork' in sys.orig_argv:\n"
        "    try:\n"
        f"        open({str(tmp_path / 'sent')!r}, 'x').close()\n"
        "    except FileExistsError:\n"
        "        pass\n"
        "    else:\n"
        f"        os.killpg(0, {int(number)})\n"
    )
    child = supervisor(TEST_APPS="starting", TEST_PATH=str(tmp_path))
    assert child.wait() == 0, child.text()
    assert (tmp_path / "sent").exists()
    assert "Traceback" not in child.text()
    assert "was ended by" not in child.text()
    assert not Worker.objects.exists()


def test_a_second_signal_hands_back_what_runs(supervisor: Callable[..., Child]) -> None:
    enqueue("slow", "long", 600)
    child = supervisor()
    running()
    assert child.stop_twice(signal.SIGINT) == 128 + signal.SIGINT, child.text()
    row = Task.objects.get()
    assert (row.locked_by, row.attempts, row.losses) == (None, 0, None)


@pytest.mark.parametrize("how", ["ignores", "blocks"])
def test_a_second_signal_ends_processes_that_hear_none(
    supervisor: Callable[..., Child], how: str
) -> None:
    for number in range(2):
        enqueue("be_deaf", str(number), how)
    child = supervisor()
    wait_until(lambda: noted("0 begins")() and noted("1 begins")())
    running = numbers()
    assert child.stop_twice(signal.SIGINT) == 128 + signal.SIGINT
    wait_until(lambda: not any(Path(f"/proc/{each}").exists() for each in running))


def test_what_a_process_ran_that_is_killed_while_all_stop_is_freed(
    supervisor: Callable[..., Child],
) -> None:
    for number in range(2):
        enqueue("slow", str(number), 600)
    child = supervisor()
    wait_until(lambda: noted("0 begins")() and noted("1 begins")())
    child.send(signal.SIGTERM)
    wait_until(lambda: "Stopping when" in child.text())
    for each in numbers():
        os.kill(each, signal.SIGKILL)
    assert child.wait() == 128 + signal.SIGTERM
    assert "was ended by SIGKILL" in child.text()
    assert list(Task.objects.values_list("locked_by", "losses")) == [(None, 1)] * 2


def test_a_process_that_cannot_be_replaced_is_tried_again_and_the_others_go_on(
    supervisor: Callable[..., Child], tmp_path: Path
) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    enqueue("slow", "first", 600)
    child = supervisor(TEST_FOLDER=str(folder))
    wait_until(all_are_there)
    folder.rmdir()
    os.kill(running("first"), signal.SIGKILL)
    wait_until(lambda: "cannot be started, trying again" in child.text())
    wait_until(lambda: Note.objects.filter(text="first begins").count() == 2)
    child.send(signal.SIGTERM)
    wait_until(lambda: "Stopping when" in child.text())
    child.send(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM
    assert "Traceback" not in child.text()


def test_the_end_of_patience_is_a_second_signal(supervisor: Callable[..., Child]) -> None:
    enqueue("slow", "long", 600)
    child = supervisor("--shutdown-timeout", "0.5")
    running()
    child.send(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM, child.text()
    row = Task.objects.get()
    assert (row.locked_by, row.attempts) == (None, 0)


@pytest.mark.parametrize("patience", ["0", "0.1"])
def test_it_is_a_success_if_nothing_ran_when_patience_was_over(
    supervisor: Callable[..., Child], patience: str
) -> None:
    child = supervisor("--shutdown-timeout", patience)
    wait_until(all_are_there)
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.text()


def test_it_is_a_success_if_nothing_had_begun_when_a_second_signal_came(
    supervisor: Callable[..., Child], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib, sys, time\n"
        "if '--multiprocessing-fork' in sys.orig_argv:\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'{{os.getpid()}}.started').touch()\n"
        "    time.sleep(600)\n"
    )
    child = supervisor(TEST_PATH=str(tmp_path))
    wait_until(lambda: len(list(tmp_path.glob("*.started"))) == 2)
    child.send(signal.SIGTERM)
    wait_until(lambda: "Stopping when" in child.text())
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.text()


def test_processes_finish_and_end_when_their_supervisor_is_killed(
    supervisor: Callable[..., Child],
) -> None:
    enqueue("slow", "long", 3)
    child = supervisor()
    wait_until(all_are_there)
    running()
    known = numbers()
    child.process.kill()
    wait_until(noted("long ends"))
    wait_until(lambda: not any(map(is_alive, known)))
    assert CompletedTask.objects.get().losses is None


def test_a_worker_that_is_killed_with_all_its_processes_is_rescued_from(
    supervisor: Callable[..., Child],
) -> None:
    enqueue("slow", "long", 600)
    child = supervisor()
    running()
    supervisor()
    wait_until(lambda: Worker.objects.count() == 6)
    child.end()
    wait_until(lambda: Note.objects.filter(text="long begins").count() == 2)
    row = Task.objects.get()
    assert row.losses == 1
    assert int(row.locked_by) in numbers()
    wait_until(lambda: Worker.objects.count() == 3)


def test_a_process_that_is_asked_to_end_finishes_and_is_replaced(
    supervisor: Callable[..., Child],
) -> None:
    enqueue("slow", "long", 3)
    supervisor()
    wait_until(all_are_there)
    asked = running()
    for _ in range(3):  # more often is no more than once
        os.kill(asked, signal.SIGTERM)
    wait_until(noted("long ends"))
    wait_until(lambda: all_are_there() and asked not in numbers())
    assert wait_until(CompletedTask.objects.first).losses is None


def test_processes_are_replaced_after_so_many_tasks(supervisor: Callable[..., Child]) -> None:
    supervisor("--max-tasks", "2")
    wait_until(all_are_there)
    first = set(numbers())
    for number in range(8):
        enqueue("note", f"task {number}")
    wait_until(lambda: CompletedTask.objects.count() == 8)
    wait_until(lambda: all_are_there() and not first & set(numbers()))
    assert not CompletedTask.objects.exclude(losses=None).exists()


def test_processes_are_replaced_whatever_threads_their_tasks_have_left_behind(
    supervisor: Callable[..., Child],
) -> None:
    for _ in range(2):
        enqueue("leave_a_thread_behind", "too late", 600)
        enqueue("leave_a_pool_behind", 600)
    child = supervisor("--max-tasks", "2")
    wait_until(lambda: CompletedTask.objects.count() == 4)
    for number in range(4):
        enqueue("note", f"task {number}")
    wait_until(lambda: Note.objects.count() == 4)
    assert "keep this process" in child.text()
    assert "was ended by" not in child.text()


def test_processes_are_replaced_when_they_use_too_much_memory(
    supervisor: Callable[..., Child],
) -> None:
    child = supervisor("--max-memory", "1")
    wait_until(all_are_there)
    first = set(numbers())
    wait_until(lambda: enqueue("note", "heavy") and not first & set(numbers()))
    wait_until(all_are_there)
    assert child.process.poll() is None


def test_a_burst_ends_when_nothing_is_left(supervisor: Callable[..., Child]) -> None:
    for number in range(20):
        enqueue("note", f"task {number}")
    child = supervisor("--burst")
    assert child.wait() == 0, child.text()
    assert CompletedTask.objects.count() == 20
    assert not Worker.objects.exists()


def test_the_duration_ends_all_of_them(supervisor: Callable[..., Child]) -> None:
    enqueue("slow", "long", 2)
    child = supervisor("--duration", "1")
    assert child.wait() == 0, child.text()
    assert CompletedTask.objects.exists() or not noted("long begins")()
    assert not Worker.objects.exists()


def test_processes_that_cannot_start_end_the_worker(
    supervisor: Callable[..., Child], tmp_path: Path
) -> None:
    (tmp_path / "broken_app").mkdir()
    (tmp_path / "broken_app" / "__init__.py").touch()
    (tmp_path / "broken_app" / "tasks.py").write_text("import there_is_no_such_module\n")
    child = supervisor(TEST_APPS="broken_app", TEST_PATH=str(tmp_path))
    assert child.wait() == 1
    assert "there_is_no_such_module" in child.text()
    assert "Traceback" not in child.text()
    assert not Worker.objects.exists()


def test_several_processes_cannot_work_inside_a_transaction() -> None:
    with transaction.atomic(), pytest.raises(CommandError, match="--processes 2 cannot be had"):
        call_command("process_tasks", processes=2)


def test_the_command_may_be_called_with_several_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEST_NAME", str(connection.settings_dict["NAME"]))
    enqueue("note", "called")
    call_command("process_tasks", processes=2, burst=True, sleep=0.1)
    assert noted("called")()


def test_the_autoreloader_and_several_processes_exclude_each_other() -> None:
    with pytest.raises(CommandError, match="leave one of them out"):
        call_command("process_tasks", processes=2, dev=True)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd listens at."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(30)
        yield listener


def heard(service: socket.socket, text: str) -> str:
    """Return the first message that contains ``text``."""
    while True:
        message = service.recv(4096).decode()
        if text in message:
            return message


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_service_manager_is_told_how_the_worker_is(
    worker: Callable[..., Child], service: socket.socket, processes: str
) -> None:
    child = worker(
        "--processes",
        processes,
        NOTIFY_SOCKET=service.getsockname(),
        WATCHDOG_USEC="200000",
    )
    assert "STATUS=" in heard(service, "READY=1")
    assert len(numbers()) == (2 if processes == "2" else 0)
    for _ in range(3):
        heard(service, "WATCHDOG=1")
    enqueue("environment", "NOTIFY_SOCKET")
    wait_until(noted("NOTIFY_SOCKET is None"))
    child.send(signal.SIGTERM)
    heard(service, "STOPPING=1")
    assert child.wait() == 0
