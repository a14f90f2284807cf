"""The tests that ship with the package hold with BACKGROUND_TASK_RUN_ASYNC too."""

from __future__ import annotations

from django.test import override_settings

from background_task.tests import test_tasks

for _name, _case in list(vars(test_tasks).items()):
    if isinstance(_case, type) and issubclass(_case, test_tasks.RunningTestCase):
        _threaded = type(f"{_name}InThreads", (_case,), {"__module__": __name__})
        globals()[_threaded.__name__] = override_settings(BACKGROUND_TASK_RUN_ASYNC=True)(_threaded)
