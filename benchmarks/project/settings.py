"""A project that does nothing but queue. ``BENCH_DATABASE`` chooses the database."""

import os
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

VENDOR = os.environ.get("BENCH_DATABASE", "sqlite")
DEFAULTS = {
    "postgresql": "postgresql://postgres@127.0.0.1:5432/background_task_bench",
    "mysql": "mysql://root@127.0.0.1:3306/background_task_bench",
}

if VENDOR == "sqlite":
    DATABASE: dict[str, object] = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(os.environ.get("BENCH_FOLDER", "/tmp")) / "bench.sqlite3",
        "OPTIONS": {
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
    }
else:
    url = urlsplit(os.environ.get(f"BENCH_{VENDOR.upper()}", DEFAULTS[VENDOR]))
    DATABASE = {
        "ENGINE": f"django.db.backends.{VENDOR}",
        "NAME": url.path.lstrip("/"),
        "USER": unquote(url.username or ""),
        "PASSWORD": unquote(url.password or ""),
        "HOST": unquote(url.hostname or ""),
        "PORT": url.port or "",
    }
    if VENDOR == "mysql" and not find_spec("MySQLdb"):
        import pymysql

        pymysql.install_as_MySQLdb()

DATABASES = {"default": DATABASE}
SECRET_KEY = "benchmarks"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "background_task",
    "project",
]
TASKS = {"default": {"BACKEND": "background_task.backends.DatabaseBackend", "QUEUES": []}}
