"""Two vision transformers in plain torch, for classifier files whose own library cannot be installed.

Marqo's and Freepik's classifiers were saved by timm, which needs a torchvision that fits the torch at
hand; hosts seldom have one. The shapes are read from the file. Written from the papers and the files'
tensor names: ViT (arXiv 2010.11929) and EVA-02 (arXiv 2303.11331).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HEAD_WIDTH = 64
_EPSILON = 1e-6
_ROPE_BASE = 10000.0
_ROPE_GRID = 16
"""EVA-02's positions are those of its pre-training, 16 x 16 patches, stretched over the image."""


class PatchTransformer(nn.Module):
    """What both have in common: patches and a class token with learned positions, then equal blocks.

    Args:
        tensors: the file's tensors, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Read the shape off the tensors."""
        super().__init__()
        dim, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(tensors["pos_embed"].shape))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, dim, patch, patch)})
        self.grid = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
        self.size = self.grid * patch
        self.dim = dim
        self.depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed [N, 3, size, size] as tokens [N, 1 + grid * grid, D]."""
        patches = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], dim=1)
        return tokens + self.pos_embed


class VisionTransformer(PatchTransformer):
    """ViT as timm saves it: the class token decides.

    Args:
        tensors: the file's tensors, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Make a model of the tensors' shape, and fill it."""
        super().__init__(tensors)
        hidden, classes = tensors["blocks.0.mlp.fc1.weight"].shape[0], tensors["head.weight"].shape[0]
        self.blocks = nn.ModuleList(_Block(self.dim, hidden) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.dim, _EPSILON)
        self.head = nn.Linear(self.dim, classes)
        self.load_state_dict(tensors)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of the classes: [N, 3, size, size] -> [N, K]."""
        tokens = self.embed(pixels)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens)[:, 0])
        return logits


class Eva02(PatchTransformer):
    """EVA-02 as timm saves it: rotary positions, gated MLPs, the mean of the patches decides.

    Args:
        tensors: the file's tensors, by name.
    """

    rotation: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Make a model of the tensors' shape, and fill it."""
        super().__init__(tensors)
        hidden, classes = tensors["blocks.0.mlp.fc1_g.weight"].shape[0], tensors["head.weight"].shape[0]
        self.blocks = nn.ModuleList(_EvaBlock(self.dim, hidden) for _ in range(self.depth))
        self.fc_norm = nn.LayerNorm(self.dim, _EPSILON)
        self.head = nn.Linear(self.dim, classes)
        self.load_state_dict(tensors)
        self.register_buffer("rotation", _rotation(self.grid), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of the classes: [N, 3, size, size] -> [N, K]."""
        tokens = self.embed(pixels)
        for block in self.blocks:
            tokens = block(tokens, self.rotation)
        logits: Tensor = self.head(self.fc_norm(tokens[:, 1:].mean(dim=1)))
        return logits


class _Block(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, _EPSILON), nn.LayerNorm(dim, _EPSILON)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = map(_split, self.attn["qkv"](self.norm1(tokens)).chunk(3, dim=-1))
        tokens = tokens + self.attn["proj"](_merge(F.scaled_dot_product_attention(q, k, v)))
        changed: Tensor = tokens + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(tokens))))
        return changed


class _EvaBlock(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, _EPSILON), nn.LayerNorm(dim, _EPSILON)
        self.attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(dim, dim),
                "k_proj": nn.Linear(dim, dim, bias=False),
                "v_proj": nn.Linear(dim, dim),
                "proj": nn.Linear(dim, dim),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "fc1_g": nn.Linear(dim, hidden),
                "fc1_x": nn.Linear(dim, hidden),
                "norm": nn.LayerNorm(hidden, _EPSILON),
                "fc2": nn.Linear(hidden, dim),
            }
        )

    def forward(self, tokens: Tensor, rotation: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        q, k = (_rotate(_split(self.attn[name](normed)), rotation) for name in ("q_proj", "k_proj"))
        v = _split(self.attn["v_proj"](normed))
        tokens = tokens + self.attn["proj"](_merge(F.scaled_dot_product_attention(q, k, v)))
        normed = self.norm2(tokens)
        gated = F.silu(self.mlp["fc1_g"](normed)) * self.mlp["fc1_x"](normed)
        changed: Tensor = tokens + self.mlp["fc2"](self.mlp["norm"](gated))
        return changed


def _split(tokens: Tensor) -> Tensor:
    """Split into heads: [N, T, D] -> [N, heads, T, 64]."""
    heads: Tensor = tokens.unflatten(-1, (-1, _HEAD_WIDTH)).transpose(1, 2)
    return heads


def _merge(heads: Tensor) -> Tensor:
    """Merge the heads: [N, heads, T, 64] -> [N, T, D]."""
    return heads.transpose(1, 2).flatten(2)


def _rotation(grid: int) -> Tensor:
    """Return cosine and sine of every patch's angles: [2, grid * grid, 64]; rows first, then columns."""
    quarter = _HEAD_WIDTH // 4
    rates: Tensor = torch.pow(_ROPE_BASE, -torch.arange(quarter) / quarter)
    positions = torch.arange(grid) * (_ROPE_GRID / grid)
    rows, columns = torch.meshgrid(positions, positions, indexing="ij")
    angles = torch.stack([rows, columns], dim=-1)[..., None] * rates
    # Neighbouring dimensions of a head form a plane that rotates by one angle.
    planes = angles.flatten(0, 1).flatten(1).repeat_interleave(2, dim=-1)
    return torch.stack([planes.cos(), planes.sin()])


def _rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the patches' queries or keys; the class token (first) has no position and stays as it is."""
    first, patches = heads[..., :1, :], heads[..., 1:, :]
    quarter_turn = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    return torch.cat([first, patches * rotation[0] + quarter_turn * rotation[1]], dim=-2)
