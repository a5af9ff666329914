"""Replicas that drift apart, in two real processes, made in two ways; replicas that stay together raise nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from optland.doctor import watch

rank, fault, store = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(rank if fault == "seeds" else 0)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
trained = DistributedDataParallel(model) if fault == "none" else model
optimizer = torch.optim.SGD(model.parameters(), 0.5)
torch.manual_seed(10 + rank)
x = torch.randn(64, 4)
y = x[:, :3].argmax(1)
with watch(trained, optimizer, replicas=True) as doctor:
    for _ in range(50):
        optimizer.zero_grad()
        loss = F.cross_entropy(trained(x), y)
        loss.backward()
        if fault == "seeds":
            for p in model.parameters():
                dist.all_reduce(p.grad)
                p.grad /= 2
        optimizer.step()
        doctor.after_step((x, y), loss)
print(doctor.diagnosis.findings[0].symptom if doctor.diagnosis.findings else "nothing")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"), [("gradients", "replicas_drift"), ("seeds", "replicas_drift"), ("none", "nothing")]
)
def test_replicas(tmp_path: Path, fault: str, said: str) -> None:
    command = [sys.executable, "-c", SCRIPT]
    started = [
        subprocess.Popen(
            [*command, str(rank), fault, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    heard = [process.communicate(timeout=240)[0].strip() for process in started]
    assert heard == [said, said]
