"""The Django project of those peers that need one. ``BENCH_PEER`` is the module of the peer."""

import os

import databases

PEER = os.environ["BENCH_PEER"]
APPS = {
    "predecessor": "background_task",
    "tasks_db": "django_tasks_db",
    "ox": "django_ox",
    "djqueue": "dj_queue",
}
BACKENDS = {
    "tasks_db": "django_tasks_db.DatabaseBackend",
    "ox": "django_ox.backend.OxBackend",
    "djqueue": "dj_queue.backend.DjQueueBackend",
}

DATABASES = {"default": databases.entry() | {"CONN_MAX_AGE": None}}
SECRET_KEY = "benchmarks"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", APPS[PEER], "peers"]
if PEER in BACKENDS:
    TASKS = {"default": {"BACKEND": BACKENDS[PEER], "QUEUES": []}}
