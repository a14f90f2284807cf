"""Which entry of ``TASKS`` is ours, and the backend where there is none."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from background_task import _compat

# The alias of rows that come through Django's door in a project that has no entry for us.
IMPLICIT = "background_task"
OURS = "background_task.backends.DatabaseBackend"


def own_alias() -> str:
    """Return the first alias in ``TASKS`` whose backend is ours, or :data:`IMPLICIT`."""
    for alias, params in (getattr(settings, "TASKS", None) or {}).items():
        if getattr(import_string(params["BACKEND"]), "is_of_background_task", False):
            return str(alias)
    return IMPLICIT


def exists(alias: str) -> bool:
    """Tell whether there is a backend of this alias."""
    return alias == IMPLICIT or alias in (getattr(settings, "TASKS", None) or {})


def backend(alias: str) -> Any:
    """Return the backend of an alias.

    Raises:
        InvalidTaskBackend: ``TASKS`` has no such alias.
        ImproperlyConfigured: there is no ``django.tasks``.
    """
    require_tasks()
    if alias == IMPLICIT and alias not in (getattr(settings, "TASKS", None) or {}):
        return import_string(OURS)(alias, {"BACKEND": OURS, "QUEUES": []})
    return _compat.django_tasks.task_backends[alias]


def require_tasks() -> None:
    """Refuse what needs ``django.tasks`` where that is missing."""
    if not _compat.HAS_TASKS:
        raise ImproperlyConfigured(
            "This needs django.tasks: upgrade to Django 6.0, or install the package django-tasks "
            "(pip install 'django-background-tasks2[backport]')."
        )
