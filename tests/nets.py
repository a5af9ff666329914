"""Small nets of many kinds, each with a plain float64 twin whose derivatives need nothing of what makes it special.

The twin has the same function, written with the same modules in float64 where these are harmless, and without
checkpoints, sparse gradients, hand-written backwards, compilers or bounds that a forward enforces where they are not.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

D = torch.float64

Batch = tuple[Tensor, Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def squared(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


@dataclass
class Net:
    """A net on data, and its plain twin in float64.

    Attributes:
        refused: Quantities that are refused in words, with a piece of the words.
        digits: Relative error of the net's own arithmetic (of a gradient) beside that of float32.
    """

    name: str
    model: nn.Module
    loss_fn: Callable[[nn.Module, Any], Tensor]
    batches: list[Batch]
    twin: nn.Module
    twin_loss: Callable[[nn.Module, Any], Tensor]
    mode: Any = "eval"
    refused: dict[str, str] = field(default_factory=dict)
    digits: float = 2e-5
    has_outputs: bool = True


class Net64:
    """Loss, gradient, Hessian and Gauss-Newton matrix of a twin, by differences in float64."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.params = [p for p in net.twin.parameters() if p.requires_grad]
        self.batches = [tuple(t.to(D) if t.is_floating_point() else t for t in b) for b in net.batches]
        self.counts = [len(b[0]) for b in self.batches]

    def loss(self, w: Tensor | None = None) -> Tensor:
        """The mean loss, with its graph."""
        if w is not None:
            nn.utils.vector_to_parameters(w, self.params)
        for module in self.net.twin.modules():
            module.training = self.net.mode == "train"
        buffers = [b.clone() for b in self.net.twin.buffers()]
        torch.manual_seed(0)
        total: Any = sum(
            n * self.net.twin_loss(self.net.twin, b) for n, b in zip(self.counts, self.batches, strict=True)
        )
        for b, saved in zip(self.net.twin.buffers(), buffers, strict=True):
            b.data.copy_(saved)
        return total / sum(self.counts)

    @property
    def start(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.params])

    def _differences(self, f: Callable[[Tensor], Tensor], h: float) -> Tensor:
        """Columns of the Jacobian of f."""
        w = self.start
        columns = [(f(w + h * e) - f(w - h * e)) / (2 * h) for e in torch.eye(len(w), dtype=D)]
        nn.utils.vector_to_parameters(w, self.params)
        return torch.stack(columns, dim=-1)

    def gradient_by_losses(self) -> Tensor:
        with torch.no_grad():
            return self._differences(lambda w: self.loss(w).detach(), 1e-5)

    def gradient(self, w: Tensor | None = None) -> Tensor:
        loss = self.loss(w)
        found = torch.autograd.grad(loss, self.params, allow_unused=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])

    def hessian(self) -> Tensor:
        H = self._differences(self.gradient, 1e-5)
        return (H + H.T) / 2

    def gauss_newton(self) -> Tensor:
        """J' M J with J by differences of the outputs, and M of cross entropy or squared error in closed form."""
        x = torch.cat([b[0] for b in self.batches])

        def outputs(w: Tensor) -> Tensor:
            nn.utils.vector_to_parameters(w, self.params)
            self.net.twin.eval()
            with torch.no_grad():
                return self.net.twin(x)

        J = self._differences(outputs, 1e-5)  # (n, c, d)
        z = outputs(self.start)
        n, c = z.shape
        if self.net.twin_loss is squared:
            return 2 * torch.einsum("nca,ncb->ab", J, J) / (n * c)
        p = z.softmax(-1)
        M = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return torch.einsum("nca,ncd,ndb->ab", J, M, J) / n


# ------------------------------------------------------------------ pieces


class Head(nn.Module):
    """Tokens or vectors, through a body, to three classes."""

    def __init__(self, body: Callable[[Tensor], Tensor], width: int, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.out = nn.Linear(width, 3)
        self.body = [body]

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body[0](self, x))  # type: ignore[call-arg]


def vectors_of(n: int = 14, *shape: int) -> list[Batch]:
    x, y = torch.randn(n, *(shape or (4,))), torch.randint(3, (n,))
    return [(x[:9], y[:9]), (x[9:], y[9:])]


def tokens(n: int = 14) -> list[Batch]:
    x, y = torch.randint(7, (n, 4)), torch.randint(3, (n,))
    return [(x[:9], y[:9]), (x[9:], y[9:])]


def same(name: str, model: nn.Module, batches: Sequence[Batch], **more: Any) -> Net:
    """A net whose twin is itself in float64."""
    twin = copy.deepcopy(model).double()
    return Net(name, model, cross_entropy, list(batches), twin, cross_entropy, **more)


def with_twin(name: str, model: nn.Module, batches: Sequence[Batch], twin: nn.Module, **more: Any) -> Net:
    """A net whose twin is another module with the same parameters in the same order."""
    twin = twin.double()
    with torch.no_grad():
        for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs)
            mine.requires_grad_(theirs.requires_grad)
    return Net(name, model, cross_entropy, list(batches), twin, cross_entropy, **more)


def recurrent(kind: str) -> Callable[[], Net]:
    def make() -> Net:
        cell = getattr(nn, kind)(3, 4, batch_first=True)
        return same(kind, Head(lambda m, x: m.cell(x)[0][:, -1], 4, cell=cell), vectors_of(14, 5, 3))

    return make


def step_by_step(kind: str) -> Callable[[], Net]:
    def body(m: Any, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = m.cell(x[:, t], state)
        assert state is not None
        return state[0] if isinstance(state, tuple) else state

    return lambda: same(kind, Head(body, 4, cell=getattr(nn, kind)(3, 4)), vectors_of(14, 4, 3))


def attention() -> Net:
    def body(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v).mean(1)

    return same("attention", Head(body, 4, qkv=nn.Linear(3, 12)), vectors_of(14, 4, 3))


def transformer_layer() -> Net:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, activation="gelu")
    return same(
        "transformer layer", Head(lambda m, x: m.layer(x).mean(1), 4, layer=layer), vectors_of(14, 3, 4)
    )


def old_norm(kind: str) -> Callable[[], Net]:
    def make() -> Net:
        def built() -> Head:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls these deprecated
                lin = getattr(nn.utils, kind)(nn.Linear(4, 5))
            return Head(lambda m, x: torch.tanh(m.lin(x)), 5, lin=lin)

        model, twin = built(), built().double()
        model(torch.randn(2, 4))
        twin.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
        return Net(f"{kind}, older", model, cross_entropy, vectors_of(), twin, cross_entropy)

    return make


def new_norm(kind: str) -> Callable[[], Net]:
    def make() -> Net:
        lin = getattr(nn.utils.parametrizations, kind)(nn.Linear(4, 5))
        model = Head(lambda m, x: torch.tanh(m.lin(x)), 5, lin=lin)
        return same(kind, model, vectors_of())

    return make


def sparse_embedding() -> Net:
    def built(sparse: bool) -> Head:
        return Head(lambda m, x: torch.tanh(m.e(x)).mean(1), 5, e=nn.Embedding(7, 5, sparse=sparse))

    return with_twin("sparse embedding", built(True), tokens(), built(False))


def sparse_bag() -> Net:
    def built(sparse: bool) -> Head:
        return Head(lambda m, x: torch.tanh(m.e(x)), 5, e=nn.EmbeddingBag(7, 5, mode="mean", sparse=sparse))

    twin = Head(lambda m, x: torch.tanh(m.e(x).mean(1)), 5, e=nn.Embedding(7, 5))
    return with_twin("sparse embedding bag", built(True), tokens(), twin)


def bounded_embedding(scale: float, name: str, **more: Any) -> Callable[[], Net]:
    """With rows inside the bound, or beyond it: then derivatives are at the weights that the forward leaves."""

    def make() -> Net:
        def built(bound: float | None) -> Head:
            return Head(lambda m, x: torch.tanh(m.e(x)).mean(1), 5, e=nn.Embedding(7, 5, max_norm=bound))

        model = built(1.0)
        model.e.weight.data.mul_(scale / model.e.weight.data.norm(dim=1, keepdim=True))
        net = with_twin(name, model, tokens(), built(None), **more)
        e = net.twin.e.weight.data
        used = torch.cat([b[0].flatten() for b in net.batches]).unique()
        if scale > 1:
            # As the forward does it, in its own precision.
            moved = torch.embedding_renorm_(model.e.weight.detach().clone(), used, 1.0, 2.0)
            e.copy_(moved)
        return net

    return make


class Middle(nn.Module):
    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.run = [run]

    def block(self, x: Tensor) -> Tensor:
        return torch.tanh(self.b(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.run[0](self, torch.tanh(self.a(x))))


def plain_middle() -> Middle:
    return Middle(lambda m, x: m.block(x))


def checkpointed(reentrant: bool) -> Callable[[], Net]:
    def make() -> Net:
        model = Middle(lambda m, x: checkpoint(m.block, x, use_reentrant=reentrant))
        name = "reentrant checkpoint" if reentrant else "checkpoint"
        return with_twin(name, model, vectors_of(), plain_middle())

    return make


class HandWritten(torch.autograd.Function):
    """An activation checkpoint as people write it: the backward runs a backward of its own."""

    @staticmethod
    def forward(ctx: Any, block: Any, x: Tensor) -> Tensor:
        ctx.block = block
        ctx.save_for_backward(x)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            torch.autograd.backward(ctx.block(leaf), grad)
        return None, leaf.grad


def hand_written_checkpoint() -> Net:
    model = Middle(lambda m, x: HandWritten.apply(m.block, x))
    return with_twin("hand-written checkpoint", model, vectors_of(), plain_middle())


class Softplus(torch.autograd.Function):
    """log(1 + exp(x)) with a right backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.softplus(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * x.sigmoid()


class OnceSoftplus(Softplus):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * x.sigmoid()


class WrongSlope(torch.autograd.Function):
    """The slope of softplus, whose own derivative is wrong by a factor of 1.3."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        p = x.sigmoid()
        return 1.3 * grad * p * (1 - p)


class WrongSoftplus(Softplus):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * WrongSlope.apply(x)


class FusedCrossEntropy(torch.autograd.Function):
    """As fused kernels do it: the gradient is made in the forward and only multiplied in the backward."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor) -> Tensor:
        p = z.softmax(-1)
        ctx.save_for_backward((p - F.one_hot(y, z.shape[-1])) / len(z))
        return F.cross_entropy(z, y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (g,) = ctx.saved_tensors
        return grad * g, None


def custom(name: str, function: Any) -> Callable[[], Net]:
    def make() -> Net:
        model = Head(lambda m, x: function.apply(m.lin(x)), 5, lin=nn.Linear(4, 5))
        return with_twin(
            name, model, vectors_of(), Head(lambda m, x: F.softplus(m.lin(x)), 5, lin=nn.Linear(4, 5))
        )

    return make


def fused_loss() -> Net:
    net = same("fused cross entropy", plain_middle(), vectors_of())
    net.loss_fn = lambda m, b: FusedCrossEntropy.apply(m(b[0]), b[1])
    return net


def compiled() -> Net:
    net = same("compiled", plain_middle(), vectors_of())
    net.model = torch.compile(net.model, backend="aot_eager")  # type: ignore[assignment]
    return net


def compiled_part() -> Net:
    model: Any = Middle(lambda m, x: m.fast(x))
    model.fast = torch.compile(model.block, backend="aot_eager")
    return with_twin("compiled part", model, vectors_of(), plain_middle())


def tied() -> Net:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Embedding(5, 3)
            self.out = nn.Linear(3, 5, bias=False)
            self.out.weight = self.e.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.tanh(self.e(x).sum(1)))

    x, y = torch.randint(5, (14, 4)), torch.randint(5, (14,))
    return same("tied weights", Tied(), [(x[:9], y[:9]), (x[9:], y[9:])])


def frozen() -> Net:
    model = plain_middle()
    model.b.weight.requires_grad_(False)
    return same("frozen part", model, vectors_of())


def half() -> Net:
    net = same("bfloat16", plain_middle().to(torch.bfloat16), vectors_of(), digits=2e-2)
    net.batches = [(x.to(torch.bfloat16), y) for x, y in net.batches]
    return net


def normalised(kind: str) -> Callable[[], Net]:
    makers: dict[str, Callable[[], nn.Module]] = {
        "BatchNorm": lambda: nn.BatchNorm2d(4), "GroupNorm": lambda: nn.GroupNorm(2, 4),
        "InstanceNorm": lambda: nn.InstanceNorm2d(4, affine=True), "LayerNorm": lambda: nn.LayerNorm([4, 3, 3]),
        "RMSNorm": lambda: nn.RMSNorm([4, 3, 3]),
    }  # fmt: skip

    def make() -> Net:
        conv = nn.Conv2d(2, 4, 3, padding=1, groups=2)
        model = Head(
            lambda m, x: torch.tanh(m.norm(m.conv(x))).mean((2, 3)), 4, conv=conv, norm=makers[kind]()
        )
        return same(f"{kind}, train mode", model, vectors_of(14, 2, 3, 3), mode="train")

    return make


def dropout() -> Net:
    model = Head(lambda m, x: m.drop(torch.tanh(m.lin(x))), 5, lin=nn.Linear(4, 5), drop=nn.Dropout(0.4))
    return same("dropout, train mode", model, vectors_of(), mode="train")


def kinked() -> Net:
    body = nn.Sequential(
        nn.Conv1d(1, 3, 2), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(9, 4), nn.LeakyReLU()
    )
    return same("ReLU and max pooling", Head(lambda m, x: m.net(x), 4, net=body), vectors_of(14, 1, 7))


def autocast() -> Net:
    def run(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = m.block(x)
        return h.to(x.dtype)

    return with_twin("autocast inside", Middle(run), vectors_of(), plain_middle(), digits=2e-2)


def mapped() -> Net:
    def run(m: Any, x: Tensor) -> Tensor:
        weights = dict(m.b.named_parameters())
        return torch.func.vmap(lambda row: torch.tanh(torch.func.functional_call(m.b, weights, (row,))))(x)

    return with_twin("vmap and functional_call inside", Middle(run), vectors_of(), plain_middle())


def in_place() -> Net:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.b(x)
        h.mul_(0.5).add_(0.1).tanh_()
        return h * 2

    return same("operations in place", Middle(run), vectors_of())


def determinant() -> Net:
    """A kernel of PyTorch whose derivative by forward over reverse is wrong in some versions."""

    def run(m: Any, x: Tensor) -> Tensor:
        A = torch.einsum("ni,nj->nij", x, m.block(x)[:, :4].repeat(1, 2)[:, :5]) + 2 * torch.eye(5).to(x)
        return m.block(x) * torch.linalg.det(A)[:, None]

    return same("determinant", Middle(run), vectors_of())


def ctc() -> Net:
    """A kernel of PyTorch without a second derivative."""

    def run(m: Any, x: Tensor) -> Tensor:
        steps = torch.stack([m.block(x) * s for s in (1.0, 0.5, -1.0, 2.0)]).log_softmax(-1)
        n = len(x)
        labels = torch.ones(n, 2, dtype=torch.long) + torch.arange(2)
        lengths = torch.full((n,), 4), torch.full((n,), 2)
        return m.block(x) * F.ctc_loss(steps, labels, *lengths, reduction="none")[:, None]

    return same("CTC inside", Middle(run), vectors_of())


class Clamped(Middle):
    """Clamps a weight in its forward, behind the version counter."""

    def block(self, x: Tensor) -> Tensor:
        self.b.weight.data.clamp_(-10, 10)
        self.b.bias.data.clamp_(-10, 10)
        return torch.tanh(self.b(x))


class Averaging(nn.Module):
    """A momentum encoder, frozen, moved in every forward."""

    def __init__(self, moving: bool) -> None:
        super().__init__()
        self.net, self.slow, self.moving = nn.Linear(4, 3), nn.Linear(4, 3), moving
        self.slow.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            key = torch.tanh(self.slow(x))
            if self.moving:
                for a, b in zip(self.slow.parameters(), self.net.parameters(), strict=True):
                    a.data = 0.9 * a.data + 0.1 * b.data
        return torch.tanh(self.net(x)) * key


def averaging() -> Net:
    return with_twin("momentum encoder", Averaging(True), vectors_of()[:1], Averaging(False), mode="train")


def clamped() -> Net:
    return with_twin("clamped weights", Clamped(lambda m, x: m.block(x)), vectors_of(), plain_middle())


def penalised() -> Net:
    """A penalty on parameters that the loss holds itself."""
    net = same("penalty on captured parameters", plain_middle(), vectors_of(), has_outputs=False)
    mine, theirs = list(net.model.parameters()), list(net.twin.parameters())
    net.loss_fn = lambda m, b: cross_entropy(m, b) + 0.1 * sum(p.pow(4).sum() for p in mine)
    net.twin_loss = lambda m, b: cross_entropy(m, b) + 0.1 * sum(p.pow(4).sum() for p in theirs)
    net.refused = {"ggn": "beside the outputs"}
    return net


NOT_OF_THE_LOSS = "not that of the loss"


def straight_through() -> Net:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.block(x)
        return h + (h.sin() - h).detach()

    words = dict.fromkeys(("hvp", "lambda_max", "trace", "ggn"), NOT_OF_THE_LOSS)
    return same("straight-through", Middle(run), vectors_of(), refused=words)


def detached() -> Net:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.block(x)
        return h / h.detach().norm(dim=1, keepdim=True)

    words = dict.fromkeys(("hvp", "lambda_max", "trace", "ggn"), NOT_OF_THE_LOSS)
    return same("detached norm", Middle(run), vectors_of(), refused=words)


NETS: dict[str, Callable[[], Net]] = {
    "lstm": recurrent("LSTM"), "gru": recurrent("GRU"), "rnn": recurrent("RNN"), "lstm_cell": step_by_step("LSTMCell"),
    "gru_cell": step_by_step("GRUCell"), "rnn_cell": step_by_step("RNNCell"),
    "attention": attention, "transformer": transformer_layer,
    "weight_norm": new_norm("weight_norm"), "spectral_norm": new_norm("spectral_norm"),
    "old_weight_norm": old_norm("weight_norm"), "old_spectral_norm": old_norm("spectral_norm"),
    "sparse_embedding": sparse_embedding, "sparse_bag": sparse_bag,
    "bounded_inside": bounded_embedding(0.8, "max-norm embedding, inside"),
    "bounded_beyond": bounded_embedding(2.0, "max-norm embedding, beyond"),
    "checkpoint": checkpointed(False), "reentrant": checkpointed(True), "hand_written": hand_written_checkpoint,
    "compiled": compiled, "compiled_part": compiled_part,
    "custom_right": custom("custom backward, right", Softplus),
    "custom_once": custom("custom backward, once", OnceSoftplus),
    "custom_wrong": custom("custom backward, wrong", WrongSoftplus), "fused_loss": fused_loss,
    "tied": tied, "frozen": frozen, "bf16": half,
    "batch_norm": normalised("BatchNorm"), "group_norm": normalised("GroupNorm"),
    "instance_norm": normalised("InstanceNorm"), "layer_norm": normalised("LayerNorm"),
    "rms_norm": normalised("RMSNorm"),
    "dropout_train": dropout, "kinks": kinked, "autocast": autocast, "mapped": mapped, "in_place": in_place,
    "determinant": determinant, "ctc": ctc, "clamped": clamped, "averaging": averaging, "penalised": penalised,
    "straight_through": straight_through, "detached": detached,
}  # fmt: skip


def net(name: str) -> Net:
    """The net of that name, with its own seed."""
    torch.manual_seed(3)
    return NETS[name]()
