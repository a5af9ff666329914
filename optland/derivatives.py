"""First derivatives as probes need them: dense, real, and of graphs that refuse ``autograd.grad`` too.

Some graphs allow ``backward()`` alone: reentrant activation checkpoints and functions written by hand that run a
backward of their own inside. Asked through ``autograd.grad`` they raise, or leave out what they would have added to
``.grad``. They are run with leaves of the probe instead of the weights, on the same memory
(:mod:`optland.context.parameters`), so that the ``.grad`` of the user's parameters, their hooks, and reducers that wait
for their gradients see nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from optland.context.modules import reshard
from optland.context.notes import Notes
from optland.context.parameters import has_hooks
from optland.vectors import Vector, dense

T = TypeVar("T")


class Subject(Protocol):
    """The interface of what is differentiated: an :class:`~optland.objective.Objective`, inside its context."""

    model: nn.Module
    mode: Literal["eval", "train"]
    names: list[str]
    params: list[Tensor]

    @property
    def notes(self) -> Notes:
        """The notes of probes on the model."""

    def leaves(self) -> Leaves:
        """The tensors to differentiate by."""


def derivative(
    outputs: Tensor | Sequence[Tensor],
    inputs: Vector,
    grad_outputs: Vector | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Tensor]:
    """Vector-Jacobian product by ``autograd.grad``, dense; zeros for inputs that the outputs do not depend on.

    Args:
        outputs: Scalars, or tensors of any shape together with ``grad_outputs``.
        inputs: Tensors with ``requires_grad`` that the graph was recorded for.
        grad_outputs: The vector of the product, in the shapes of ``outputs``; ones for scalars.
        create_graph: Record a graph of the result too, for second derivatives.
        retain_graph: Keep the graph for another product; by default as ``create_graph``.

    Returns:
        One strided tensor for each input, in its shape and type.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> derivative((x**2).sum(), [x, torch.ones(1, requires_grad=True)])
        [tensor([2., 4.]), tensor([0.])]
    """
    found = torch.autograd.grad(
        outputs,
        list(inputs),
        grad_outputs,
        retain_graph=retain_graph,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return dense(found)


def with_weights(model: nn.Module, weights: dict[str, Tensor], evaluate: Callable[[], T]) -> T:
    """``evaluate()`` while these tensors stand in the model for its parameters of these names.

    Args:
        model: Its own parameters are not written to.
        weights: By the names of ``model.named_parameters()``; parameters that are not named stay.
        evaluate: Runs anything that uses the model, several forward passes or a loss of the user's included.

    Returns:
        What ``evaluate`` returned; a graph recorded in it leads to the tensors of ``weights``.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> with_weights(model, {"weight": torch.tensor([[3.0]])}, lambda: model(torch.ones(1))).tolist()
        [3.0]
    """
    named = {f"model.{name}": w for name, w in weights.items()}
    result: T = functional_call(_Carrier(model), named, (evaluate,))
    return result


class _Carrier(nn.Module):
    """Lets ``functional_call`` replace the weights of a model while any function of the model runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, evaluate: Callable[[], T]) -> T:
        return evaluate()


def graph_of(*outputs: Tensor) -> Iterator[torch.autograd.graph.Node]:
    """Every node behind the outputs, once.

    Args:
        *outputs: Tensors with a graph; those without have no nodes.

    Yields:
        Nodes of ``torch.autograd``, parents after a child of theirs; the leaves' own nodes that add to ``.grad`` too.
    """
    seen: set[torch.autograd.graph.Node] = set()
    waiting = [t.grad_fn for t in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(parent for parent, _ in node.next_functions)


def custom_functions(nodes: Iterator[torch.autograd.graph.Node]) -> set[str]:
    """Names of the backwards written by hand among the nodes, in Python or C++.

    Args:
        nodes: As :func:`graph_of` gives them.
    """
    found = set()
    for node in nodes:
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            found.add(type(node).__name__.removesuffix("Backward"))
        elif "CppNode" in node.name():
            found.add(node.name())
    return found


def _leaves_of(output: Tensor) -> list[Tensor]:
    """The tensors into whose ``.grad`` a backward pass from ``output`` adds, as far as the graph shows them."""
    return [node.variable for node in graph_of(output) if hasattr(node, "variable")]


@contextmanager
def _set_aside(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Take the ``.grad`` of tensors away for a block, and give it back, the same object with the same bits."""
    kept = [t.grad for t in tensors]
    try:
        for t in tensors:
            t.grad = None
        yield
    finally:
        for t, g in zip(tensors, kept, strict=True):
            t.grad = g


class Leaves:
    """The tensors by which a loss is differentiated: the parameters, or what stands in the model for them.

    A loss that reads parameters itself and not through the model (a penalty on ``list(model.parameters())``) has two
    ways to one that is stood in for, and its derivative is the sum of both.

    Args:
        params: The parameters.
        standing: What stands in the model for a parameter, by the ``id`` of that parameter.

    Attributes:
        params: The parameters, as given.
        tensors: For each parameter what the model computes with: what stands for it, or itself.
    """

    def __init__(self, params: Vector, standing: Mapping[int, Tensor]) -> None:
        self.params = list(params)
        self.tensors = [standing.get(id(p), p) for p in params]
        self._twice = [
            i for i, (p, q) in enumerate(zip(self.params, self.tensors, strict=True)) if p is not q
        ]

    def derivative(
        self,
        outputs: Tensor | Sequence[Tensor],
        grad_outputs: Vector | None = None,
        *,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> list[Tensor]:
        """Vector-Jacobian product, dense, one tensor for each parameter; zeros where nothing depends on it.

        Args:
            outputs: As for :func:`derivative`, and so are the others.
            grad_outputs: The vector of the product.
            create_graph: Record a graph of the result too.
            retain_graph: Keep the graph for another product.
        """
        found = self.used(outputs, grad_outputs, create_graph=create_graph, retain_graph=retain_graph)
        return [torch.zeros_like(p) if t is None else t for t, p in zip(found, self.params, strict=True)]

    def used(
        self,
        outputs: Tensor | Sequence[Tensor],
        grad_outputs: Vector | None = None,
        *,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> list[Tensor | None]:
        """The same, and None where nothing depends on a parameter.

        Args:
            outputs: As for :func:`derivative`, and so are the others.
            grad_outputs: The vector of the product.
            create_graph: Record a graph of the result too.
            retain_graph: Keep the graph for another product.

        Returns:
            One entry for each parameter: the product summed over both of its ways into the loss, or None.
        """
        found = torch.autograd.grad(
            outputs,
            [*self.tensors, *(self.params[i] for i in self._twice)],
            grad_outputs,
            retain_graph=retain_graph,
            create_graph=create_graph,
            allow_unused=True,
        )
        pieces: list[Tensor | None] = [None if t is None else dense([t])[0] for t in found]
        for i, beside in zip(self._twice, pieces[len(self.params) :], strict=True):
            if beside is not None:
                through = pieces[i]
                pieces[i] = beside if through is None else through + beside
        return pieces[: len(self.params)]


def gradient(subject: Subject, loss: Tensor, again: Callable[[], Tensor]) -> list[Tensor]:
    """Gradient of ``loss`` by ``autograd.grad``, or by ``backward()`` where the graph wants that.

    Args:
        subject: Its weights, and the notes in which ``backward`` then says why.
        loss: With its graph, which is consumed.
        again: Makes the loss and its graph once more.

    Returns:
        One dense tensor for each parameter; zeros where the loss does not depend on it. ``.grad`` is as it was.

    Raises:
        RuntimeError: Neither way works (what ``autograd.grad`` said is raised), or ``backward()`` is needed and would
            run hooks on a parameter.
    """
    notes = subject.notes
    examine(subject, loss, again)
    if notes.backward:
        return _by_backward(subject, loss)
    try:
        return subject.leaves().derivative(loss)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        failure = error
    try:
        found = _by_backward(subject, again())
    except RuntimeError:
        raise failure from None
    notes.backward = _first_line(failure)
    return found


def examine(subject: Subject, loss: Tensor, again: Callable[[], Tensor]) -> None:
    """Ask the first graph in a mode whether ``autograd.grad`` gives all of the gradient; ``notes.backward`` tells.

    A backward written by hand may run a backward of its own inside: it refuses ``autograd.grad``, or adds to ``.grad``
    and returns nothing. A graph without one is only walked; one that has it is differentiated once or twice more.

    Args:
        subject: Its notes keep the answer for each mode, so that only one graph in each is asked.
        loss: With its graph, which is kept.
        again: Makes the loss and its graph once more, for the pass that is differentiated by ``backward()``.
    """
    notes = subject.notes
    if notes.backward or subject.mode in notes.tried or notes.standing is None or notes.replaced:
        return
    functions = custom_functions(graph_of(loss))
    if functions:
        notes.backward = _left_out(subject, loss, again, ", ".join(sorted(functions)))
    notes.tried.add(subject.mode)


def require_grad(subject: Subject, loss: Tensor, again: Callable[[], Tensor]) -> None:
    """Ask the first graph of a mode whether second derivatives of it can be computed at all.

    Args:
        subject: As for :func:`examine`, and so are the others.
        loss: With its graph, which is kept.
        again: Makes the loss and its graph once more.

    Raises:
        RuntimeError: It holds a backward pass of its own.
    """
    examine(subject, loss, again)
    if subject.notes.backward:
        raise RuntimeError(subject.notes.backward)


def _left_out(subject: Subject, loss: Tensor, again: Callable[[], Tensor], functions: str) -> str:
    """Why ``autograd.grad`` does not give all of the gradient; empty where it does."""
    leaves = _own(subject)
    words = f"{functions} runs a backward of its own, which autograd.grad leaves out"
    with _set_aside([*subject.model.parameters(), *subject.params, *leaves, *_leaves_of(loss)]):
        try:
            found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            return f"autograd.grad fails: {_first_line(error)}"
        if any(t.grad is not None for t in leaves):
            return words
        missing = [t for t, g in zip(leaves, found, strict=True) if g is None]
        if not missing:
            return ""
        again().backward()
        return words if any(t.grad is not None for t in missing) else ""


def _by_backward(subject: Subject, loss: Tensor) -> list[Tensor]:
    tensors, seen = subject.leaves().tensors, _leaves_of(loss)
    for name, p, q in zip(subject.names, subject.params, tensors, strict=True):
        if has_hooks(p) and (p is q or any(p is t for t in seen)):
            raise RuntimeError(
                f"the gradient of this graph needs backward(), which would run the hooks on {name!r}; let loss_fn "
                "read the weights through the model that it is given, or remove the hooks while probing"
            )
    with _set_aside([*subject.model.parameters(), *subject.params, *_own(subject), *seen]):
        loss.backward()
        found = [
            dense([t.grad for t in {id(p): p, id(q): q}.values() if t.grad is not None])
            for p, q in zip(subject.params, tensors, strict=True)
        ]
    return [
        torch.stack(pieces).sum(0) if pieces else torch.zeros_like(p)
        for pieces, p in zip(found, subject.params, strict=True)
    ]


def sharded_gradient(subject: Subject, loss: Tensor) -> list[Tensor]:
    """The gradient of FSDP2's own backward pass: the mean of what each process has; ``.grad`` is not touched.

    Args:
        subject: An objective on a model that FSDP2 shards.
        loss: Of this process's part of the batch, with its graph, which is consumed.

    Returns:
        One ``DTensor`` for each parameter; this process holds its shard.

    Raises:
        RuntimeError: The backward pass left the gradients unreduced.
    """
    reshard(subject.model)
    every = [*subject.model.parameters()]
    with _set_aside([*every, *subject.params]):
        loss.backward()
        reshard(subject.model)
        if all(p.grad is None for p in every):
            raise RuntimeError(
                "no gradient reached the sharded parameters; call set_requires_gradient_sync(True) on the model before "
                "a probe"
            )
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in subject.params]


def _own(subject: Subject) -> list[Tensor]:
    """The probe's leaves that stand in for parameters."""
    return [t for t in (subject.notes.standing or {}).values() if t.requires_grad]


def _first_line(error: Exception) -> str:
    """The first sentence."""
    return str(error).strip().splitlines()[0].split(". ")[0].rstrip(".")
