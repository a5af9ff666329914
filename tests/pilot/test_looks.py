"""Which probes run at all: none where a forward pass on one rank would wait for the others, and that is said."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from optland.pilot.budget import Budget
from optland.pilot.history import History
from optland.pilot.host import Host
from optland.pilot.looks import Looks


def looks(model: nn.Module, reads: str) -> Looks:
    host = Host([torch.optim.SGD(model.parameters(), lr=0.1)], model, lambda m, batch: m(batch).mean())
    return Looks(host, History(), Budget(0.1), reads=frozenset({reads}), shown=False)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_synchronised_statistics_on_several_ranks_turn_probes_off(
    norm: type[nn.Module], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("is_initialized", True), ("get_world_size", size), ("get_rank", 0)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    model = nn.Sequential(nn.Linear(2, 2), norm(2))
    if (norm, size) != (nn.SyncBatchNorm, 2):
        assert [probe.name for probe in looks(model, "edge/eta_c").probes] == ["edge"]
        return
    with pytest.warns(RuntimeWarning, match=r"probes \(edge\) .*\(SyncBatchNorm waits for all ranks"):
        assert looks(model, "edge/eta_c").probes == []
    with warnings.catch_warnings(action="error"):  # nobody asked for one
        assert looks(model, "train/loss").probes == []
