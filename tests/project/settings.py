"""The settings of the tests. ``TEST_DATABASE`` chooses sqlite (default), postgresql or mysql."""

import os
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

VENDOR = os.environ.get("TEST_DATABASE", "sqlite")
TMP = Path(os.environ.get("TEST_TMP", "/tmp"))


def server(engine: str, address: str) -> dict[str, object]:
    """Return the settings of a database by its URL."""
    url = urlsplit(address)
    return {
        "ENGINE": f"django.db.backends.{engine}",
        "NAME": url.path.lstrip("/"),
        "USER": unquote(url.username or ""),
        "PASSWORD": unquote(url.password or ""),
        # libpq's way of naming a Unix socket is ?host=/folder.
        "HOST": dict(parse_qsl(url.query)).get("host") or unquote(url.hostname or ""),
        "PORT": url.port or "",
    }


if VENDOR == "sqlite":
    DATABASE: dict[str, object] = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": TMP / "background_task.sqlite3",
        # A file, so that threads and child processes see the same rows.
        "TEST": {"NAME": TMP / f"test_background_task_{os.getpid()}.sqlite3"},
        "OPTIONS": {"timeout": float(os.environ.get("TEST_SQLITE_TIMEOUT", 20))},
    }
elif VENDOR == "postgresql":
    DATABASE = server(
        "postgresql",
        os.environ.get("TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/postgres"),
    )
elif VENDOR == "mysql":
    try:
        import MySQLdb  # noqa: F401
    except ImportError:
        import pymysql

        pymysql.install_as_MySQLdb()
    DATABASE = server("mysql", os.environ.get("TEST_MYSQL", "mysql://root@127.0.0.1:3306/test"))
    DATABASE["OPTIONS"] = {"charset": "utf8mb4"}
else:
    raise ValueError(f"TEST_DATABASE is {VENDOR!r}; it must be sqlite, postgresql or mysql.")

if "TEST_PERSISTENT" in os.environ:
    DATABASE["CONN_MAX_AGE"] = None
if "TEST_POOL" in os.environ:
    options = DATABASE.setdefault("OPTIONS", {})
    assert isinstance(options, dict)
    options["pool"] = {"min_size": 1, "max_size": 1, "timeout": 1}
if "TEST_ZONE" in os.environ:
    DATABASE["TIME_ZONE"] = os.environ["TEST_ZONE"]

DATABASES: dict[str, dict[str, object]] = {"default": DATABASE}
if "TEST_NAME" in os.environ:
    # Child processes of a test work on its test database.
    DATABASE["NAME"] = os.environ["TEST_NAME"]

SECRET_KEY = "tests"
USE_TZ = os.environ.get("TEST_USE_TZ", "1") == "1"
TIME_ZONE = "Europe/Madrid"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "project.urls"
STATIC_URL = "static/"
# Nobody's password: the default takes a second to be hashed.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = os.environ.get("TEST_AUTO_FIELD", "django.db.models.BigAutoField")
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "background_task",
    "project",
    # Apps that a test writes for its child processes.
    *os.environ.get("TEST_APPS", "").split(),
]
# Django's own since 6.0; before that a package, which the environments of the predecessor lack.
BACKENDS = None
if find_spec("django.tasks"):
    BACKENDS = "django.tasks.backends"
elif find_spec("django_tasks") and "TEST_NO_TASKS" not in os.environ:
    BACKENDS = "django_tasks.backends"
    INSTALLED_APPS.append("django_tasks")
if BACKENDS:
    OURS = "background_task.backends.DatabaseBackend"
    TASKS = {
        "default": {"BACKEND": OURS, "QUEUES": ["default", "other"]},
        "retrying": {
            "BACKEND": OURS,
            "QUEUES": [],
            "OPTIONS": {
                "MAX_ATTEMPTS": 3,
                "BACKOFF": [0, 5],
                "GIVE_UP_ON": ["builtins.KeyError"],
            },
        },
        "immediate": {"BACKEND": f"{BACKENDS}.immediate.ImmediateBackend", "QUEUES": []},
        "dummy": {"BACKEND": f"{BACKENDS}.dummy.DummyBackend", "QUEUES": []},
    }
BACKGROUND_TASK_RUN_ASYNC = "TEST_RUN_ASYNC" in os.environ
BACKGROUND_TASK_EMBEDDED = "TEST_EMBEDDED" in os.environ
MAX_RUN_TIME = float(os.environ.get("TEST_MAX_RUN_TIME", 3600))
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

if "TEST_ROUTED" in os.environ:
    # A project that keeps its queue apart, and reads from a replica that knows nothing yet.
    DATABASES = {
        name: {"ENGINE": "django.db.backends.sqlite3", "NAME": TMP / f"{name}.sqlite3"}
        for name in ("default", "queue", "replica")
    }
    DATABASE_ROUTERS = ["project.routers.QueueRouter"]
    if BACKENDS:
        TASKS["apart"] = {"BACKEND": OURS, "QUEUES": [], "OPTIONS": {"DATABASE": "default"}}
