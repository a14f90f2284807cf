"""Every task that Django's ``@task`` has declared, by the name that its rows carry.

Declaring happens while modules are imported, before models can be loaded, so this loads none.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from django.apps import apps
from django.conf import settings

_declared: dict[str, Any] = {}
_proxies: dict[str, Any] = {}


def declare(task: Any) -> None:
    """Remember a task. What ``using()`` derives from it is the same task with other defaults."""
    known = _declared.get(task.module_path)
    if known is None or known.func is not task.func:
        _declared[task.module_path] = task


def declare_proxy(proxy: Any) -> None:
    """Remember what ``@background`` has made of a function."""
    _proxies[proxy.name] = proxy


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
        module = name.rpartition(".")[0]
        if _is_of_the_project(module):
            try:
                import_module(module)
            except ImportError:
                return None
    return _declared.get(name)


def _is_of_the_project(module: str) -> bool:
    roots = {config.name for config in apps.get_app_configs()}
    package, dot, _ = (getattr(settings, "SETTINGS_MODULE", None) or "").partition(".")
    if dot:
        roots.add(package)
    return any(f"{module}.".startswith(f"{root}.") for root in roots)
