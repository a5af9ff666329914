r"""The permutation symmetries of a module, units that can be renumbered together, found by tracing it.

The units that a layer makes can be put in any order if everything that reads them follows. The forward pass is traced
with ``torch.fx`` and the numbering of the channel axis carried from operation to operation: a convolution or a linear
layer reads one numbering and makes a new one, normalisation, activations and pooling keep theirs, an addition makes two
the same, and flattening makes blocks of as many columns as a channel has pixels. The input and the output of the net
have fixed numberings, and so has whatever is added to them.

An operation that is not known raises an error: a wrong guess would change the function.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

__all__ = ["Axis", "Symmetry", "find_symmetries"]

FIXED = 0
"""The numbering of inputs and outputs, which nothing may change."""

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PER_CHANNEL = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_KEEPING = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Identity, nn.Dropout, nn.Dropout2d,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Hardtanh, nn.ReLU6,
)  # fmt: skip
_KEEPING_FUNCTIONS: set[Any] = {
    F.relu, torch.relu, F.gelu, F.silu, torch.tanh, torch.sigmoid, F.dropout, F.avg_pool2d, F.max_pool2d,
    F.adaptive_avg_pool2d, F.adaptive_avg_pool1d, F.max_pool1d, F.avg_pool1d, "relu", "tanh", "sigmoid", "contiguous",
    "relu_",
}  # fmt: skip
_ADDING: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_"}
_FLATTENING: set[Any] = {torch.flatten, "flatten"}


@dataclass(frozen=True)
class Axis:
    """One axis of one tensor of the state dict, numbered in blocks of ``block`` entries.

    Attributes:
        name: Of the tensor in the state dict.
        axis: Which of its dimensions.
        block: Entries of a unit: more than 1 where a flattened image stands behind a channel.
    """

    name: str
    axis: int
    block: int = 1


@dataclass
class Symmetry:
    """Axes that are renumbered together, and how many units there are.

    Attributes:
        size: Number of units.
        axes: Renumbered together, so that the net computes the same.
    """

    size: int
    axes: list[Axis] = field(default_factory=list)


@dataclass
class _Value:
    """An intermediate tensor: its numbering, and how many columns a channel has."""

    numbering: int
    block: int = 1


def find_symmetries(model: nn.Module, example: Tensor) -> list[Symmetry]:
    """The groups of axes of ``model.state_dict()`` that one permutation renumbers.

    Args:
        model: Linear and convolutional layers without groups, batch normalisation, activations, pooling, flattening,
            additions: MLPs, CNNs, ResNets.
        example: An input, to see shapes with.

    Returns:
        One for each set of units; outputs and inputs of the net have none, since their order has a meaning.

    Raises:
        TypeError: The model cannot be traced, or holds an operation whose numbering is not known.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> [(s.size, [(a.name, a.axis) for a in s.axes]) for s in find_symmetries(net, torch.ones(1, 3))]
        [(4, [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)])]
    """
    try:
        graph = fx.symbolic_trace(model)
    except Exception as error:
        raise TypeError(
            f"{type(model).__name__} cannot be traced ({error}); its units cannot be matched"
        ) from error
    shapes = _shapes(graph, example)
    return _Walk(model, shapes).run(graph.graph)


def _shapes(graph: fx.GraphModule, example: Tensor) -> dict[str, torch.Size]:
    """The shape of every intermediate tensor, from one forward pass in eval mode."""
    from torch.fx.passes.shape_prop import ShapeProp

    training = graph.training
    graph.eval()
    with torch.no_grad():
        ShapeProp(graph).propagate(example)
    graph.train(training)
    found = {}
    for node in graph.graph.nodes:
        meta = node.meta.get("tensor_meta")
        if meta is not None and hasattr(meta, "shape"):
            found[node.name] = meta.shape
    return found


class _Walk:
    """Carries numberings through a graph and collects the axes that they number."""

    def __init__(self, model: nn.Module, shapes: dict[str, torch.Size]) -> None:
        from scipy.cluster.hierarchy import DisjointSet  # takes its time to load

        self.modules = dict(model.named_modules())
        self.shapes = shapes
        self.numberings = DisjointSet([FIXED])  # those of one set are the same
        self.values: dict[fx.Node, _Value] = {}
        self.axes: list[tuple[int, Axis, int]] = []
        self.seen: dict[str, tuple[int, int]] = {}

    def run(self, graph: fx.Graph) -> list[Symmetry]:
        for node in graph.nodes:
            if node.op == "output":
                self._fix(node.args[0])
            elif node.op == "placeholder":
                self.values[node] = _Value(FIXED)
            elif node.op == "call_module":
                self.values[node] = self._module(node)
            elif node.op in ("call_function", "call_method"):
                self.values[node] = self._function(node)
            else:
                raise TypeError(
                    f"{node.op} of {node.target!r}: a tensor used outside a layer; its axes are not known"
                )
        groups: dict[int, Symmetry] = {}
        for numbering, axis, size in self.axes:
            if not self.numberings.connected(numbering, FIXED):
                group = groups.setdefault(self.numberings[numbering], Symmetry(size))
                if axis not in group.axes:
                    group.axes.append(axis)
        return list(groups.values())

    def _fix(self, argument: Any) -> None:
        if not isinstance(argument, fx.Node):
            raise TypeError("the model returns more than one tensor; its units cannot be matched")
        self.numberings.merge(FIXED, self.values[argument].numbering)

    def _note(self, name: str, axis: int, value: _Value, size: int) -> None:
        self.axes.append((value.numbering, Axis(name, axis, value.block), size))

    def _module(self, node: fx.Node) -> _Value:
        name, module = str(node.target), self.modules[str(node.target)]
        source = self._value(node.args[0])
        if isinstance(module, _WEIGHTED):
            return self._weighted(name, module, source)
        if isinstance(module, _PER_CHANNEL):
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                if getattr(module, tensor) is not None:
                    self._note(f"{name}.{tensor}", 0, source, module.num_features)
            return source
        if isinstance(module, nn.Flatten):
            return self._flattened(node, source)
        if isinstance(module, _KEEPING):
            return source
        raise TypeError(f"{name} is a {type(module).__name__}, whose units cannot be matched")

    def _weighted(self, name: str, module: nn.Module, source: _Value) -> _Value:
        weight: Tensor = module.weight  # type: ignore[assignment]
        if getattr(module, "groups", 1) != 1:
            raise TypeError(f"{name} is a grouped convolution, whose units cannot be matched")
        if name in self.seen:  # a shared layer: what it reads and makes must agree
            read, makes = self.seen[name]
            self.numberings.merge(read, source.numbering)
            return _Value(makes)
        self._note(f"{name}.weight", 1, source, weight.shape[1] // source.block)
        made = _Value(len(self.numberings))
        self.numberings.add(made.numbering)
        self._note(f"{name}.weight", 0, made, weight.shape[0])
        if module.bias is not None:
            self._note(f"{name}.bias", 0, made, weight.shape[0])
        self.seen[name] = (source.numbering, made.numbering)
        return made

    def _function(self, node: fx.Node) -> _Value:
        target = node.target
        if target in _ADDING:
            values = [self._value(a) for a in node.args if isinstance(a, fx.Node)]
            for other in values[1:]:
                if other.block != values[0].block:
                    raise TypeError(
                        f"{node.name} adds tensors of different layout; their units cannot be matched"
                    )
                self.numberings.merge(values[0].numbering, other.numbering)
            return values[0]
        if target in _KEEPING_FUNCTIONS:
            return self._value(node.args[0])
        if target in _FLATTENING:
            return self._flattened(node, self._value(node.args[0]))
        if target in (torch.mean, "mean"):
            return self._value(node.args[0])
        what = target if isinstance(target, str) else getattr(target, "__name__", target)
        raise TypeError(f"{node.name} is {what}, whose units cannot be matched")

    def _flattened(self, node: fx.Node, source: _Value) -> _Value:
        """Channels first: channel c becomes columns c * pixels ... (c + 1) * pixels - 1."""
        before = self.shapes[str(node.args[0].name)]  # type: ignore[union-attr]
        pixels = 1
        for length in before[2:]:
            pixels *= length
        return _Value(source.numbering, source.block * pixels)

    def _value(self, argument: Any) -> _Value:
        if not isinstance(argument, fx.Node):
            raise TypeError(f"{argument!r} is no tensor of the graph; its units cannot be matched")
        return self.values[argument]
