"""The options of a declaration beyond the predecessor's, at both doors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def require_function(decorator: str, given: Any) -> Callable[..., Any]:
    """Return what is to be marked as a task, if that can be.

    Raises:
        ArgumentTypeError: it is no function, or marked already.
    """
    if hasattr(given, "task_function") or hasattr(given, "module_path"):
        raise ArgumentTypeError(
            f"{given!r:.80} is a task already: mark the function with {decorator} only. "
            "A function marked with @background has .enqueue(), too."
        )
    if not callable(given):
        raise ArgumentTypeError(
            f"{decorator} marks functions, not {type(given).__name__} ({given!r:.80})."
        )
    return given  # type: ignore[no-any-return]


def refuse_what_is_to_come(given: Mapping[str, Any]) -> None:
    """Refuse an option that a later version will have, rather than ignore it."""
    for name in given:
        if name.lower() in TO_COME:
            raise ArgumentValueError(
                f"{name} does not work in this version: remove it, or it would be ignored."
            )
