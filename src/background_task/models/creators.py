"""The creator of a task: any saved instance of any model."""

from __future__ import annotations

from typing import Any, Self, TypeVar

from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.core.checks import CheckMessage
from django.db import models

_LARGEST_INTEGER = 2**31 - 1


def _split(pk: Any) -> tuple[int | None, str | None]:
    """Return the two columns that hold ``pk``: the integer one where it fits, else the text."""
    if isinstance(pk, int) and not isinstance(pk, bool) and 0 <= pk <= _LARGEST_INTEGER:
        return pk, None
    return None, None if pk is None else str(pk)


class CreatorForeignKey(GenericForeignKey):
    """A generic foreign key whose keys may be of any type.

    The predecessor's integer column cannot hold a UUID, a text, or a number beyond 32 bits, and
    widening it would lock the predecessor's own code out of the table. Keys that do not fit stand
    in ``creator_key`` instead; the property ``creator_pk`` of the model reads and sets whichever
    it is, and is what this field takes for its key.
    """

    def _check_object_id_field(self) -> list[CheckMessage]:
        return []  # creator_pk is a property, which Django's own check does not know


class HasCreator(models.Model):
    """One property for the two columns that may hold the key of a creator."""

    # The columns themselves are declared where they belong in the order of all columns.
    creator_object_id: int | None
    creator_key: str | None

    class Meta:
        abstract = True

    @property
    def creator_pk(self) -> int | str | None:
        """The primary key of the creator, from whichever column holds it."""
        return self.creator_key if self.creator_object_id is None else self.creator_object_id

    @creator_pk.setter
    def creator_pk(self, pk: Any) -> None:
        self.creator_object_id, self.creator_key = _split(pk)


_Row = TypeVar("_Row", bound=models.Model)


class CreatedByQuerySet(models.QuerySet[_Row]):
    """Adds the filter by creator."""

    def created_by(self, creator: models.Model) -> Self:
        """Return the rows that ``creator``, a saved model instance, created."""
        number, key = _split(creator.pk)
        return self.filter(
            creator_content_type=ContentType.objects.get_for_model(creator),
            creator_object_id=number,
            creator_key=key,
        )
