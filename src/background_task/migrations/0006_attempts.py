"""The log of attempts that did not succeed: a table of its own, which nobody's old code writes."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("background_task", "0005_public_ids_and_states")]

    operations = [
        migrations.CreateModel(
            name="Attempt",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("result_id", models.UUIDField()),
                ("worker_id", models.CharField(max_length=64)),
                ("started_at", models.DateTimeField(null=True)),
                ("finished_at", models.DateTimeField()),
                ("exception_class_path", models.TextField()),
                ("traceback", models.TextField()),
            ],
            options={
                "indexes": [models.Index(fields=["result_id"], name="background_task_attempts_of")]
            },
        ),
    ]
