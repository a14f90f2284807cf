"""The options of a declaration beyond the predecessor's, at both doors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from background_task.exceptions import ArgumentTypeError, ArgumentValueError
from background_task.policies.arguments import did_you_mean
from background_task.policies.runs import NAMES, RunPolicy

__all__ = ["did_you_mean", "refuse_what_is_to_come", "run_policy"]

# What is planned, and must not be accepted and ignored until it works.
TO_COME = ("unique", "concurrency", "rate", "cron")


def run_policy(given: Mapping[str, Any], accepted: tuple[str, ...] = ()) -> RunPolicy:
    """Return the policy that the keywords of ``@background`` describe.

    Args:
        given: the keywords, all of which must be of the policy.
        accepted: other keywords that the decorator takes, for the message.

    Raises:
        ArgumentTypeError: a keyword is unknown.
        ArgumentValueError: a keyword names what does not work yet.
    """
    refuse_what_is_to_come(given)
    for name in given:
        if name not in NAMES:
            raise ArgumentTypeError(
                f"{name!r} is no option of @background.{did_you_mean(name, [*NAMES, *accepted])}"
            )
    return RunPolicy(**given)


def refuse_what_is_to_come(given: Mapping[str, Any]) -> None:
    """Refuse an option that a later version will have, rather than ignore it."""
    for name in given:
        if name.lower() in TO_COME:
            raise ArgumentValueError(
                f"{name} does not work in this version: remove it, or it would be ignored."
            )
