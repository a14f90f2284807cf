"""What the documents say agrees with the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from django.dispatch import Signal
from django.test import override_settings

from background_task import background, checks, exceptions, settings, signals, testing
from background_task._compat import django_tasks
from background_task.backends.options import KNOWN
from background_task.management.commands.process_tasks import Command
from background_task.models import CompletedTask, Task
from background_task.states import State
from background_task.tasks import tasks
from background_task.worker.duties import Duties

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


@pytest.mark.parametrize("language", ["python", "console"])
def test_the_two_readmes_show_the_same_code(language: str) -> None:
    assert blocks("README.md", language)
    assert blocks("README.md", language) == blocks("README.es.md", language)


def test_the_two_readmes_have_the_same_parts() -> None:
    english, spanish = (
        re.findall(r"^#+ ", (ROOT / name).read_text(), re.MULTILINE)
        for name in ("README.md", "README.es.md")
    )
    assert english == spanish


@pytest.mark.django_db
def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [block for block in blocks("README.md", "python") if "def greet" in block]
    tasks._tasks.clear()
    names = {"__name__": "api.tasks"}
    exec(compile(code, "README.md", "exec"), names)
    names["greet"]("amigos", schedule=0)  # type: ignore[operator]
    Duties(tasks).keep_declared_chains()
    while tasks.run_next_task():
        pass
    assert sorted(capsys.readouterr().out.splitlines()) == ["Hola amigos!", "ten seconds more"]
    assert CompletedTask.objects.count() == 2
    assert Task.objects.get().repeat == 10


def declared_in(document: str) -> dict[str, Any]:
    """Run the first example of Django's decorator in a document, short of its calls."""
    code = next(block for block in blocks(document, "python") if "@task" in block)
    code = code.partition("\n\nresult = ")[0]
    names: dict[str, Any] = {"__name__": "project.documented", "deliver": str.upper}
    exec(code.replace("from django.tasks", f"from {django_tasks.__name__}"), names)
    return names


def value_of(task: Any, *args: Any) -> Any:
    result = task.enqueue(*args)
    assert tasks.run_next_task()
    return task.get_result(result.id).return_value


@pytest.mark.django_db
def test_the_example_of_djangos_tasks_in_the_readme_runs() -> None:
    assert value_of(declared_in("README.md")["add"], 1, 2) == 3


@pytest.mark.django_db
def test_the_first_example_of_the_page_on_djangos_tasks_runs() -> None:
    setting = blocks("docs/django-tasks.md", "python")[0].partition("=")[2]
    with override_settings(TASKS=ast.literal_eval(setting.strip())):
        assert value_of(declared_in("docs/django-tasks.md")["send"], "ana") == "ANA"


@pytest.mark.django_db
def test_the_examples_of_the_page_on_testing_pass() -> None:
    names: dict[str, Any] = {"__name__": "project.documented"}
    greet = background("api.tasks.greet")(lambda name: None)
    names |= {"greet": greet, "register": lambda address: greet(address)}
    names["captured_tasks"] = testing.captured_tasks
    for block in blocks("docs/testing.md", "python"):
        exec(block, names)
        Task.objects.all().delete()
    names["test_a_greeting"](testing.run_due_tasks)
    names["GreetingTests"]("test_a_greeting_is_sent_in_an_hour").debug()


@pytest.mark.parametrize("option", KNOWN)
def test_every_option_of_the_backend_is_in_the_documents(option: str) -> None:
    assert f"`{option}`" in (ROOT / "docs" / "django-tasks.md").read_text()


def test_every_system_check_is_in_the_reference() -> None:
    ids = re.findall(r"\b([EW]\d{3}):", "".join(str(vars(checks)[n].__doc__) for n in vars(checks)))
    ids += re.findall(r"[EW]\d{3}", str(checks.importable_tasks.__doc__))
    assert len(set(ids)) >= 5
    assert all(f"background_task.{number}" in REFERENCE for number in ids)


@pytest.mark.parametrize("option", [names[0] for names, _ in Command.OPTIONS])
def test_every_option_of_the_worker_is_in_the_reference(option: str) -> None:
    assert f"`{option}" in REFERENCE


@pytest.mark.parametrize(
    "name", [name for name, value in vars(signals).items() if isinstance(value, Signal)]
)
def test_every_signal_is_in_the_table_of_signals(name: str) -> None:
    assert re.search(rf"^{name} ", str(signals.__doc__), re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in vars(exceptions) if name.endswith("Error")])
def test_every_error_is_in_the_tree_of_errors(name: str) -> None:
    assert name in str(exceptions.__doc__)


@pytest.mark.parametrize("state", State)
def test_every_state_is_in_the_drawing(state: State) -> None:
    import background_task.states

    assert state.name in str(background_task.states.__doc__)
    assert state.name in (ROOT / "ARCHITECTURE.md").read_text()


@pytest.mark.parametrize(
    "name", [n for n, v in vars(settings.AppSettings).items() if isinstance(v, property)]
)
def test_every_setting_tells_type_default_and_meaning(name: str) -> None:
    assert re.match(r"\S+.*, .+: .+", str(vars(settings.AppSettings)[name].__doc__), re.DOTALL)


def test_every_room_is_on_the_map() -> None:
    package = ROOT / "src" / "background_task"
    rooms = {path.name for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    rooms -= {"__init__.py", "__pycache__", "migrations"}
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    assert [room for room in sorted(rooms) if f"`{room}" not in architecture] == []


@pytest.mark.parametrize("document", ["README.md", "README.es.md", "UPGRADING.md"])
def test_every_link_leads_to_a_file(document: str) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / document).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []
