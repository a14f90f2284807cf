"""What a call of a task may carry, and the bytes it is stored as.

Every function either returns the value to store or raises :class:`ArgumentTypeError` or
:class:`ArgumentValueError` with the name of the argument, what was expected, and the remedy.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from typing import Any, NamedTuple

from django.conf import settings
from django.db import models
from django.utils import timezone
from django.utils.functional import Promise

from background_task.exceptions import ArgumentTypeError, ArgumentValueError

LONGEST_NAME = 190
LONGEST_VERBOSE_NAME = 255
INTEGER = range(-(2**31), 2**31)
SECONDS = range(-(10**11), 10**11)  # some 3,000 years: what a date can still be moved by


# The same as json.dumps(…, sort_keys=True), which would make an encoder each time.
_encode = json.JSONEncoder(sort_keys=True).encode

# What JSON gives back as it was.
_PLAIN = frozenset({str, int, float, bool, type(None)})


def are_plain(args: Iterable[Any]) -> bool:
    """Tell at a glance of arguments that JSON does not change them; False is no verdict."""
    return all(type(each) in _PLAIN for each in args)


def serialize(args: Any, kwargs: Any) -> str:
    """Return the JSON text that is stored as ``task_params``.

    The bytes are the predecessor's: Python's default separators, ASCII, keys sorted. What JSON
    changes without complaint (a tuple becomes a list, a number as a key becomes text) is accepted.
    """
    try:
        try:
            return _encode((args, kwargs))
        except TypeError:  # perhaps since numbers and text, as keys, cannot be sorted
            return _encode(with_text_keys((args, kwargs)))
    except (TypeError, ValueError, RecursionError) as error:
        where = _first_unserializable(args, kwargs)
        remedy = "pass plain values: text, numbers, booleans, None, lists and dicts of them"
        raise ArgumentTypeError(
            f"{where} cannot be stored as JSON ({error or type(error).__name__}); {remedy}. "
            "For a model instance pass its primary key, for a date its isoformat()."
        ) from error


def with_text_keys(value: Any) -> Any:
    """Return the same with the keys that JSON would make of others: ``{1: 2}`` as ``{"1": 2}``.

    Raises:
        ArgumentTypeError: two keys of a dict would become one, and a value be lost.
    """
    if isinstance(value, dict):
        found: dict[Any, Any] = {}
        for key, each in value.items():
            text = key if isinstance(key, str) else next(iter(json.loads(json.dumps({key: 0}))))
            if text in found:
                raise ArgumentTypeError(
                    f"A dict has two keys that are {text!r} as text, which is all that JSON knows "
                    "as keys: one of their values would be lost."
                )
            found[text] = with_text_keys(each)
        return found
    if isinstance(value, list | tuple):
        return [with_text_keys(each) for each in value]
    return value


_decode = json.JSONDecoder().raw_decode


def decoded(params: str) -> Any:
    """Return what :func:`serialize` has made a text of.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        value, end = _decode(params)
    except ValueError:
        return json.loads(params)  # there may be space before it, in what was edited by hand
    return value if end == len(params) else json.loads(params)


def _first_unserializable(args: Any, kwargs: Any) -> str:
    named: list[tuple[str, Any]] = []
    if isinstance(args, list | tuple):
        named += [(f"Positional argument {i}", value) for i, value in enumerate(args, 1)]
    if isinstance(kwargs, Mapping):
        named += [(f"Argument {key!r}", value) for key, value in kwargs.items()]
    for name, value in named:
        try:
            json.dumps(value, sort_keys=True)
        except (TypeError, ValueError, RecursionError):
            return f"{name} of type {type(value).__name__}"
    return "The arguments of the task"


def fingerprint(task_name: str, task_params: str) -> str:
    """Return the ``task_hash``: SHA-1 over name and arguments, by which equal tasks are found."""
    return sha1((task_name + task_params).encode(), usedforsecurity=False).hexdigest()


def check_signature(
    name: str, function: Callable[..., Any], args: Any, kwargs: Any, options: Sequence[str]
) -> None:
    """Refuse a call that ``function`` could not be called with, misspelt options among them.

    What is asked is the object that will be called, not what it wraps: a decorator that supplies
    arguments of its own has the last word.
    """
    signature, most, least = _signature(function)
    if signature is None:
        return  # a builtin that does not tell; the worker will find out
    if not kwargs and least <= len(args) <= most:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        bare = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
        shown = signature.replace(parameters=bare, return_annotation=signature.empty)
        message = f"{name}{shown} cannot be called like this: {error}."
        accepted = [*signature.parameters, *options]
        for unknown in [key for key in kwargs if key not in signature.parameters]:
            message += did_you_mean(unknown, accepted)
        if next(iter(signature.parameters), None) in ("self", "cls"):
            message += " Methods cannot be tasks: make it a function and pass the primary key."
        raise ArgumentTypeError(message) from None


class _Signature(NamedTuple):
    """What a function takes: in full, and how many arguments it takes by their positions alone."""

    full: inspect.Signature | None
    most: float = -1
    least: int = 0


@functools.lru_cache(maxsize=512)
def _remembered_signature(function: Callable[..., Any]) -> _Signature:
    try:
        full = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return _Signature(None)
    each = full.parameters.values()
    needed = [one for one in each if one.default is one.empty]
    if any(one.kind is one.KEYWORD_ONLY for one in needed):
        return _Signature(full)
    by_position = [one for one in each if one.kind in (one.POSITIONAL_ONLY, _EITHER)]
    is_open = any(one.kind is one.VAR_POSITIONAL for one in each)
    least = sum(one in by_position for one in needed)
    return _Signature(full, math.inf if is_open else len(by_position), least)


_EITHER = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _signature(function: Callable[..., Any]) -> _Signature:
    try:
        return _remembered_signature(function)
    except TypeError:  # it cannot be a key of a dict
        return _remembered_signature.__wrapped__(function)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a sentence that names the known word nearest to ``word``, or nothing."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {nearest[0]!r} instead of {word!r}?" if nearest else ""


def text(argument: str, value: Any, longest: int) -> str | None:
    """Check a short text that a database column of ``longest`` characters has to hold."""
    if value is None:
        return None
    if isinstance(value, Promise):  # a lazy translation
        value = str(value)
    if not isinstance(value, str):
        raise ArgumentTypeError(
            f"{argument} must be text or None, not {type(value).__name__} ({value!r:.80})."
        )
    if len(value) > longest:
        raise ArgumentValueError(
            f"{argument} has {len(value)} characters, at most {longest} can be stored: "
            f"shorten {value[:40]!r}…"
        )
    if "\x00" in value or not _can_be_encoded(value):
        raise ArgumentValueError(
            f"{argument} contains a character that no database stores, NUL or half of a pair: "
            f"remove it from {value[:40]!r}."
        )
    return value


def _can_be_encoded(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def task_name(value: Any) -> str:
    """Check the name of a task: text of 1 to 190 characters."""
    checked = text("The task name", value, LONGEST_NAME)
    if not checked:
        raise ArgumentValueError(
            "The task name is empty: give one of 1 to 190 characters, e.g. @background('my.name')."
        )
    return checked


def whole_number(argument: str, value: Any, allowed: range) -> int:
    """Check a whole number; a float that is one, such as 60.0, counts."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int):
        raise ArgumentTypeError(
            f"{argument} must be a whole number, not {type(value).__name__} ({value!r:.80})."
        )
    if value not in allowed:
        raise ArgumentValueError(
            f"{argument} is {value}; it must lie between {allowed.start} and {allowed.stop - 1}."
        )
    return value


def flag(argument: str, value: Any) -> bool:
    """Check a yes or no: True, False, 1, 0 or None."""
    if value is None or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise ArgumentTypeError(
        f"{argument} must be True or False, not {type(value).__name__} ({value!r:.80})."
    )


def priority(value: Any) -> int:
    """Check a priority: any number that a 32-bit column holds; None is 0."""
    return 0 if value is None else whole_number("priority", value, INTEGER)


def period(argument: str, value: Any) -> int:
    """Return ``value``, seconds or a timedelta, as whole seconds; None and 0 mean "never"."""
    if value is None:
        return 0
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not isinstance(value, int | float):
        raise ArgumentTypeError(
            f"{argument} must be a number of seconds or a timedelta, not "
            f"{type(value).__name__} ({value!r:.80})."
        )
    if not math.isfinite(value) or value != int(value):
        raise ArgumentValueError(
            f"{argument} is {value}; it must be a whole number of seconds, 1 at least."
        )
    return whole_number(argument, int(value), SECONDS)


def moment(
    argument: str, value: datetime, *, is_strict: Callable[[], bool], stacklevel: int = 2
) -> datetime:
    """Return ``value`` as the kind of datetime the project stores.

    Under ``USE_TZ`` a naive value is read in the project's time zone, with a warning, or refused
    when ``is_strict()``, which is asked only then. Without ``USE_TZ`` an aware value is moved into
    the project's time zone. A value that is no date in UTC, such as ``datetime.max`` west of
    Greenwich, is refused: one database cannot store it, and another could never read it again.
    """
    naive = settings.USE_TZ and timezone.is_naive(value)
    if naive and is_strict():
        raise ArgumentValueError(
            f"{argument} is the naive datetime {value}, which BACKGROUND_TASK_STRICT_DATETIMES "
            "refuses: pass an aware one, e.g. timezone.now() + timedelta(minutes=5)."
        )
    if naive:
        zone = timezone.get_default_timezone_name()
        warnings.warn(
            f"{argument} is the naive datetime {value} while USE_TZ is on; it is read in the time "
            f"zone {zone}. Pass an aware one, e.g. timezone.now() + timedelta(minutes=5).",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )
    try:
        if naive:
            value = timezone.make_aware(value, timezone.get_default_timezone())
        if timezone.is_aware(value):
            value.astimezone(UTC)
        if not settings.USE_TZ and timezone.is_aware(value):
            value = timezone.make_naive(value, timezone.get_default_timezone())
    except OverflowError:
        raise ArgumentValueError(
            f"{argument} is {value}, which lies outside the calendar in UTC: give an earlier or "
            "later one, or None where nothing limits it."
        ) from None
    return value


def optional_moment(
    argument: str, value: Any, *, is_strict: Callable[[], bool], stacklevel: int = 2
) -> datetime | None:
    """The same for an argument that may be None."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise ArgumentTypeError(
            f"{argument} must be a datetime or None, not {type(value).__name__} ({value!r:.80})."
        )
    return moment(argument, value, is_strict=is_strict, stacklevel=stacklevel + 1)


def creator(value: Any) -> models.Model | None:
    """Check a creator: a model instance that is saved."""
    if value is None:
        return None
    # A lazy object (request.user) answers for what it wraps.
    if not isinstance(value, models.Model):
        raise ArgumentTypeError(
            f"creator must be a model instance or None, not {type(value).__name__} ({value!r:.80})."
        )
    if value.pk is None or value._state.adding:
        raise ArgumentValueError(
            f"creator is a {type(value).__name__} that is not saved: call its save() first."
        )
    return value
