"""A project that runs unchanged with the predecessor and with this package."""

import os

from project.settings import DATABASES  # noqa: F401 - the same servers, by the same variables

SECRET_KEY = "legacy"
USE_TZ = True
if "TEST_AUTO_FIELD" in os.environ:
    DEFAULT_AUTO_FIELD = f"django.db.models.{os.environ['TEST_AUTO_FIELD']}"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "background_task",
    "legacy_project",
]
BACKGROUND_TASK_RUN_ASYNC = "TEST_RUN_ASYNC" in os.environ
if "TEST_MIGRATIONS" in os.environ:
    MIGRATION_MODULES = {"background_task": os.environ["TEST_MIGRATIONS"]}
