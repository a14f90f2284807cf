"""What a worker is told: by the command line, then by the setting, then by default.

Parsed once, checked, and from then on a value.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from django.conf import settings

from background_task import logs
from background_task.api import aliases
from background_task.exceptions import ArgumentTypeError, ArgumentValueError
from background_task.policies import arguments
from background_task.records import Wanted
from background_task.settings import app_settings

logger = logs.named("background_task.tasks")

# Of the setting, whose keys are those of the command line in upper case.
SETTING = "BACKGROUND_TASK_WORKER"
EVERY = "*"


class Unsaid(float):
    """A default of the command line: nobody has said it, so the setting may."""


class UnsaidInt(int):
    """The same, as a whole number."""


@dataclass(frozen=True, slots=True)
class Queues:
    """Which queues a worker takes, in which order.

    Args:
        order: names, or ``*`` for all that are not named; earlier ones come first. Empty takes all.
        excluded: names that it leaves alone.
    """

    order: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    def steps(self, names: Collection[str], backend: str | None) -> list[Wanted]:
        """Return what to take, the most urgent queues first."""
        named = tuple(each for each in self.order if each != EVERY)
        return [
            Wanted(names, (), (*self.excluded, *named), backend)
            if each == EVERY
            else Wanted(names, (each,), (), backend)
            for each in self.order or (EVERY,)
        ]

    def all(self, names: Collection[str], backend: str | None) -> Wanted:
        """Return all that is taken, whatever the order."""
        queues = () if EVERY in self.order else self.order
        return Wanted(names, queues, self.excluded, backend)

    def __str__(self) -> str:
        taken = ", ".join(self.order) or EVERY
        return f"{taken} without {', '.join(self.excluded)}" if self.excluded else taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What one worker does; the sentences are those of its help.

    Raises:
        ArgumentTypeError, ArgumentValueError: a value cannot be meant, or two contradict each
            other; the message names the option.
    """

    duration: float = 0.0
    sleep: float = 5.0
    queues: Queues = field(default_factory=Queues)
    database: str | None = None
    backend: str | None = None
    processes: int = 1
    threads: int = 1
    concurrency: int = 100
    burst: bool = False
    max_tasks: int | None = None
    max_memory: float | None = None
    shutdown_timeout: float | None = None
    worker_name: str | None = None
    # Which of them only the setting has said.
    from_setting: frozenset[str] = frozenset()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Return what the options of the command say, completed by the setting."""
        said = {name: value for name, value in given.items() if _is_said(value)}
        setting = {name: value for name, value in _setting().items() if name not in said}
        try:
            return replace(cls._told({**setting, **said}), from_setting=frozenset(setting))
        except (ArgumentTypeError, ArgumentValueError) as error:
            text = str(error)
            if from_there := [name.upper() for name in setting if _option(name) in text]:
                text += f" The setting {SETTING} has {', '.join(from_there)}."
            raise type(error)(text) from None

    def by_one_thread(self) -> Options:
        """Return the same without more processes and threads, unless the call itself asks for them.

        For tests, whose transaction nobody else sees into, the setting says too much.
        """
        processes = 1 if "processes" in self.from_setting else self.processes
        threads = 1 if "threads" in self.from_setting else self.threads
        return replace(self, processes=processes, threads=threads)

    @classmethod
    def _told(cls, told: Mapping[str, Any]) -> Options:
        known: dict[str, Any] = {"threads": _threads_by_default()}
        for name in NUMBERS:
            if name in told:
                known[name] = _checked(_option(name), told[name], *NUMBERS[name])
        if known.get("processes") == 0:
            known["processes"] = os.cpu_count() or 1
        known["queues"] = Queues(
            _names("queue", told.get("queue")), _names("exclude_queue", told.get("exclude_queue"))
        )
        for name in ("database", "backend", "worker_name"):
            known[name] = _text(name, told.get(name))
        known["burst"] = told.get("burst", False)
        if not isinstance(known["burst"], bool):
            raise ArgumentTypeError(
                f"--burst must be True or False, not {type(known['burst']).__name__} "
                f"({known['burst']!r:.80})."
            )
        options = cls(**known)
        options._check()
        return options._with_database()

    def _check(self) -> None:
        both = [each for each in self.queues.order if each in self.queues.excluded]
        if both:
            raise ArgumentValueError(
                f"{_option('queue')} and {_option('exclude_queue')} both name {both[0]!r}: remove "
                "it from one of them."
            )
        if EVERY in self.queues.excluded:
            raise ArgumentValueError(
                f"{_option('exclude_queue')} is {EVERY!r}, so nothing would be taken: name queues."
            )
        if self.queues.excluded and self.queues.order and EVERY not in self.queues.order:
            raise ArgumentValueError(
                f"{_option('queue')} takes only {', '.join(self.queues.order)}, so there is "
                f"nothing for {_option('exclude_queue')} to leave out: remove one of them, or add "
                f"{EVERY!r} to the queues."
            )
        if self.database is not None and self.database not in settings.DATABASES:
            raise ArgumentValueError(
                f"{_option('database')} is {self.database!r}; the databases are "
                f"{', '.join(settings.DATABASES)}."
                f"{arguments.did_you_mean(self.database, settings.DATABASES)}"
            )

    def _with_database(self) -> Options:
        """Return the same with the database that the backend names."""
        if self.backend is None:
            return self
        known = getattr(settings, "TASKS", None) or {}
        if not aliases.exists(self.backend):
            raise ArgumentValueError(
                f"{_option('backend')} is {self.backend!r}; TASKS has {', '.join(known) or 'none'}."
                f"{arguments.did_you_mean(self.backend, known)}"
            )
        backend = aliases.backend(self.backend)
        if not getattr(backend, "is_of_background_task", False):
            raise ArgumentValueError(
                f"{_option('backend')} is {self.backend!r}, whose tasks another package runs: "
                f"{type(backend).__name__}."
            )
        if self.database is not None and self.database != backend.database:
            raise ArgumentValueError(
                f"{_option('database')} is {self.database!r}, but the backend {self.backend!r} "
                f"keeps its tasks in {backend.database!r}: leave the database out."
            )
        return replace(self, database=backend.database)


# More than anybody means, and still so few seconds that a thread can wait for them.
LARGEST = 1_000_000_000
# Python does not write out an integer of thousands of digits.
LARGEST_SHOWN = 10**100
# Each with the least and the most it may be, and whether it is a whole number. The system would
# refuse a process or a thread only when there was none left for anybody else either.
NUMBERS: dict[str, tuple[float, float, bool]] = {
    "duration": (-math.inf, LARGEST, False),
    "sleep": (0, LARGEST, False),
    "processes": (0, 1000, True),
    "threads": (1, 1000, True),
    "concurrency": (1, 100_000, True),
    "max_tasks": (1, LARGEST, True),
    "max_memory": (1, LARGEST, False),
    "shutdown_timeout": (0, LARGEST, False),
}
NAMES = (
    *NUMBERS,
    "queue",
    "exclude_queue",
    "database",
    "backend",
    "burst",
    "worker_name",
)


def check_setting() -> None:
    """Refuse a setting that cannot be meant.

    Raises:
        ArgumentTypeError, ArgumentValueError: see :class:`Options`.
    """
    Options.of({})


def _setting() -> dict[str, Any]:
    told = app_settings.BACKGROUND_TASK_WORKER
    if not isinstance(told, Mapping):
        raise ArgumentTypeError(
            f"The setting {SETTING} must be a dict, not {type(told).__name__} ({told!r:.80})."
        )
    known = [name.upper() for name in NAMES]
    for name in told:
        if name not in known:
            upper = str(name).upper()
            near = f" The keys are in upper case: {upper}." if upper in known else ""
            raise ArgumentValueError(
                f"The setting {SETTING} has the unknown key {name!r}."
                f"{near or arguments.did_you_mean(upper, known)} The keys are {', '.join(known)}."
            )
    return {name.lower(): value for name, value in told.items() if value is not None}


def _threads_by_default() -> int:
    if not app_settings.BACKGROUND_TASK_RUN_ASYNC:
        return 1
    count = app_settings.BACKGROUND_TASK_ASYNC_THREADS
    return int(_checked("The setting BACKGROUND_TASK_ASYNC_THREADS", count, *NUMBERS["threads"]))


def _is_said(value: Any) -> bool:
    return not (value is None or value is False or isinstance(value, Unsaid | UnsaidInt))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _checked(what: str, value: Any, least: float, most: float, is_whole: bool) -> Any:
    kind = "a whole number" if is_whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentTypeError(
            f"{what} must be {kind}, not {type(value).__name__} ({value!r:.80})."
        )
    if not least <= value <= most or (is_whole and value != int(value)):
        bounds = f"{most:,} or less" if least == -math.inf else f"{least:,} to {most:,}"
        shown = "out of all bounds" if abs(value) > LARGEST_SHOWN else value
        raise ArgumentValueError(f"{what} is {shown}; it must be {kind}, {bounds}.")
    return int(value) if is_whole else float(value)


def _names(name: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ArgumentTypeError(f"{_option(name)} must name queues, not {value!r:.80}.")
    names = [each.strip() for each in value]
    if not any(names):  # as with the predecessor; but it may be a variable that nobody has set
        logger.warning("%s names no queue, so it says nothing", _option(name))
    for each in names:
        arguments.text(f"{_option(name)}: a name", each, arguments.LONGEST_NAME)
    return tuple(dict.fromkeys(filter(None, names)))


def _text(name: str, value: Any) -> str | None:
    if value == "":
        raise ArgumentValueError(f"{_option(name)} is empty: name something, or leave it out.")
    return arguments.text(_option(name), value, arguments.LONGEST_NAME)
