"""A name that other histories hold; it does nothing here.

Django4-background-tasks made the keys 32-bit again.
The three known histories are branches beside each other, so that each of them is consistent;
0005 joins them.
"""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("background_task", "0003_auto_20210410_1529")]

    operations = []
