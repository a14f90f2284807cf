from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    # As public projects write it: the name of the predecessor's last migration.
    dependencies = [("background_task", "0002_auto_20170927_1109")]
    operations = [
        migrations.CreateModel(
            "Note",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("text", models.TextField()),
                ("worker", models.CharField(max_length=20)),
            ],
        ),
        migrations.CreateModel(
            "Customer",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=20)),
            ],
        ),
        migrations.CreateModel(
            "Watch",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "task",
                    models.ForeignKey(
                        null=True, on_delete=models.SET_NULL, to="background_task.Task"
                    ),
                ),
                (
                    "done",
                    models.ForeignKey(
                        null=True, on_delete=models.CASCADE, to="background_task.CompletedTask"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            "Report",
            fields=[
                (
                    "done",
                    models.OneToOneField(
                        on_delete=models.CASCADE,
                        primary_key=True,
                        serialize=False,
                        to="background_task.CompletedTask",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            "Batch",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("tasks", models.ManyToManyField(to="background_task.Task")),
            ],
        ),
    ]
