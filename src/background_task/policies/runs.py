"""What a task says about its runs: when one is tried again, how long it may take, what it keeps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any

from asgiref.sync import iscoroutinefunction

from background_task.exceptions import (
    ArgumentTypeError,
    ArgumentValueError,
    InvalidTaskError,
    WorkerLostError,
    is_of_return_value,
)

LONGEST_DELAY = timedelta(days=3650)
LONGEST_TIMEOUT = 10**8  # some three years: what any clock can wait for, in seconds

Classes = tuple[type[BaseException], ...]
Backoff = float | tuple[float, ...] | Callable[[BaseException, Any], float | None]


def ladder(attempts: int, exponent: float = 4) -> timedelta:
    """Return how long to wait after attempt number ``attempts``: ``attempts ** exponent + 5`` s.

    The predecessor's ladder: 6, 21, 86, 261, 630, 1301 … seconds. It is cut off after ten years,
    where adding it to a date would soon overflow.
    """
    try:
        return min(timedelta(seconds=int(max(attempts, 0) ** exponent) + 5), LONGEST_DELAY)
    except OverflowError:
        return LONGEST_DELAY


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPolicy:
    """What a task says about its runs; None leaves it to the next policy, or to the default.

    Args:
        max_attempts: how many times the task is tried in all, 1 at least.
        backoff: how long to wait before the next attempt: seconds, 0 included; a list of seconds,
            the last of which holds for all further attempts; or a callable of ``(exception,
            task_result)`` that returns seconds, or None to give up. (The names are those that
            Django's own discussion of retries uses: django/new-features#142.)
        retry_on: exception classes; any other is not tried again.
        give_up_on: exception classes that are not tried again.
        max_losses: how many times the task runs again after its worker was lost.
        on_worker_loss: ``"retry"`` runs it again then, ``"fail"`` never does.
        timeout: how long a run may take, in seconds, or a timedelta. Then it is ended as failed.
        atomic: whether what a run writes and its success are one transaction, where the rows of the
            queue are. For functions only.

    Raises:
        ArgumentTypeError, ArgumentValueError: a value cannot be meant.
    """

    max_attempts: int | None = None
    backoff: Backoff | None = None
    retry_on: Classes | None = None
    give_up_on: Classes | None = None
    max_losses: int | None = None
    on_worker_loss: str | None = None
    timeout: float | None = None
    atomic: bool | None = None

    def __post_init__(self) -> None:
        checked = {
            "max_attempts": _count("max_attempts", self.max_attempts, 1),
            "max_losses": _count("max_losses", self.max_losses, 0),
            "backoff": _backoff(self.backoff),
            "retry_on": _classes("retry_on", self.retry_on),
            "give_up_on": _classes("give_up_on", self.give_up_on),
            "on_worker_loss": _on_worker_loss(self.on_worker_loss),
            "timeout": _timeout(self.timeout),
            "atomic": _flag("atomic", self.atomic),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.on_worker_loss == "fail" and self.max_losses:
            raise ArgumentValueError(
                f'on_worker_loss is "fail", so the task never runs again, and max_losses is '
                f"{self.max_losses}: leave one of them out."
            )

    def over(self, other: RunPolicy) -> RunPolicy:
        """Return this policy, with what it leaves open taken from ``other``."""
        given = {name: getattr(self, name) for name in NAMES if getattr(self, name) is not None}
        if self.max_losses is not None or self.on_worker_loss is not None:
            other = replace(other, max_losses=None, on_worker_loss=None)  # they say one thing
        return replace(other, **given)

    def losses_allowed(self, default: int) -> int:
        """Return how many workers may be lost over a task before it has failed."""
        if self.on_worker_loss == "fail":
            return 0
        return default if self.max_losses is None else self.max_losses

    def gives_up(self, error: BaseException | None, attempts: int) -> bool:
        """Tell whether attempt number ``attempts``, which ended with ``error``, was the last."""
        if isinstance(error, InvalidTaskError | WorkerLostError) or is_of_return_value(error):
            return True
        if self.max_attempts is not None and attempts >= self.max_attempts:
            return True
        if self.give_up_on is not None and isinstance(error, self.give_up_on):
            return True
        return self.retry_on is not None and not isinstance(error, self.retry_on)

    def delay(self, attempts: int, exponent: float) -> timedelta:
        """Return how long to wait after attempt number ``attempts``; not asked of a callable.

        Args:
            attempts: how many attempts there were, the last one included.
            exponent: of the predecessor's ladder, which holds where nothing is said.
        """
        if self.backoff is None or callable(self.backoff):
            return ladder(attempts, exponent)
        if isinstance(self.backoff, tuple):
            return in_seconds(self.backoff[min(max(attempts, 1), len(self.backoff)) - 1])
        return in_seconds(self.backoff)


# The names of what a policy may say, in the order of its fields.
NAMES = tuple(field.name for field in fields(RunPolicy))


def in_seconds(seconds: float) -> timedelta:
    """Return ``seconds`` as a delay that a date can be moved by."""
    return min(timedelta(seconds=min(max(seconds, 0), 10**9)), LONGEST_DELAY)


def check_seconds(argument: str, value: Any) -> float:
    """Check a delay in seconds: a number, 0 or more."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArgumentTypeError(
            f"{argument} must be a number of seconds, not {type(value).__name__} ({value!r:.80})."
        )
    if not 0 <= value < math.inf:
        raise ArgumentValueError(
            f"{argument} is {value!r:.80}; it must be a finite number of seconds, not negative."
        )
    return value


def _count(argument: str, value: Any, lowest: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(
            f"{argument} must be a whole number, not {type(value).__name__} ({value!r:.80})."
        )
    if value < lowest:
        raise ArgumentValueError(f"{argument} is {value}; it must be {lowest} at least.")
    return value


def _on_worker_loss(value: Any) -> str | None:
    if value is None or value in ("retry", "fail"):
        return None if value is None else str(value)
    raise ArgumentValueError(f'on_worker_loss is {value!r:.80}; it must be "retry" or "fail".')


def _timeout(value: Any) -> float | None:
    if value is None:
        return None
    seconds = check_seconds("timeout", value)
    if not seconds:
        raise ArgumentValueError("timeout is 0; it must be more, or None where nothing limits it.")
    if seconds > LONGEST_TIMEOUT:
        raise ArgumentValueError(
            f"timeout is {seconds!r:.80}; it must be {LONGEST_TIMEOUT} at most, or None where "
            "nothing limits it."
        )
    return seconds


def _flag(argument: str, value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise ArgumentTypeError(
        f"{argument} must be True or False, not {type(value).__name__} ({value!r:.80})."
    )


def _backoff(value: Any) -> Backoff | None:
    if value is None:
        return None
    if callable(value):
        return _asked(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        if not value:
            raise ArgumentValueError("backoff is an empty list: give one delay at least.")
        return tuple(check_seconds("backoff", each) for each in value)
    if not isinstance(value, int | float | timedelta):
        raise ArgumentTypeError(
            "backoff must be seconds, a list of seconds, or a callable of (exception, "
            f"task_result), not {type(value).__name__} ({value!r:.80})."
        )
    return check_seconds("backoff", value)


def _asked(value: Callable[..., Any]) -> Callable[[BaseException, Any], float | None]:
    if is_async(value):
        raise ArgumentTypeError(
            f"backoff is the async function {value!r:.80}; it must be a plain one, since nobody "
            "awaits it."
        )
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return value  # a builtin that does not tell
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ArgumentTypeError(
            f"backoff is {value!r:.80}, which cannot be called with (exception, task_result): "
            f"{error}."
        ) from None
    return value


def _classes(argument: str, value: Any) -> Classes | None:
    if value is None:
        return None
    is_many = isinstance(value, Collection) and not isinstance(value, str | bytes | type)
    classes = tuple(value) if is_many else (value,)
    for each in classes:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise ArgumentTypeError(
                f"{argument} must be an exception class or a list of them, not {each!r:.80}."
            )
    return classes


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether calling ``function`` gives a coroutine."""
    return iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)


def check_atomic(name: str, function: Callable[..., Any], policy: RunPolicy) -> None:
    """Refuse what cannot be: a transaction belongs to a thread, and a coroutine to none."""
    if policy.atomic and is_async(function):
        raise ArgumentValueError(
            f"{name} is async, and atomic=True is for plain functions only: say atomic=False, or "
            "do what has to be in one transaction by sync_to_async()."
        )


# Django promises no retry of a task; whoever wants one asks for it.
ONCE = RunPolicy(max_attempts=1)
