r"""A small causal transformer: pre-normalised blocks of attention and a two-layer network.

.. math:: x \leftarrow x + \mathrm{attention}(\mathrm{norm}(x)), \qquad x \leftarrow x + \mathrm{mlp}(\mathrm{norm}(x))

Normalising before each branch keeps the path through the skips clean, so that the net trains without tuning at any
depth that fits here. Weights start as N(0, 0.02^2), those that write into the skips smaller by sqrt(2 depth): the
logits are then near 0 and the first loss near ln(vocabulary).

**Attention** is PyTorch's fused kernel. It has no second derivative; curvature probes switch to the plain kernel by
themselves (:func:`optland.context.precision.exact_precision`).

References: Vaswani et al. 2017, arXiv:1706.03762; Radford et al. 2019 (GPT-2); Press & Wolf 2017, arXiv:1608.05859
(tied embeddings).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optland.train.models.layers import MAX_DEPTH, MAX_PARAMETERS, attended, check_dropout

__all__ = ["Transformer", "TransformerConfig"]

INITIAL_STD = 0.02


@dataclass(frozen=True)
class TransformerConfig:
    """Size of the transformer.

    Attributes:
        depth: Number of blocks.
        width: Length of a token's vector; a multiple of ``heads``.
        heads: Attention heads of a block.
        dropout: Probability of dropout on embeddings, attention weights and both branches, in [0, 1).
        tied: Whether the output layer shares the token embedding's weights.

    Raises:
        ValueError: A value that cannot be.
    """

    depth: int = 4
    width: int = 128
    heads: int = 4
    dropout: float = 0.0
    tied: bool = True

    def __post_init__(self) -> None:
        for name in ("depth", "width", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is too few; use at least 1")
        if self.depth > MAX_DEPTH:
            raise ValueError(f"depth: {self.depth} blocks are too many; use at most {MAX_DEPTH}")
        parameters = 12 * self.depth * self.width**2
        if parameters > MAX_PARAMETERS:
            raise ValueError(
                f"width: {self.width} makes {parameters:.2g} parameters in {self.depth} blocks, more than the "
                f"{MAX_PARAMETERS:.0g} allowed; use a smaller width or depth"
            )
        if self.width % self.heads != 0:
            near = self.heads * max(round(self.width / self.heads), 1)
            raise ValueError(f"width: {self.width} cannot be shared by {self.heads} heads; use {near}")
        check_dropout(self.dropout)

    def build(self, vocabulary: int, context: int) -> Transformer:
        """The initialised model (seed the random state before).

        Args:
            vocabulary: Number of tokens.
            context: Longest input, in tokens.
        """
        return Transformer(self, vocabulary, context)


class Attention(nn.Module):
    """Causal self-attention of several heads.

    Args:
        config: Its width, heads and dropout; dropout acts in training alone.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, length, width)`` to the same shape; position t sees positions up to t."""
        dropout = self.dropout if self.training else 0.0
        mixed = attended(self.query_key_value(x), self.heads, dropout=dropout, is_causal=True)
        return torch.as_tensor(self.out(mixed))


class Block(nn.Module):
    """Attention and a two-layer network, each normalised before and added to its input.

    Args:
        config: Its width, heads and dropout.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width), nn.GELU(), nn.Linear(4 * config.width, config.width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, length, width)`` to the same shape."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return torch.as_tensor(x + self.dropout(self.mlp(self.norm2(x))))


class Transformer(nn.Module):
    """Predicts the next token at every position.

    Args:
        config: Its size.
        vocabulary: Number of tokens.
        context: Longest input, in tokens.

    Example:
        >>> net = TransformerConfig(depth=1, width=8, heads=2).build(vocabulary=5, context=6)
        >>> tuple(net(torch.zeros(3, 6, dtype=torch.long)).shape)
        (3, 6, 5)
    """

    def __init__(self, config: TransformerConfig, vocabulary: int, context: int) -> None:
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocabulary, config.width)
        self.positions = nn.Embedding(context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, vocabulary, bias=False)
        self._initialise(config.depth)
        if config.tied:
            self.head.weight = self.tokens.weight

    def _initialise(self, depth: int) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, weight in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.2.weight")):
                nn.init.normal_(weight, std=INITIAL_STD / math.sqrt(2 * depth))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(n, length)`` to logits ``(n, length, vocabulary)``.

        Raises:
            ValueError: The input is longer than the context.
        """
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(f"{length} tokens are more than the context of {self.context}; cut the input")
        places = torch.arange(length, device=tokens.device)
        x = self.dropout(self.tokens(tokens) + self.positions(places))
        return torch.as_tensor(self.head(self.norm(self.blocks(x))))
