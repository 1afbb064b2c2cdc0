"""A small causal transformer that predicts the next byte of a text.

Radford, Wu, Child, Luan, Amodei, Sutskever, "Language models are unsupervised multitask learners",
2019: norms before attention and before the feed-forward part, GELU, places that are learned.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .metrics import accuracy, perplexity
from .model import Model
from .registry import register
from .specification import SampleSpec

BYTES = 256
LENGTH = 64


class Block(nn.Module):
    """Causal self-attention and a feed-forward part, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the layers.

        Args:
            width: numbers a position, a multiple of `heads`.
            heads: of the attention.
        """
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, L, width] of the same."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.attention(self.norm1(x)).chunk(3, -1)
        )
        heads = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mixed(heads.transpose(1, 2).flatten(2))
        lifted: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + lifted


class ByteTransformer(nn.Module):
    """The model; its sizes are arguments so that a small one can be checked by brute force."""

    def __init__(
        self,
        width: int = 128,
        heads: int = 4,
        layers: int = 2,
        tokens: int = BYTES,
        length: int = LENGTH,
    ) -> None:
        """Make the layers.

        Args:
            width: numbers a position, a multiple of `heads`.
            heads: of each block's attention.
            layers: blocks.
            tokens: different ones.
            length: the most positions of a sample.
        """
        super().__init__()
        self.tokens = nn.Embedding(tokens, width)
        self.places = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)
        for table in (self.tokens.weight, self.places):
            nn.init.normal_(table, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [N, tokens, L] of what follows each of [N, L]."""
        x = self.tokens(tokens) + self.places[: tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits.movedim(-1, 1)


@register
def byte_transformer() -> Model:
    """Return the recipe: 64 bytes to the byte after each, mean cross entropy, perplexity."""
    text = SampleSpec(
        shape=(LENGTH,),
        dtype=torch.int64,
        conversions={torch.uint8: Tensor.long},
        minimum=0,
        maximum=BYTES - 1,
    )
    return Model(
        name="byte_transformer",
        build=ByteTransformer,
        loss=nn.CrossEntropyLoss,
        inputs=replace(text, meaning=f"{LENGTH} bytes of a text, int64 or uint8"),
        targets=replace(text, meaning="the byte after each of them"),
        metrics={"accuracy": accuracy, "perplexity": perplexity},
        max_batch=1024,
    )
