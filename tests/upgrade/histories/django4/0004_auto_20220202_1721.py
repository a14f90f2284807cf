from django.db import migrations

from histories import SMALL


class Migration(migrations.Migration):
    dependencies = [("background_task", "0003_auto_20210410_1529")]
    operations = SMALL
