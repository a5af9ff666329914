"""Policies by name or as objects, sorted by the place they take in a step; at most one may set a thing."""

from __future__ import annotations

from collections.abc import Sequence

from optland.control import AutoLR, NoiseBatch, SafeLR, StepPolicy
from optland.control.policies import POLICIES

__all__ = ["Policy", "choose_policies"]

Policy = AutoLR | SafeLR | NoiseBatch | StepPolicy


def choose_policies(
    policies: Sequence[str | Policy], *, two_pass: bool
) -> tuple[AutoLR | SafeLR | None, NoiseBatch | None, list[StepPolicy]]:
    """The learning-rate policy, the batch policy and the step policies out of names and objects."""
    if isinstance(policies, str):
        raise ValueError(f"policies is the string {policies!r}; use a list: [{policies!r}]")
    lr: AutoLR | SafeLR | None = None
    batch: NoiseBatch | None = None
    others: list[StepPolicy] = []
    for item in policies:
        policy = _by_name(item, two_pass=two_pass) if isinstance(item, str) else item
        if isinstance(policy, NoiseBatch):
            batch = policy
        elif isinstance(policy, StepPolicy):
            others.append(policy)
        elif lr is not None:
            raise ValueError(f"{lr.name} and {policy.name} both set the learning rate; choose one of them")
        else:
            lr = policy
    if batch is not None and any("batch_size" in p.needs for p in others):
        raise ValueError(f"{batch.name} and seesaw both set the batch size; choose one of them")
    return lr, batch, others


def _by_name(name: str, *, two_pass: bool) -> Policy:
    if name not in POLICIES:
        raise ValueError(f"policy {name!r} is not known; choose from {sorted(POLICIES)}")
    made: Policy = AutoLR(two_pass=two_pass) if name == "auto_lr" else POLICIES[name]()
    return made
