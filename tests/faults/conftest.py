"""The unbroken run that every broken one is compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.runs import final, run


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    ended = run(folder)
    assert ended.code == 0, ended.printed
    decided = {decision["actuator"] for decision in final(folder)["pilot"]["decisions"]}
    assert decided >= {"batch_size", "rewind"}, "the run is to have everything that a resume could get wrong"
    return folder
