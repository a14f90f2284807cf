"""The worker under Django's autoreloader: started anew, told to stop, and broken meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from django.utils import timezone
from notes import enqueue, noted
from support import Child, wait_until

from background_task.models import CompletedTask, Task, Worker

pytestmark = pytest.mark.django_db(transaction=True)

STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGTSTP]
SENDERS = [Child.send, Child.send_to_all]


def test_the_autoreloader_starts_the_worker_anew_and_ctrl_c_ends_it(
    worker: Callable[..., Child], tmp_path: Path
) -> None:
    (tmp_path / "reloaded").mkdir()
    (tmp_path / "reloaded" / "__init__.py").touch()
    imported = tmp_path / "imported"
    code = (
        "from pathlib import Path\n"
        "from background_task import background\nfrom project.models import Note\n"
        f"Path({str(imported)!r}).write_text({{text!r}})\n"
        "@background(every=3600)\ndef tick():\n    Note.objects.create(text={text!r})\n"
    )
    module = tmp_path / "reloaded" / "tasks.py"
    module.write_text(code.format(text="before"))
    child = worker("--dev", TEST_APPS="reloaded", TEST_PATH=str(tmp_path))
    wait_until(noted("before"))
    rewrite(module, code.format(text="after"), lambda: imported.read_text() == "after")

    def reloaded() -> bool:
        Task.objects.filter(run_at__gt=timezone.now()).update(run_at=timezone.now())
        return noted("after")()

    wait_until(reloaded)
    assert child.process.poll() is None
    child.send_to_all(signal.SIGINT)
    assert child.wait() == 0, child.text()


def rewrite(file: Path, text: str, condition: Callable[[], bool]) -> None:
    """Write a file, and wait for what that leads to by an autoreloader."""
    file.write_text(text)
    touched = time.time()

    def is_noticed() -> bool:
        # A change made before the reloader's first look is none, so there may be another.
        nonlocal touched
        if time.time() > touched:
            touched = time.time() + 5
            os.utime(file, (touched, touched))
        return condition()

    wait_until(is_noticed)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("def (", "SyntaxError"),
        ("background(queue=5)(print)", "queue must be text"),
        ("from reloaded import helper", "SyntaxError"),
    ],
)
def test_the_autoreloader_waits_until_what_is_broken_is_mended(
    worker: Callable[..., Child], tmp_path: Path, line: str, told: str
) -> None:
    (tmp_path / "reloaded").mkdir()
    (tmp_path / "reloaded" / "__init__.py").touch()
    module = tmp_path / "reloaded" / "tasks.py"
    module.write_text("from background_task import background\n")
    helper = tmp_path / "reloaded" / "helper.py"
    enqueue("note", "before")
    child = worker("--dev", TEST_APPS="reloaded", TEST_PATH=str(tmp_path))
    wait_until(noted("before"))

    helper.write_text("def (\n")
    text = f"from background_task import background\n{line}\n"
    rewrite(module, text, lambda: told in child.text())
    assert child.process.poll() is None
    enqueue("note", "after")
    broken = helper if "helper" in line else module
    rewrite(broken, "from background_task import background\n", noted("after"))
    child.send_to_all(signal.SIGINT)
    assert child.wait() == 0, child.text()


@pytest.mark.parametrize("send", SENDERS)
@pytest.mark.parametrize("number", STOPS)
def test_a_signal_to_the_autoreloader_lets_the_running_task_finish(
    worker: Callable[..., Child], number: signal.Signals, send: Callable[..., None]
) -> None:
    enqueue("slow", "long", 1.5)
    child = worker("--dev")
    wait_until(noted("long begins"))
    send(child, number)
    assert child.wait() == 0, child.text()
    assert CompletedTask.objects.get().attempts == 1


@pytest.mark.parametrize("send", SENDERS)
@pytest.mark.parametrize("options", [[], ["--threads", "2"]], ids=" ".join)
def test_a_second_signal_to_the_autoreloader_hands_the_running_task_back(
    worker: Callable[..., Child], options: list[str], send: Callable[..., None]
) -> None:
    enqueue("slow", "long", 600)
    child = worker("--dev", *options)
    wait_until(noted("long begins"))
    send(child, signal.SIGINT)
    wait_until(lambda: "Stopping when what runs has ended" in child.text())
    send(child, signal.SIGINT)
    assert child.wait() == 128 + signal.SIGINT, child.text()
    row = Task.objects.get()
    assert (row.locked_by, row.attempts, row.losses) == (None, 0, None)


def test_one_signal_ends_the_autoreloader_whose_worker_has_started_anew(
    worker: Callable[..., Child],
) -> None:
    enqueue("overstay", "long", "stubborn")
    child = worker("--dev")
    wait_until(Task.objects.filter(attempts=1, locked_by=None).exists)
    enqueue("note", "still here")
    wait_until(noted("still here"))
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.text()


def test_under_the_autoreloader_too_the_end_of_patience_is_a_second_signal(
    worker: Callable[..., Child],
) -> None:
    enqueue("slow", "long", 600)
    child = worker("--dev", "--shutdown-timeout", "0.5")
    wait_until(noted("long begins"))
    child.send(signal.SIGTERM)
    assert child.wait() == 128 + signal.SIGTERM, child.text()
    assert Task.objects.get().locked_by is None


@pytest.mark.parametrize("send", SENDERS)
def test_a_signal_ends_the_autoreloader_that_waits_for_a_repair(
    worker: Callable[..., Child], tmp_path: Path, send: Callable[..., None]
) -> None:
    (tmp_path / "reloaded").mkdir()
    (tmp_path / "reloaded" / "__init__.py").touch()
    (tmp_path / "reloaded" / "tasks.py").write_text("def (\n")
    child = worker("--dev", TEST_APPS="reloaded", TEST_PATH=str(tmp_path))
    wait_until(lambda: "SyntaxError" in child.text())
    send(child, signal.SIGINT)
    assert child.wait() == 0, child.text()


def test_a_worker_finishes_and_ends_when_its_autoreloader_is_killed(
    worker: Callable[..., Child],
) -> None:
    enqueue("slow", "long", 1.5)
    child = worker("--dev")
    wait_until(noted("long begins"))
    child.process.kill()
    wait_until(lambda: not Worker.objects.exists())
    assert CompletedTask.objects.get().losses is None


@pytest.mark.parametrize("broken", ["tasks", "helper"])
def test_runserver_serves_as_soon_as_a_broken_tasks_module_is_mended(
    command: Callable[..., Child], tmp_path: Path, broken: str
) -> None:
    (tmp_path / "reloaded").mkdir()
    (tmp_path / "reloaded" / "__init__.py").touch()
    (tmp_path / "reloaded" / "tasks.py").write_text("from reloaded import helper\n")
    file = tmp_path / "reloaded" / f"{broken}.py"
    file.write_text("def (\n")
    child = command("runserver", "0", TEST_APPS="reloaded", TEST_PATH=str(tmp_path))
    wait_until(lambda: "background_task.E003" in child.text())
    rewrite(file, "", lambda: "Quit the server" in child.text())
