"""How Sphinx builds these pages; ``scripts/check`` does it with warnings as errors."""

import inspect
from pathlib import Path

import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "background_task"]
)
django.setup()

project = "django-background-tasks2"
author = copyright = "the django-background-tasks2 contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"


def write_settings() -> None:
    """Make the table of settings from the properties that read them.

    Raises:
        RuntimeError: it was another one. It is written now, and can be looked at.
    """
    from background_task.settings import AppSettings

    lines = ["| Setting | Type and default, meaning |", "|---|---|"]
    for name, value in vars(AppSettings).items():
        if isinstance(value, property):
            text = " ".join((inspect.getdoc(value.fget) or "").split()).replace("``", "`")
            lines.append(f"| `{name}` | {text} |")
    page = Path(__file__).parent / "settings.md"
    before = page.read_text(encoding="utf-8")
    above, _, _ = before.partition(lines[0])
    after = "\n".join([above + lines[0], *lines[1:], ""])
    if after != before:
        page.write_text(after, encoding="utf-8")
        raise RuntimeError("docs/settings.md was out of date; it is written anew. Build again.")


write_settings()
