"""What ``TASKS[…]["OPTIONS"]`` may say to our backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from background_task.api.options import TO_COME, did_you_mean
from background_task.exceptions import ArgumentValueError, BackgroundTaskError
from background_task.policies.runs import NAMES, ONCE, RunPolicy

POLICY = tuple(name.upper() for name in NAMES)
NAMED_BY_PATH = ("BACKOFF", "RETRY_ON", "GIVE_UP_ON")
KNOWN = (*POLICY, "ON_COMMIT", "DATABASE")


class Options:
    """The options of one alias. Wrong ones are reported by the checks, and refused when used."""

    def __init__(self, alias: str, given: Any) -> None:
        self._alias = alias
        self._given = given if isinstance(given, Mapping) else {}
        self._is_mapping = isinstance(given, Mapping)

    @property
    def on_commit(self) -> bool:
        """Whether rows are stored when the caller's transaction is committed."""
        return bool(self._given.get("ON_COMMIT", False))

    @property
    def is_atomic(self) -> bool:
        """Whether tasks that say nothing themselves are one transaction."""
        return self._given.get("ATOMIC") is True

    @property
    def database(self) -> str | None:
        """The alias of the database that the rows are in; None leaves it to the routers."""
        given = self._given.get("DATABASE")
        return None if given is None else str(given)

    @cached_property
    def policy(self) -> RunPolicy:
        """What holds for tasks that say nothing themselves.

        Raises:
            ImproperlyConfigured: an option is wrong.
        """
        for _, text, hint in self._problems():
            raise ImproperlyConfigured(f"{text} {hint}")
        return RunPolicy(**self._policy_options()).over(ONCE)

    def check(self) -> list[CheckMessage]:
        """Return E005 for an option that is unknown, E006 for one of a wrong value."""
        return [
            Error(text, hint=hint, id=f"background_task.{number}")
            for number, text, hint in self._problems()
        ]

    def _problems(self) -> Iterator[tuple[str, str, str]]:
        where = f'TASKS["{self._alias}"]["OPTIONS"]'
        if not self._is_mapping:
            yield "E006", f"{where} is no dict.", "Give a dict of options, or none."
        for name in self._given:
            if str(name).lower() in TO_COME:
                yield (
                    "E005",
                    f"{where} has the option {name!r}, which does not work in this version.",
                    "Remove it, or it would be ignored.",
                )
            elif name not in KNOWN:
                upper = str(name).upper()
                nearest = did_you_mean(upper, KNOWN).strip()
                if upper in KNOWN:
                    nearest = f"The options are in upper case: {upper}."
                yield (
                    "E005",
                    f"{where} has the unknown option {name!r}.",
                    nearest or f"The options are {', '.join(KNOWN)}.",
                )
        if not isinstance(self._given.get("ON_COMMIT", False), bool):
            yield "E006", f"{where}: ON_COMMIT must be True or False.", "Correct it."
        if self.database is not None and self.database not in settings.DATABASES:
            yield (
                "E006",
                f"{where}: DATABASE is {self.database!r}, which DATABASES does not have.",
                did_you_mean(self.database, settings.DATABASES).strip()
                or f"The databases are {', '.join(settings.DATABASES)}.",
            )
        given = [name for name in POLICY if name in self._given]
        # Each by itself, then what they say together.
        errors = list(filter(None, [self._wrong([name]) for name in given]))
        for error in errors or filter(None, [self._wrong(given)]):
            yield "E006", f"{where}: {error}", "Correct it; the names are in upper case."

    def _wrong(self, names: Iterable[str]) -> BackgroundTaskError | None:
        try:
            RunPolicy(**self._policy_options(names))
        except BackgroundTaskError as error:
            return error
        return None

    def _policy_options(self, names: Iterable[str] = POLICY) -> dict[str, Any]:
        return {
            name.lower(): _imported(name, self._given[name])
            if name in NAMED_BY_PATH
            else self._given[name]
            for name in names
            if name in self._given
        }


def _imported(name: str, value: Any) -> Any:
    """Return what a dotted path names; settings cannot import what needs the settings."""
    if isinstance(value, str):
        try:
            return import_string(value)
        except ImportError as error:
            raise ArgumentValueError(
                f"{name} is {value!r}, which cannot be imported: {error}"
            ) from None
    if isinstance(value, list | tuple | set | frozenset):
        return [_imported(name, each) for each in value]
    return value
