"""An index that is smaller where the database can make it so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.ddl_references import Statement


class NarrowedIndex(models.Index):
    """An index of the rows that fulfil a condition; on MySQL, which knows no other, of all rows.

    (Django's own ``condition`` makes no index at all where it cannot be had, and warns of it.)
    SQLite uses it for a statement that says part of the condition by the same words, with no
    parameter in it.

    Args:
        where: the condition.
        unique: whether no two of these rows may have the same values.
    """

    def __init__(self, *, where: models.Q, unique: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.where = where
        self.unique = unique

    def create_sql(
        self,
        model: type[models.Model],
        schema_editor: BaseDatabaseSchemaEditor,
        using: str = "",
        **kwargs: Any,
    ) -> Statement:
        """Return the statement that makes the index."""
        can = schema_editor.connection.features.supports_partial_indexes
        condition = self.where if can else None
        if self.unique:
            constraint = models.UniqueConstraint(
                fields=self.fields, name=self.name, condition=condition
            )
            return constraint.create_sql(model, schema_editor)  # type: ignore[return-value]
        index = models.Index(fields=self.fields, name=self.name, condition=condition)
        return index.create_sql(model, schema_editor, using, **kwargs)

    def deconstruct(self) -> tuple[str, Sequence[Any], dict[str, Any]]:
        """Add the condition to what a migration says."""
        path, arguments, options = super().deconstruct()
        own = {"where": self.where, **({"unique": True} if self.unique else {})}
        return path, arguments, {**options, **own}
