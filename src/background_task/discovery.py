"""Find and import the ``tasks.py`` of every installed app."""

from __future__ import annotations

import sysconfig
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from django.apps import AppConfig, apps
from django.utils import autoreload
from django.utils.module_loading import module_has_submodule

from background_task import logs
from background_task.exceptions import TaskModuleError
from background_task.settings import app_settings

logger = logs.named("background_task.tasks")


def autodiscover() -> None:
    """Import ``<app>.tasks`` for every installed app that has one, each once.

    Raises:
        TaskModuleError: a ``tasks.py`` of the project fails to import; the message names the file.
            One that belongs to an installed package is logged as an error and passed over, since
            the project cannot mend it, unless ``BACKGROUND_TASK_STRICT_DISCOVERY`` is on.
    """
    broken = []
    for config, error in broken_modules():
        if stops_worker(config):
            broken.append(error)
        else:
            logger.error("%s Its tasks will not run.", error, exc_info=error.__cause__)
    if broken:
        raise broken[0] from broken[0].__cause__


def broken_modules() -> list[tuple[AppConfig, TaskModuleError]]:
    """Import every ``tasks.py`` and return the apps whose one fails, with the reason."""
    broken = []
    for config in apps.get_app_configs():
        name = f"{config.name}.tasks"
        try:
            if module_has_submodule(config.module, "tasks"):
                import_module(name)
        except (Exception, SystemExit) as cause:
            error = TaskModuleError(_describe(name, config, cause))
            error.__cause__ = cause
            broken.append((config, error))
    return broken


def _describe(name: str, config: AppConfig, cause: BaseException) -> str:
    own_file = str(Path(config.path) / "tasks.py")
    if isinstance(cause, SyntaxError) and cause.filename:
        place = f"{cause.filename}, line {cause.lineno}"
    else:
        frames = traceback.extract_tb(cause.__traceback__)
        near = [frame for frame in frames if frame.filename.startswith(config.path)]
        place = f"{near[-1].filename}, line {near[-1].lineno}" if near else own_file
    return f"{name} cannot be imported: {type(cause).__name__}: {cause} ({place})."


def stops_worker(config: AppConfig) -> bool:
    """Tell whether a broken ``tasks.py`` of this app is an error the worker must not pass over."""
    installed = [sysconfig.get_path(scheme) for scheme in ("purelib", "platlib")]
    in_site_packages = any(Path(config.path).is_relative_to(path) for path in installed)
    return app_settings.BACKGROUND_TASK_STRICT_DISCOVERY or not in_site_packages


def watch_modules(sender: autoreload.BaseReloader, **kwargs: Any) -> None:
    """Let a reloader watch every ``tasks.py``: of one that is broken there is no module."""
    for config in apps.get_app_configs():
        sender.watch_dir(config.path, "tasks.py")


def let_reloader_know(error: TaskModuleError) -> None:
    """Let a reloader watch the file that an error names, which a ``tasks.py`` may import.

    It would see for itself what ends its thread, but not what became a message.
    """

    def fail() -> NoReturn:
        raise error.__cause__ or error

    with suppress(Exception, SystemExit):
        autoreload.check_errors(fail)()
