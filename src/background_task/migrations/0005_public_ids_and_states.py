"""Our first own migration: it joins the three known histories and adds what our engine needs.

- Both primary keys become 64-bit; Django alters the foreign keys that projects hold with them.
- Every new column may be NULL, so the predecessor's code can still store and run tasks.
- Indexes that no query reads go: each is paid for at every enqueue, claim and finish. They are
  found by looking, since histories differ in their names, and as altering a field would make SQLite
  copy the whole table each time. That of the type of the creator gives way to a narrower one.
"""

from django.db import migrations, models

from background_task.models.indexes import NarrowedIndex

UNREAD = {
    "Task": [
        "task_name",
        "task_hash",
        "priority",
        "run_at",
        "queue",
        "attempts",
        "failed_at",
        "locked_by",
        "locked_at",
    ],
}
UNREAD["CompletedTask"] = UNREAD["Task"]

# How PostgreSQL keeps two tables of which one is rewritten all the time and the other only grows:
# room for an updated row beside its old version, and a vacuum before the dead rows slow a claim.
STORAGE = {
    "Task": (
        "fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, "
        "autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 1, "
        "autovacuum_analyze_scale_factor = 0.05"
    ),
    "CompletedTask": "autovacuum_vacuum_insert_scale_factor = 0.1",
}


def drop_unread_indexes(apps, schema_editor):
    for model_name, columns in UNREAD.items():
        _drop_indexes(apps, schema_editor, model_name, columns)


def narrow_creator_indexes(apps, schema_editor):
    if not schema_editor.connection.features.supports_partial_indexes:
        return  # MySQL, where a foreign key needs an index of all rows
    for model_name, index in CREATED_BY.items():
        schema_editor.add_index(apps.get_model("background_task", model_name), index)
        _drop_indexes(apps, schema_editor, model_name, ["creator_content_type_id"])


def _drop_indexes(apps, schema_editor, model_name, columns):
    connection = schema_editor.connection
    model = apps.get_model("background_task", model_name)
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, model._meta.db_table)
    for name, index in found.items():
        if (
            index["index"]
            and not (index["unique"] or index["primary_key"])
            and index["columns"]
            and len(index["columns"]) == 1
            and index["columns"][0] in columns
        ):
            schema_editor.remove_index(model, _named(models.Index(fields=["id"], name="x"), name))


def _named(index, name):
    index.name = name  # past the length that Django allows in new names
    return index


def restore_indexes(apps, schema_editor):
    for model_name, columns in UNREAD.items():
        model = apps.get_model("background_task", model_name)
        for column in columns:
            field = model._meta.get_field(column).clone()
            field.set_attributes_from_name(column)
            field.model = model
            field.db_index = True
            for statement in schema_editor._field_indexes_sql(model, field):
                schema_editor.execute(statement)


def widen_creator_indexes(apps, schema_editor):
    if not schema_editor.connection.features.supports_partial_indexes:
        return
    for model_name, index in CREATED_BY.items():
        model = apps.get_model("background_task", model_name)
        field = model._meta.get_field("creator_content_type")
        schema_editor.execute(schema_editor._create_index_sql(model, fields=[field]))
        schema_editor.remove_index(model, index)


def tune_postgresql(apps, schema_editor):
    _set_storage(apps, schema_editor, "SET", lambda options: options)


def untune_postgresql(apps, schema_editor):
    def names(options):
        return ", ".join(option.split(" = ")[0] for option in options.split(", "))

    _set_storage(apps, schema_editor, "RESET", names)


def _set_storage(apps, schema_editor, verb, form):
    if schema_editor.connection.vendor != "postgresql":
        return
    for model_name, options in STORAGE.items():
        table = apps.get_model("background_task", model_name)._meta.db_table
        name = schema_editor.quote_name(table)
        schema_editor.execute(f"ALTER TABLE {name} {verb} ({form(options)})")


def unindexed(model_name):
    """Return what tells Django's state that the single-column indexes are gone."""
    fields = {
        "task_name": models.CharField(max_length=190),
        "task_hash": models.CharField(max_length=40),
        "priority": models.IntegerField(default=0),
        "run_at": models.DateTimeField(),
        "queue": models.CharField(blank=True, max_length=190, null=True),
        "attempts": models.IntegerField(default=0),
        "failed_at": models.DateTimeField(blank=True, null=True),
        "locked_by": models.CharField(blank=True, max_length=64, null=True),
        "locked_at": models.DateTimeField(blank=True, null=True),
    }
    return [migrations.AlterField(model_name, name, field) for name, field in fields.items()]


def creator(related_name):
    return models.ForeignKey(
        "contenttypes.ContentType",
        blank=True,
        db_index=False,
        null=True,
        on_delete=models.CASCADE,
        related_name=related_name,
    )


def created_by(name):
    return NarrowedIndex(
        fields=["creator_content_type", "creator_object_id"],
        name=name,
        where=models.Q(creator_content_type__isnull=False),
    )


CREATED_BY = {
    "Task": created_by("background_task_created_by"),
    "CompletedTask": created_by("background_task_done_for"),
}


def nullable(field_class, **options):
    return field_class(blank=True, editable=False, null=True, **options)


def added(model_name, state_choices):
    fields = {
        "creator_key": nullable(models.CharField, max_length=255),
        "result_id": nullable(models.UUIDField),
        "state": nullable(models.SmallIntegerField, choices=state_choices),
        "enqueued_at": nullable(models.DateTimeField),
        "started_at": nullable(models.DateTimeField),
        "worker_id": nullable(models.CharField, max_length=64),
        "backend": nullable(models.CharField, max_length=64),
        "losses": nullable(models.SmallIntegerField),
        "options": nullable(models.TextField),
        "return_value": nullable(models.TextField),
    }
    return [migrations.AddField(model_name, name, field) for name, field in fields.items()]


class WidenKey(migrations.AlterField):
    """Makes a primary key 64-bit, and lets it be so when the migration is taken back.

    The predecessor works on wide keys too. Narrowing them could lose a row, and on MySQL fails as
    soon as a project refers to one, since Django plans that step without the project's tables.
    """

    def __init__(self, model_name, name="id", field=None, preserve_default=True):
        key = models.BigAutoField(
            auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
        )
        super().__init__(model_name, name, field or key, preserve_default)

    def database_backwards(self, app_label, schema_editor, from_state, to_state):
        pass


class Migration(migrations.Migration):
    dependencies = [
        ("background_task", "0003_alter_completedtask_id_alter_task_id"),
        ("background_task", "0004_auto_20220202_1721"),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[*unindexed("task"), *unindexed("completedtask")],
            database_operations=[migrations.RunPython(drop_unread_indexes, restore_indexes)],
        ),
        WidenKey("task"),
        WidenKey("completedtask"),
        *added("task", [(1, "scheduled"), (2, "ready"), (3, "running"), (4, "rescued")]),
        *added("completedtask", [(10, "successful"), (11, "failed"), (12, "cancelled")]),
        migrations.AddField("task", "epoch", nullable(models.IntegerField)),
        migrations.AddField("task", "unique_key", nullable(models.CharField, max_length=190)),
        migrations.AddConstraint(
            "task",
            models.UniqueConstraint(fields=["result_id"], name="background_task_result_id"),
        ),
        migrations.AddConstraint(
            "completedtask",
            models.UniqueConstraint(fields=["result_id"], name="background_task_done_result_id"),
        ),
        migrations.AddIndex(
            "task", models.Index(fields=["task_hash"], name="background_task_hash")
        ),
        migrations.AddIndex(
            "task",
            NarrowedIndex(
                fields=["state", "-priority", "run_at", "id"],
                name="background_task_ready",
                where=models.Q(state=2) | models.Q(state=4),
            ),
        ),
        migrations.AddIndex(
            "task",
            NarrowedIndex(
                fields=["state", "queue", "-priority", "run_at", "id"],
                name="background_task_ready_by_queue",
                where=models.Q(state=2) | models.Q(state=4),
            ),
        ),
        migrations.AddIndex(
            "task",
            NarrowedIndex(
                fields=["state", "run_at"],
                name="background_task_pending",
                where=models.Q(state=None) | models.Q(state=1) | models.Q(state=3),
            ),
        ),
        migrations.AddIndex(
            "task",
            NarrowedIndex(
                fields=["unique_key"],
                name="background_task_unique_key",
                where=models.Q(unique_key__isnull=False),
                unique=True,
            ),
        ),
        migrations.AddIndex(
            "completedtask", models.Index(fields=["run_at"], name="background_task_finished")
        ),
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AddIndex("task", CREATED_BY["Task"]),
                migrations.AddIndex("completedtask", CREATED_BY["CompletedTask"]),
                migrations.AlterField("task", "creator_content_type", creator("background_task")),
                migrations.AlterField(
                    "completedtask", "creator_content_type", creator("completed_background_task")
                ),
            ],
            database_operations=[
                migrations.RunPython(narrow_creator_indexes, widen_creator_indexes)
            ],
        ),
        migrations.RunPython(tune_postgresql, untune_postgresql),
    ]
