"""The migrations of the predecessor as other databases have seen them."""

from django.db import migrations, models


def keys(field_class):
    """Return what alters the primary keys of both tables."""
    key = {"auto_created": True, "primary_key": True, "serialize": False, "verbose_name": "ID"}
    return [
        migrations.AlterField("completedtask", "id", field_class(**key)),
        migrations.AlterField("task", "id", field_class(**key)),
    ]


BIG = keys(models.BigAutoField)
SMALL = keys(models.AutoField)
