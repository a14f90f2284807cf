"""System checks: an id, the fact, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from background_task import discovery, migrations
from background_task.api import registry
from background_task.settings import app_settings
from background_task.worker import options

OWN_DISTRIBUTION = "django-background-tasks2"
OTHER_DISTRIBUTIONS = (
    "django-background-tasks",
    "django-background-tasks-updated",
    "django4-background-tasks",
    "django-background-task",
)
FLAGS = (
    "BACKGROUND_TASK_EAGER",
    "BACKGROUND_TASK_EMBEDDED",
    "BACKGROUND_TASK_RUN_ASYNC",
    "BACKGROUND_TASK_STRICT_DATETIMES",
    "BACKGROUND_TASK_STRICT_DISCOVERY",
)
OWN_MIGRATIONS = {
    "0001_initial",
    "0002_auto_20170927_1109",
    "0003_alter_completedtask_id_alter_task_id",
    "0003_auto_20210410_1529",
    "0004_auto_20220202_1721",
    "0005_public_ids_and_states",
    "0006_attempts",
    "0007_workers",
}


@register()
def one_distribution(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E001: two distributions own the import package ``background_task``."""
    found = []
    for name in OTHER_DISTRIBUTIONS:
        try:
            found.append(metadata.distribution(name).metadata["Name"])
        except metadata.PackageNotFoundError:
            continue
    return [
        Error(
            f"{name} is installed beside {OWN_DISTRIBUTION}; both own the package background_task, "
            "so its files may be of either.",
            hint=(
                f"pip uninstall -y {name} {OWN_DISTRIBUTION}, then install {OWN_DISTRIBUTION} as "
                "before (both have to go first: uninstalling one deletes files of the other)."
            ),
            id="background_task.E001",
        )
        for name in found
    ]


@register()
def known_migrations(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E002: a migration file that is not ours lies in the installed package."""
    if "background_task" in getattr(settings, "MIGRATION_MODULES", {}):
        return []
    folder = Path(next(iter(migrations.__path__)))
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    return [
        Error(
            f"{folder / name}.py is not a migration of {OWN_DISTRIBUTION}; migrate would stop at "
            "it with conflicting leaf nodes.",
            hint=(
                "It was left by makemigrations or by another distribution: delete the file, then "
                "run migrate."
            ),
            id="background_task.E002",
        )
        for name in sorted(files - OWN_MIGRATIONS)
    ]


@register()
def importable_tasks(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E003, W001: a ``tasks.py`` cannot be imported, so none of its tasks can run."""
    messages: list[CheckMessage] = []
    for config, error in discovery.broken_modules():
        stops = discovery.stops_worker(config)
        hint = "Mend the file; until then neither the worker nor runserver starts."
        if stops:
            discovery.let_reloader_know(error)
        else:
            hint = "It belongs to an installed package: the worker starts without its tasks."
        kind, number = (Error, "E003") if stops else (Warning, "W001")
        messages.append(kind(str(error), hint=hint, id=f"background_task.{number}"))
    return messages


@register()
def one_function_by_name(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    """W002: functions replace each other under one name, and the last one is what runs."""
    discovery.broken_modules()
    return [
        Warning(
            f"The task {name} is declared at {' and at '.join(places)}; what runs is the last.",
            hint='Rename the function, or give the task a name of its own: @background("my.name").',
            id="background_task.W002",
        )
        for name, places in registry.ambiguous().items()
    ]


@register()
def sensible_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E004: a setting is not of the type it must have."""
    messages: list[CheckMessage] = []
    for name, lowest in (
        ("MAX_ATTEMPTS", 1),
        ("MAX_RUN_TIME", 1),
        ("BACKGROUND_TASK_ASYNC_THREADS", 1),
        ("BACKOFF_MULTIPLIER", 0),
        ("BACKGROUND_TASK_MAX_LOSSES", 0),
    ):
        try:
            sensible = getattr(app_settings, name) >= lowest
        except (TypeError, ValueError):
            sensible = False
        if not sensible:
            messages.append(
                Error(
                    f"The setting {name} is not a number of at least {lowest}.",
                    hint="Correct or remove it; the prefixed name BACKGROUND_TASK_… is read first.",
                    id="background_task.E004",
                )
            )
    return messages


@register()
def plain_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """W004: a setting is text that counts as something else than it says."""
    found = {name: getattr(settings, name, None) for name in FLAGS}
    messages: list[CheckMessage] = [
        Warning(
            f"The setting {name} is the text {value!r:.80}, which counts as {bool(value)}.",
            hint="Set it to True or False.",
            id="background_task.W004",
        )
        for name, value in found.items()
        if isinstance(value, str)
    ]
    order = getattr(settings, "BACKGROUND_TASK_PRIORITY_ORDERING", "DESC")
    if order not in ("ASC", "DESC"):
        messages.append(
            Warning(
                f"The setting BACKGROUND_TASK_PRIORITY_ORDERING is {order!r:.80}, which counts as "
                '"DESC".',
                hint='Set it to "ASC" or "DESC".',
                id="background_task.W004",
            )
        )
    return messages


@register()
def sensible_worker(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """E008: the setting of the worker cannot be meant."""
    try:
        options.check_setting()
    except Exception as error:
        hint = "The worker would refuse to start: correct it."
        return [Error(str(error), hint=hint, id="background_task.E008")]
    return []
