"""Every import path and every name of 1.2.8 still resolves."""

from __future__ import annotations

import multiprocessing
from importlib import import_module
from typing import Any

import pytest
from django.apps import apps
from django.db.models import Manager, Model, QuerySet
from django.dispatch import Signal

from background_task.exceptions import BackgroundTaskError

NAMES = {
    "background_task": ["background", "__version__", "default_app_config"],
    "background_task.admin": ["TaskAdmin", "CompletedTaskAdmin", "inc_priority", "dec_priority"],
    "background_task.apps": ["BackgroundTasksAppConfig"],
    "background_task.exceptions": ["BackgroundTaskError", "InvalidTaskError"],
    "background_task.management.commands.process_tasks": ["Command", "_configure_log_std"],
    "background_task.models": [
        "CompletedTask",
        "CompletedTaskQuerySet",
        "Task",
        "TaskManager",
        "TaskQuerySet",
        "logger",
    ],
    "background_task.models_completed": ["CompletedTask"],
    "background_task.settings": ["AppSettings", "app_settings", "cpu_count"],
    "background_task.signals": [
        "close_old_connections",
        "reset_queries",
        "task_created",
        "task_error",
        "task_failed",
        "task_finished",
        "task_rescheduled",
        "task_started",
        "task_successful",
    ],
    "background_task.tasks": [
        "BackgroundTaskError",
        "DBTaskRunner",
        "PoolRunner",
        "Task",
        "TaskProxy",
        "TaskSchedule",
        "Tasks",
        "app_settings",
        "autodiscover",
        "bg_runner",
        "logger",
        "signals",
        "tasks",
    ],
    "background_task.tests": [],
    "background_task.tests.test_tasks": [],
    "background_task.utils": ["SignalManager", "TTW_FAST", "TTW_SLOW"],
}


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in NAMES.items() for name in ["", *names]],
    ids=lambda part: part or "itself",
)
def test_the_name_resolves(module: str, name: str) -> None:
    imported = import_module(module)
    assert not name or hasattr(imported, name)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("background_task.__version__", str),
        ("background_task.default_app_config", str),
        ("background_task.models.CompletedTask", type(Model)),
        ("background_task.models.Task", type(Model)),
        ("background_task.settings.cpu_count", int),
        ("background_task.signals.task_created", Signal),
        ("background_task.signals.task_error", Signal),
        ("background_task.signals.task_failed", Signal),
        ("background_task.signals.task_finished", Signal),
        ("background_task.signals.task_rescheduled", Signal),
        ("background_task.signals.task_started", Signal),
        ("background_task.signals.task_successful", Signal),
        ("background_task.tasks.tasks._tasks", dict),
    ],
)
def test_the_name_is_of_its_kind(path: str, kind: type) -> None:
    assert isinstance(resolve(path), kind)


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("background_task.exceptions.BackgroundTaskError", Exception),
        ("background_task.exceptions.InvalidTaskError", BackgroundTaskError),
        ("background_task.models.TaskManager", Manager),
        ("background_task.models.TaskQuerySet", QuerySet),
        ("background_task.models.CompletedTaskQuerySet", QuerySet),
    ],
)
def test_the_class_has_its_base(path: str, base: type) -> None:
    assert issubclass(resolve(path), base)


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("background_task.tasks.Task", "background_task.models.Task"),
        ("background_task.tasks.signals", "background_task.signals"),
        ("background_task.tasks.app_settings", "background_task.settings.app_settings"),
        (
            "background_task.tasks.BackgroundTaskError",
            "background_task.exceptions.BackgroundTaskError",
        ),
        (
            "background_task.models_completed.CompletedTask",
            "background_task.models.CompletedTask",
        ),
        ("background_task.tasks.tasks._bg_runner", "background_task.tasks.bg_runner"),
        ("background_task.tasks.tasks._task_proxy_class", "background_task.tasks.TaskProxy"),
    ],
)
def test_both_paths_lead_to_the_same_object(path: str, same: str) -> None:
    assert resolve(path) is resolve(same)


@pytest.mark.parametrize(
    ("path", "class_path"),
    [
        ("background_task.tasks.tasks", "background_task.tasks.Tasks"),
        ("background_task.tasks.tasks._runner", "background_task.tasks.DBTaskRunner"),
        ("background_task.tasks.tasks._pool_runner", "background_task.tasks.PoolRunner"),
        ("background_task.settings.app_settings", "background_task.settings.AppSettings"),
        ("background_task.models.Task.objects", "background_task.models.TaskManager"),
    ],
)
def test_the_object_is_an_instance_of_its_class(path: str, class_path: str) -> None:
    assert isinstance(resolve(path), resolve(class_path))


def resolve(path: str) -> Any:
    """Import the longest part of ``path`` that is a module, and follow the rest as attributes."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise LookupError(path)


def test_the_loggers_have_the_names_of_their_modules() -> None:
    assert resolve("background_task.tasks.logger").name == "background_task.tasks"
    assert resolve("background_task.models.logger").name == "background_task.models"


def test_the_app_is_known_by_its_name_and_version() -> None:
    config = apps.get_app_config("background_task")
    assert type(config) is resolve(resolve("background_task.default_app_config"))
    assert config.name == "background_task"
    version = resolve("background_task.__version__")
    assert config.verbose_name == f"Background Tasks ({version})"


def test_an_error_carries_a_message_and_details() -> None:
    for name in ("BackgroundTaskError", "InvalidTaskError"):
        kind = resolve(f"background_task.exceptions.{name}")
        assert str(kind("a message")) == "a message"
        assert kind("a message").errors is None
        assert kind("a message", ["a detail"]).errors == ["a detail"]


def test_the_paces_of_the_worker_are_what_they_were() -> None:
    assert resolve("background_task.utils.TTW_SLOW") == [0.5, 1.5]
    assert resolve("background_task.utils.TTW_FAST") == [0.0, 0.1]


def test_the_number_of_cores_is_counted() -> None:
    assert resolve("background_task.settings.cpu_count") == multiprocessing.cpu_count()
