"""Real trainers; each test needs the library it is about, which ``make hosts`` installs."""

from __future__ import annotations

import importlib.util

import pytest

PACKAGES = {
    "Lightning": "lightning",
    "HF Trainer": "transformers",
    "Accelerate": "accelerate",
    "PEFT": "peft",
    "timm": "timm",
}
"""What has to be installed for the cells of a host; the others need nothing but the project's own environment."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out, in words, what is about a library that is not here."""
    for item in items:
        for cell in item.iter_markers("cell"):
            package = PACKAGES.get(cell.args[0])
            if package is not None and importlib.util.find_spec(package) is None:
                item.add_marker(
                    pytest.mark.skip(reason=f"{package} is not installed; `make hosts` installs it")
                )
