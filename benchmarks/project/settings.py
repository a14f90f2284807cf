"""A project that does nothing but queue. ``BENCH_BARE`` leaves the queue out."""

import os

import databases

DATABASES = {"default": databases.entry()}
SECRET_KEY = "benchmarks"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "project"]
if "BENCH_BARE" not in os.environ:
    INSTALLED_APPS.insert(2, "background_task")
    TASKS = {"default": {"BACKEND": "background_task.backends.DatabaseBackend", "QUEUES": []}}
