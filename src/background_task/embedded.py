"""A worker in a thread of the web server: for development, and for sites of one process.

``BACKGROUND_TASK_EMBEDDED = True`` starts one beside ``runserver``. Other servers call
:func:`start` in each of their processes, or wrap their application by :func:`with_worker`. However
many processes do so, one of them takes tasks; when it ends another goes on.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.apps import apps
from django.conf import settings

from background_task import logs
from background_task.exceptions import BackgroundTaskError
from background_task.settings import app_settings

if TYPE_CHECKING:
    from background_task.storage.engine import Engine
    from background_task.vendors import SessionLock

__all__ = ["start", "stop", "with_worker"]

logger = logs.named("background_task.tasks")

# How long a process that does not take tasks waits before it asks again, and how long what runs is
# waited for when the server ends, in seconds.
BETWEEN_TRIES = 1.0
LONGEST_STOP = 5.0
AFTER_A_FAILURE = 5.0

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


def start(*, every_process: bool = False) -> None:
    """Take and run tasks in a thread of this process; once it does, nothing more happens.

    The options are those of the setting ``BACKGROUND_TASK_WORKER``, but for ``PROCESSES``.

    Args:
        every_process: in this one too when another process of this project takes tasks already.
    """
    global _worker
    if _worker is None or not _worker.is_of_this_process:
        _worker = _Embedded(every_process, after=_last)
        _worker.start()


def stop(timeout: float = LONGEST_STOP) -> None:
    """Take no more tasks, and let what runs finish; what takes longer is handed back.

    Args:
        timeout: seconds.
    """
    global _worker, _last
    if _worker is not None and _worker.is_of_this_process:
        worker, _worker = _worker, None
        _last = worker.stop(timeout)


def with_worker(application: Application, *, every_process: bool = False) -> Application:
    """Return an ASGI application that starts and stops a worker with the server.

    Args:
        application: the application, such as what ``get_asgi_application()`` returns.
        every_process: see :func:`start`.
    """

    async def wrapped(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await application(scope, receive, send)
            return
        heard: list[str] = []
        said: list[str] = []

        async def hear() -> Any:
            message = await receive()
            heard.append(message["type"])
            return message

        async def say(message: Any) -> None:
            said.append(message["type"])
            if message["type"] == "lifespan.startup.complete":
                start(every_process=every_process)
            elif message["type"].startswith("lifespan.shutdown."):
                await sync_to_async(stop, thread_sensitive=False)()
            await send(message)

        try:
            await application(scope, hear, say)
        except Exception:
            if said:
                raise
        if said:
            return
        # It knows no lifespan, as Django does not, and may say so by raising.
        for step in ("lifespan.startup", "lifespan.shutdown"):
            if step not in heard:
                await receive()
            await say({"type": f"{step}.complete"})

    return wrapped


def start_beside_runserver() -> None:
    """Start a worker, if the setting asks for it, in the process of ``runserver`` that serves."""
    if "runserver" not in sys.argv[1:2] or not app_settings.BACKGROUND_TASK_EMBEDDED:
        return
    from background_task.worker import reloading

    if reloading.is_restarted() or "--noreload" in sys.argv:
        start()
        reloading.end_when_told()
    elif threading.current_thread() is threading.main_thread():
        reloading.hand_on("SIGTERM", "SIGINT")


class _Embedded:
    """The thread.

    Args:
        every_process: see :func:`start`.
        after: the thread of the last one in this process, which may run something still.
    """

    def __init__(self, every_process: bool, after: threading.Thread | None) -> None:
        self._every_process = every_process
        self._after = after
        self._process = os.getpid()
        self._stopping = threading.Event()
        self._signals: Any = None
        self._thread = threading.Thread(target=self._work, name="embedded worker", daemon=True)

    @property
    def is_of_this_process(self) -> bool:
        """Whether it was started here, and not before a fork."""
        return self._process == os.getpid()

    def start(self) -> None:
        """Start the thread."""
        atexit.register(stop)
        self._thread.start()

    def stop(self, timeout: float) -> threading.Thread:
        """End the thread, and what it runs; return the one in which a function may go on."""
        from background_task.worker.shutdown import hand_back

        atexit.unregister(stop)
        self._stopping.set()
        if self._signals is not None:
            self._signals.exit_gracefully(None, None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            hand_back()
        after = self._after
        return after if after is not None and after.is_alive() else self._thread

    def _work(self) -> None:
        # Signals are not held off: what a task starts would inherit that.
        apps.ready_event.wait()  # it may be started by an app that is getting ready
        # Two of one process could not be told apart by others.
        while self._after is not None and self._after.is_alive() and not self._stopping.is_set():
            self._after.join(BETWEEN_TRIES)
        from background_task.storage.transient import TRANSIENT, reason
        from background_task.utils import ForcedStop

        while not self._stopping.is_set():
            try:
                self._take_turns()
            except ForcedStop:
                pass  # it gave way, and what ran took longer than SHUTDOWN_TIMEOUT to end
            except TRANSIENT as error:
                logger.warning("The embedded worker misses the database: %s", reason(error))
                self._stopping.wait(BETWEEN_TRIES)
            except BackgroundTaskError as error:  # which says what to do
                logger.error("The embedded worker cannot start yet: %s", error)
                self._stopping.wait(AFTER_A_FAILURE)
            except Exception:
                logger.exception("The embedded worker has failed; trying again")
                self._stopping.wait(AFTER_A_FAILURE)

    def _take_turns(self) -> None:
        """Work, as soon as no other process of this project does."""
        from background_task.storage import workers
        from background_task.storage.engine import Engine
        from background_task.tasks import tasks
        from background_task.worker.options import Options

        options = replace(Options.of({}), processes=1)
        using = options.database or tasks.queue_database()
        if self._every_process:
            self._run(tasks, options)
            return
        engine = Engine(using)
        try:
            if not engine.vendor.has_session_locks(engine.connection):
                raise RuntimeError(
                    "It cannot be told whether another process of this server takes tasks already. "
                    "Run manage.py process_tasks, or ask for one in every process."
                )
            engine.vendor.prepare_control(engine.connection)
            turn = _Turn(engine, workers.lock_key(f"embedded {settings.SETTINGS_MODULE}"))
            while not self._stopping.is_set():
                if turn.take():
                    try:
                        self._run(tasks, options, turn.keep)
                    finally:
                        turn.release()
                self._stopping.wait(BETWEEN_TRIES)
        finally:
            engine.close()

    def _run(self, tasks: Any, options: Any, keep: Callable[[], bool] = lambda: True) -> None:
        """Work, until :meth:`stop` or for as long as ``keep()`` says so."""
        from django.db import connections

        from background_task.utils import SignalManager
        from background_task.worker.process import Process

        self._signals = signals = SignalManager()  # outside the main thread it handles no signal
        over = threading.Event()

        def keep_checking() -> None:
            while not over.wait(BETWEEN_TRIES):
                try:
                    if keep():
                        continue
                    logger.warning("The embedded worker gives way to another, which was faster")
                except Exception as error:
                    logger.warning("The embedded worker gives way to another: %s", error)
                signals.exit_gracefully(None, None)
                return

        checking = threading.Thread(target=keep_checking, name="embedded turn", daemon=True)
        checking.start()
        try:
            if not self._stopping.is_set():
                Process(tasks, options, signals).run()
        finally:
            over.set()
            checking.join()
            signals.restore()
            with suppress(Exception):
                connections.close_all()  # this thread's own


class _Turn:
    """A lock that one process of this project has, on a connection of its own.

    No two threads may use it at a time: while a worker runs, it belongs to the one that checks.
    """

    def __init__(self, engine: Engine, key: int) -> None:
        self._engine = engine
        self._key = key
        self._lock: SessionLock | None = None

    def take(self) -> bool:
        """Take it, unless somebody has it; tells whether it is ours."""
        self._lock = self._engine.vendor.session_lock(self._engine.connection, self._key)
        return self._lock is not None

    def keep(self) -> bool:
        """Tell whether it is ours still; one that was lost with its connection is taken anew.

        While the database is away nobody can have it: nothing is taken then anyway, and there may
        be nobody to give way to.
        """
        from background_task.storage.transient import TRANSIENT

        engine = self._engine
        if self._lock is not None:
            with suppress(*TRANSIENT):
                engine.fetch("SELECT 1")
                return True
        self.release()  # SQLite's is a file, which is not lost with the connection
        engine.close()
        with suppress(*TRANSIENT):
            engine.vendor.prepare_control(engine.connection)
            return self.take()
        return True

    def release(self) -> None:
        """Let another have it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


_worker: _Embedded | None = None
_last: threading.Thread | None = None
