"""The processes that run tasks, as long as they live."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("background_task", "0006_attempts")]

    operations = [
        migrations.CreateModel(
            name="Worker",
            fields=[
                ("worker_id", models.CharField(max_length=64, primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=190)),
                ("supervisor", models.CharField(max_length=64, null=True)),
                ("queues", models.TextField(blank=True)),
                ("started_at", models.DateTimeField()),
                ("seen_at", models.DateTimeField()),
                ("lock_key", models.BigIntegerField(null=True)),
                ("held", models.TextField(blank=True)),
                ("requests", models.TextField(blank=True)),
            ],
            options={"indexes": [models.Index(fields=["seen_at"], name="background_task_seen")]},
        ),
    ]
