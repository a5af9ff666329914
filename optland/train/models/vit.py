"""A small vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929).

The image is cut into patches, each patch becomes a token, and ``depth`` blocks of attention and MLP follow:

    x = x + attention(norm(x));    x = x + mlp(norm(x))

The normalisation stands before each part, the positions are learned, and the tokens' mean goes to the linear layer.
Attention goes through ``scaled_dot_product_attention`` in training and evaluation alike, so a probe and the training
step see the same function (PyTorch's own encoder switches to other kernels in evaluation).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optland.train.models.layers import ImageShape, Plan, attended

__all__ = ["HEAD", "VisionTransformer", "patch_size"]

HEAD = 16
"""Units of an attention head; the width is a multiple of it."""


def patch_size(side: int) -> int:
    """Pixels of a patch along an axis: 4, or 2 where the axis is short, or 1 where there is one pixel.

    Args:
        side: Pixels of the image along the axis.

    Example:
        >>> [patch_size(side) for side in (32, 28, 8, 1)]
        [4, 4, 2, 1]
    """
    return 4 if side >= 16 else min(side, 2)


class Block(nn.Module):
    """Self-attention and an MLP of four times the width, each on normalised input and added to it.

    Args:
        width: Length of a token's vector, a multiple of :data:`HEAD`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attention(self, x: Tensor) -> Tensor:
        """Softmax attention of every token ``(n, t, width)`` to every token."""
        return torch.as_tensor(self.out(attended(self.qkv(x), self.heads)))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``(n, t, width)`` to tokens."""
        x = x + self.attention(self.norm1(x))
        return x + torch.as_tensor(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Patches, positions, ``depth`` blocks, a last normalisation, the mean token and a linear layer.

    Args:
        shape: Channels, height and width of the images; height and width are multiples of their :func:`patch_size`.
        classes: Outputs.
        plan: Its size.
    """

    def __init__(self, shape: ImageShape, classes: int, plan: Plan) -> None:
        super().__init__()
        c, h, w = shape
        patch = patch_size(h), patch_size(w)
        self.patches = nn.Conv2d(c, plan.width, patch, stride=patch)
        tokens = (h // patch[0]) * (w // patch[1])
        self.positions = nn.Parameter(torch.empty(1, tokens, plan.width))
        nn.init.uniform_(self.positions, -0.03, 0.03)  # a deviation of about 0.02
        self.blocks = nn.Sequential(*(Block(plan.width) for _ in range(plan.depth)))
        self.norm = nn.LayerNorm(plan.width)
        self.dropout = nn.Dropout(plan.dropout)
        self.head = nn.Linear(plan.width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(n, c, h, w)`` to logits ``(n, classes)``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return torch.as_tensor(self.head(self.dropout(self.norm(self.blocks(tokens)).mean(dim=1))))
