"""A project that moves from django-tasks-db; ``TEST_BACKEND`` says which backend it has."""

import os
from importlib.util import find_spec

from project.settings import DATABASES  # the same servers, by the same variables

SECRET_KEY = "tests"
USE_TZ = True
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "background_task",
    "django_tasks_db",
    "project",
    "tasks_db_project",
]
if not find_spec("django.tasks"):
    INSTALLED_APPS.append("django_tasks")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TASKS = {
    "default": {"BACKEND": os.environ["TEST_BACKEND"], "QUEUES": ["default", "mail"]},
}
if "TEST_ELSEWHERE" in os.environ:
    DATABASES["elsewhere"] = DATABASES["default"]
    TASKS["default"]["OPTIONS"] = {"DATABASE": "elsewhere"}
