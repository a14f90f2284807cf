"""The pool of threads in which tasks run with ``BACKGROUND_TASK_RUN_ASYNC``."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from typing import Any

from background_task import logs
from background_task.execution.connections import keep_out_of_pools
from background_task.execution.runs import runs
from background_task.models import Task
from background_task.utils import ForcedStop

logger = logs.named("background_task.tasks")


class PoolRunner:
    """Runs tasks in a pool of threads, made when it is first needed."""

    _pool_instance: ThreadPool | None = None

    def __init__(self, bg_runner: Callable[..., None], num_processes: int) -> None:
        self._bg_runner = bg_runner
        self._num_processes = num_processes
        self._busy = 0
        self._changed = threading.Condition()
        self._thread = threading.local()
        self.on_free: Callable[[], None] = lambda: None

    @property
    def _pool(self) -> ThreadPool:
        if self._pool_instance is None:
            self._pool_instance = ThreadPool(processes=self._num_processes)
            # Left to the end of the interpreter, the pool would complain of what is gone by then.
            atexit.register(self.close)
        return self._pool_instance

    @property
    def free(self) -> int:
        """How many threads have nothing to do."""
        return self._num_processes - self._busy

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller runs in one of the threads, that is, is a task."""
        return getattr(self._thread, "is_of_pool", False)

    def run(self, proxy_task: Any, task: Task | None = None, *args: Any, **kwargs: Any) -> None:
        """Hand the run to a thread and return at once."""
        with self._changed:
            self._busy += 1
        runs.begin(task)  # a thread may be slow to do so
        self._pool.apply_async(self._job, (proxy_task, task, *args), kwargs)

    __call__ = run

    def _job(self, proxy_task: Any, task: Task | None, *args: Any, **kwargs: Any) -> None:
        try:
            if not self.is_current_thread:
                self._thread.is_of_pool = True
                keep_out_of_pools()
            self._bg_runner(proxy_task, task, *args, **kwargs)
        except ForcedStop:
            pass  # the row has been handed back
        except BaseException:
            logger.exception("A thread of the pool failed")
        finally:
            runs.end(task)
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()
            self.on_free()

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until no task runs, for ``timeout`` seconds at most; tells whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, timeout)

    def close(self) -> None:
        """End the threads, and with them their connections; the next run makes new ones."""
        if self._pool_instance is not None:
            self._pool_instance.terminate()
            self._pool_instance = None
