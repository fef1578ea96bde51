"""The keyboard's backbone: a small decoder that predicts the next word."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfl_mobile.errors import ConfigError


@dataclass(frozen=True)
class KeyboardConfig:
    """Sizes of the backbone; the defaults have 1.69 million parameters, 1.28 million of them word vectors.

    Attributes:
        vocabulary: V, number of token ids, specials included.
        length: T, longest sequence in tokens.
        width: d, size of the word vectors and of every layer's output.
        layers: number of decoder blocks.
        heads: attention heads; divides ``width``.
        feed_forward: inner size of the feed-forward layers.
        dropout: share of activations dropped while the backbone is trained; none afterwards.
    """

    vocabulary: int = 10000
    length: int = 20
    width: int = 128
    layers: int = 2
    heads: int = 4
    feed_forward: int = 512
    dropout: float = 0.2

    def __post_init__(self) -> None:
        """Check the sizes (ConfigError)."""
        for key in ("vocabulary", "length", "width", "layers", "heads", "feed_forward"):
            if getattr(self, key) < 1:
                raise ConfigError(f"keyboard: {key}={getattr(self, key)}", mend=f"give a positive {key}")
        if self.width % self.heads:
            raise ConfigError(
                f"keyboard: {self.heads} heads do not divide a width of {self.width}",
                mend="choose a width that is a multiple of the heads",
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"keyboard: dropout={self.dropout}", mend="give a share from 0 to below 1")


class RootMeanSquareNorm(nn.Module):
    """x / rms(x) with a learned scale (Zhang and Sennrich 2019); [..., width] to [..., width]."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        """Scale of one for every feature."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Causal self-attention over x [B, T, width]."""

    def __init__(self, width: int, heads: int) -> None:
        """Four square projections without bias."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] from [B, T, width]; a position sees itself and those before it."""
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(mixed.transpose(1, 2).reshape(x.shape))


class FeedForward(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, width: int, inner: int) -> None:
        """``width`` to ``inner`` and back."""
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] from [B, T, width]."""
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """One decoder block: attention and feed-forward, each behind a norm and around a shortcut."""

    def __init__(self, config: KeyboardConfig) -> None:
        """Layers of the sizes in ``config``."""
        super().__init__()
        self.attention_norm = RootMeanSquareNorm(config.width)
        self.attention = Attention(config.width, config.heads)
        self.feed_forward_norm = RootMeanSquareNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.feed_forward)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] from [B, T, width]."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Keyboard(nn.Module):
    """Next-word logits. The output layer's weight is the embedding's (Press and Wolf 2017).

    >>> model = Keyboard(KeyboardConfig(vocabulary=100))
    >>> model(torch.ones(1, 20, dtype=torch.int64)).shape
    torch.Size([1, 20, 100])
    """

    def __init__(self, config: KeyboardConfig | None = None) -> None:
        """A model with random weights, drawn from torch's global generator."""
        super().__init__()
        self.config = config = config or KeyboardConfig()
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Parameter(0.02 * torch.randn(config.length, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RootMeanSquareNorm(config.width)
        self.output = nn.Linear(config.width, config.vocabulary)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.output.weight = self.embedding.weight
        nn.init.zeros_(self.output.bias)
        with torch.no_grad():
            for block in self.blocks:  # every block adds twice to the stream: keep its size
                block.attention.output.weight *= (2 * config.layers) ** -0.5
                block.feed_forward.down.weight *= (2 * config.layers) ** -0.5

    def features(self, tokens: Tensor) -> Tensor:
        """What the output layer reads: [B, T, width] from tokens int64 [B, T], T at most ``length``."""
        x = self.embedding(tokens)
        x = self.dropout(x + self.position[: x.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.dropout(self.norm(x))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits float32 [B, T, V] of the token after each position, from tokens int64 [B, T]."""
        return self.output(self.features(tokens))
