"""Each setting: its default, its names, and that it is read at each access."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
from django.conf import settings as project
from django.test import override_settings

from background_task.settings import AppSettings, app_settings

# property: default, another value as a project sets it, as the property returns it
SETTINGS: dict[str, tuple[Any, Any, Any]] = {
    "MAX_ATTEMPTS": (25, 3, 3),
    "MAX_RUN_TIME": (3600, 60, 60),
    "BACKGROUND_TASK_RUN_ASYNC": (False, True, True),
    "BACKGROUND_TASK_ASYNC_THREADS": (multiprocessing.cpu_count(), 3, 3),
    "BACKGROUND_TASK_PRIORITY_ORDERING": ("-", "ASC", ""),
    "BACKOFF_MULTIPLIER": (4, 2, 2),
}
BARE = ["MAX_ATTEMPTS", "MAX_RUN_TIME"]


@pytest.mark.parametrize("name", SETTINGS)
def test_without_the_setting_the_default_holds(name: str) -> None:
    with override_settings():
        delattr(project, name)
        assert getattr(app_settings, name) == SETTINGS[name][0]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_setting_is_read_at_each_access(name: str) -> None:
    default, value, expected = SETTINGS[name]
    with override_settings(**{name: value}):
        assert getattr(app_settings, name) == getattr(AppSettings(), name) == expected
    assert getattr(app_settings, name) == default


@pytest.mark.parametrize("name", BARE)
def test_the_prefixed_property_follows_the_bare_setting(name: str) -> None:
    prefixed = f"BACKGROUND_TASK_{name}"
    assert getattr(app_settings, prefixed) == SETTINGS[name][0]
    with override_settings(**{name: 7}):
        assert getattr(app_settings, prefixed) == 7


@pytest.mark.parametrize("name", [*BARE, "BACKOFF_MULTIPLIER"])
def test_the_prefixed_setting_wins_over_the_bare_one(name: str) -> None:
    with override_settings(**{name: 7, f"BACKGROUND_TASK_{name}": 8}):
        assert getattr(app_settings, name) == 8


@pytest.mark.parametrize(
    ("value", "prefix"), [("ASC", ""), ("DESC", "-"), ("asc", "-"), (None, "-"), ("else", "-")]
)
def test_anything_but_asc_is_desc(value: Any, prefix: str) -> None:
    with override_settings(BACKGROUND_TASK_PRIORITY_ORDERING=value):
        assert prefix == app_settings.BACKGROUND_TASK_PRIORITY_ORDERING
