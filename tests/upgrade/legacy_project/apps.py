"""How Django knows the project's app."""

from django.apps import AppConfig


class ArchiveConfig(AppConfig):
    """Its label comes before ``background_task`` in the alphabet.

    So on a fresh database its tables, with their foreign keys, are made as soon as the
    predecessor's migrations have run, and before ours.
    """

    name = "legacy_project"
    label = "archive"
