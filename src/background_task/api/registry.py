"""Every task that Django's ``@task`` has declared, by the name that its rows carry.

Declaring happens while modules are imported, before models can be loaded, so this loads none.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from django.apps import apps
from django.conf import settings

from background_task import _compat, logs

logger = logs.named("background_task.tasks")

_declared: dict[str, Any] = {}
_proxies: dict[str, Any] = {}
_broken: set[str] = set()
# Where the functions are that were declared by one name: there should be one place.
_places: dict[str, dict[str, None]] = {}


def name_of(task: Any) -> str:
    """Return the name that the rows of a task carry."""
    return str(getattr(task, "stored_name", None) or task.module_path)


def declare(task: Any) -> None:
    """Remember a task. What ``using()`` derives from it is the same task with other defaults."""
    known = _declared.get(task.module_path)
    if known is None or known.func is not task.func:
        _declared[task.module_path] = task
        _note_place(task.module_path, task.func)


def declare_proxy(proxy: Any) -> None:
    """Remember what ``@background`` has made of a function."""
    _proxies[proxy.name] = proxy
    _note_place(proxy.name, proxy.task_function)


def _note_place(name: str, function: Any) -> None:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is not None:
        place = f"{code.co_filename}:{code.co_firstlineno}"
        _places.setdefault(name, {})[place] = None


def ambiguous() -> dict[str, list[str]]:
    """Return the names that more than one function was declared by, with the places of those."""
    return {name: list(places) for name, places in _places.items() if len(places) > 1}


def proxy(name: str) -> Any | None:
    """Return what ``@background`` has made of the function of this name; None if nothing."""
    return _proxies.get(name)


def definition(name: str) -> Any | None:
    """Return the declaration that the rows of this name belong to, of either door; None if none."""
    proxy = _proxies.get(name)
    return resolve(name) if proxy is None else proxy.definition


def declared() -> dict[str, Any]:
    """Return every declared task by its name."""
    return dict(_declared)


def resolve(name: str) -> Any | None:
    """Return the declared task of this name, importing its module if need be; None if none.

    Only modules of installed apps and of the package of the settings are imported: a row must not
    be able to make the worker import anything that happens to be on the path.
    """
    if name not in _declared:
        task = find(name)
        if (
            _compat.HAS_TASKS
            and isinstance(task, _compat.tasks_base.Task)
            and task.module_path == name
        ):
            _declared.setdefault(name, task)
    return _declared.get(name)


def find(path: str) -> Any | None:
    """Return what a dotted path names in a module of the project; None if there is nothing."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = _imported(".".join(parts[:length]))
        if module is not None:
            found: Any = module
            for part in parts[length:]:
                found = getattr(found, part, None)
            return found
    return None


def _imported(name: str) -> ModuleType | None:
    if name in sys.modules:
        return sys.modules[name]
    if not _is_of_the_project(name) or name in _broken:
        return None
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            _report(name)
    except (Exception, SystemExit):  # a script, perhaps; it is not to end who looks for a task
        _report(name)
    return None


def _report(module: str) -> None:
    """Say once why a module that a row names cannot be imported; the rows wait."""
    _broken.add(module)
    logger.exception("%s cannot be imported: its tasks wait until it is mended.", module)


def _is_of_the_project(module: str) -> bool:
    roots = {config.name for config in apps.get_app_configs()}
    package, dot, _ = (getattr(settings, "SETTINGS_MODULE", None) or "").partition(".")
    if dot:
        roots.add(package)
    return any(f"{module}.".startswith(f"{root}.") for root in roots)
