"""Checks of the contract of policies and hosts, for your own ones; those of this package pass them all.

::

    from optland.pilot.contract import check_host, check_policy

    check_policy(MyPolicy)    # or anything that makes one: lambda: MyPolicy(window=50)
    check_host(MyHost)        # called as Host is

A policy is given made signals and asked for its state; then it steers tiny runs. A host is asked what it can turn, and
is turned. What is wrong is raised in one AssertionError, a line for each check that fails. All checks take two seconds
on one core; random state is as before.

**Caveats.** A policy that never acts on these signals passes the checks of its decisions. A host is tried in a plain
loop on the processor, so that nothing is said of the loop that it is for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from optland.context.rng import preserve_rng
from optland.pilot.contract.hosts import HOST_CHECKS, MakeHost
from optland.pilot.contract.policies import POLICY_CHECKS, MakePolicy

__all__ = ["check_host", "check_policy"]


def check_policy(make: MakePolicy, *, only: Sequence[str] | None = None) -> None:
    """Hold a policy against the contract.

    ==============  ==================================================================================================
    check           what is asked
    ==============  ==================================================================================================
    declared        a name, and what it reads, turns and caps as frozensets of strings that can be set together
    decisions       finite values, each with a reason in words and finite signals; only a cap may be infinite
    turns           no proposal for what is not in ``turns`` (``caps`` for a cap); an alarm always may be
    reads           no signal that is in neither ``reads`` nor ``may_read``, and no setting that no host has
    state           loaded at any of several updates it decides as the unbroken one, also through torch.save; a state
                    that was given away changes no more
    no torch        plain numbers: no method uses torch
    monitor         a run in monitor mode is the run without a pilot, bit for bit
    shadow          the same in shadow mode, where decisions are made and not carried out
    registered      its name and its object make the same run, so that instances share nothing
    budget          at every update at most the budget and its declared advance is spent on looking
    resume          a run resumed after 1, 7 and 23 updates goes on bit for bit
    ==============  ==================================================================================================

    Args:
        make: Makes a new one, with no arguments: the class itself, where it needs none.
        only: Names out of :data:`POLICY_CHECKS`; None for all.

    Raises:
        AssertionError: What is wrong, a line for each check that fails.

    Example:
        >>> from optland.pilot import Policy
        >>> class Nameless(Policy):
        ...     def decide(self, history):
        ...         return []
        >>> check_policy(Nameless, only=["declared"])
        Traceback (most recent call last):
        AssertionError: declared: it has no name, a string
    """
    _check(make, POLICY_CHECKS, only)


def check_host(make: MakeHost, *, only: Sequence[str] | None = None) -> None:
    """Hold a host against the contract.

    ==============  ==================================================================================================
    check           what is asked
    ==============  ==================================================================================================
    order           parameters and realised move in the model's order, whatever the groups' order and what is frozen
    can turn        what it says it can turn it turns and reads back, and what it cannot it leaves alone
    batch           the size of the batch that the loader is told
    refuses         a policy that turns what it cannot is refused in words, before a weight has moved
    state           after a resume all settings are as they were
    monitor         a run in monitor mode is the run without a pilot, bit for bit
    ==============  ==================================================================================================

    Args:
        make: The class, or what else can be called as :class:`~optland.pilot.host.Host` is.
        only: Names out of :data:`HOST_CHECKS`; None for all.

    Raises:
        AssertionError: What is wrong, a line for each check that fails.

    Example:
        >>> from optland.pilot import Host
        >>> check_host(Host, only=["order"])
    """
    _check(make, HOST_CHECKS, only)


def _check(make: Any, checks: dict[str, Callable[[Any], Iterator[str]]], only: Sequence[str] | None) -> None:
    wrong = []
    for name in checks if only is None else only:
        with preserve_rng(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = next(checks[name](make), None)
            except Exception as error:
                found = f"raised {type(error).__name__}: {error}"
        if found is not None:
            wrong.append(f"{name}: {found}")
    if wrong:
        raise AssertionError("\n".join(wrong))
