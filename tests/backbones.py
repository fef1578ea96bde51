"""Small backbones that every part is tested on: each function gives ``(module, example inputs)``.

All are deterministic by ``seed``, in eval mode, and small enough that a trace takes seconds. Token models
take int64 ``[B, T]`` and give logits ``[B, T, vocabulary]``; the others give ``[B, classes]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

Example = tuple[nn.Module, tuple[Tensor, ...]]


class MLP(nn.Module):
    """Two hidden layers; logits [B, classes] from features [B, features]."""

    def __init__(self, features: int = 6, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))


class ResidualBlock(nn.Module):
    """A norm and a hidden layer, beside which the input goes on, where flags say so; [B, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, flags: Tensor) -> Tensor:
        return torch.where(flags, x + self.down(F.gelu(self.up(self.norm(x)))), x)


class ResidualMLP(nn.Module):
    """Blocks that are equal but for their weights, and read the same flags; logits [B, classes] from features
    [B, features]."""

    def __init__(self, features: int = 6, classes: int = 4, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(features) for _ in range(blocks))
        self.head = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        flags = x < 2
        for block in self.blocks:
            x = block(x, flags)
        return self.head(x)


class CNN(nn.Module):
    """Convolutions (one strided, one depthwise) with frozen BatchNorm; images [B, 3, 8, 8]."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 12, 1),
            nn.ReLU(),
        )
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(dim=(2, 3)))


class SensorCNN(nn.Module):
    """1-D convolutions over a sensor window [B, 6, 16]."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv1d(6, 8, 3, padding=1)
        self.second = nn.Conv1d(8, 8, 3, dilation=2, groups=2)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        past = F.pad(F.relu(self.first(x)), (4, 0))  # the second convolution looks back only
        return self.head(F.relu(self.second(past)).mean(dim=2))


class RecurrentLM(nn.Module):
    """Embedding, one recurrent layer (``nn.GRU`` or ``nn.LSTM``), linear output."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM], vocabulary: int = 29, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = kind(width, width, batch_first=True)
        self.proj = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.rnn(self.embed(tokens))
        return self.head(torch.tanh(self.proj(hidden)))


class Attention(nn.Module):
    """Multi-head self-attention through ``F.scaled_dot_product_attention``; x [B, T, width]."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            layer(x).view(batch, length, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Pre-norm transformer block with a GELU feed-forward part."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal=causal)
        self.ln2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class Encoder(nn.Module):
    """Bidirectional transformer classifier: tokens [B, T] to logits [B, classes]."""

    def __init__(
        self, vocabulary: int = 23, width: int = 16, heads: int = 2, layers: int = 1, classes: int = 4
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.1 * torch.randn(32, width))
        self.blocks = nn.ModuleList([Block(width, heads, causal=False) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class Decoder(nn.Module):
    """GPT-like decoder with learned positions; ``tied`` shares the embedding with the output."""

    def __init__(
        self,
        vocabulary: int = 31,
        width: int = 16,
        heads: int = 2,
        layers: int = 1,
        context: int = 32,
        *,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, heads, causal=True) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=not tied)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.positions(torch.arange(x.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary position embedding (Su 2021) of x [B, heads, T, d]; d even."""
    length, half = x.shape[2], x.shape[3] // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angle = torch.arange(length, dtype=torch.float32, device=x.device)[:, None] * frequency
    cos, sin = torch.cos(angle), torch.sin(angle)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class GroupedAttention(nn.Module):
    """Causal grouped-query attention with RoPE: ``heads`` query heads share ``kv_heads`` key/value heads."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        self.q = nn.Linear(width, heads * self.size, bias=False)
        self.k = nn.Linear(width, kv_heads * self.size, bias=False)
        self.v = nn.Linear(width, kv_heads * self.size, bias=False)
        self.out = nn.Linear(heads * self.size, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.heads, self.size).transpose(1, 2)
        k = self.k(x).view(batch, length, self.kv_heads, self.size).transpose(1, 2)
        v = self.v(x).view(batch, length, self.kv_heads, self.size).transpose(1, 2)
        repeat = self.heads // self.kv_heads
        k = rotate(k).repeat_interleave(repeat, dim=1)
        v = v.repeat_interleave(repeat, dim=1)
        y = F.scaled_dot_product_attention(rotate(q), k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


class SwiGLUBlock(nn.Module):
    """Block in the style of recent decoders: RMSNorm, grouped attention, SwiGLU."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attn = GroupedAttention(width, heads, kv_heads)
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class ModernDecoder(nn.Module):
    """RMSNorm + RoPE + SwiGLU + grouped-query attention, tied output."""

    def __init__(
        self, vocabulary: int = 31, width: int = 16, heads: int = 4, kv_heads: int = 2, layers: int = 1
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList([SwiGLUBlock(width, heads, kv_heads) for _ in range(layers)])
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _tokens(vocabulary: int, batch: int = 3, length: int = 7) -> Tensor:
    tokens = torch.randint(4, vocabulary, (batch, length))
    tokens[:, 0] = 1
    return tokens


def mlp(seed: int = 0) -> Example:
    """An MLP on features [B, 6], 4 classes."""
    torch.manual_seed(seed)
    return MLP().eval(), (torch.randn(5, 6),)


def cnn(seed: int = 0) -> Example:
    """A CNN on images [B, 3, 8, 8], 5 classes, with BatchNorm statistics that are not the defaults."""
    torch.manual_seed(seed)
    model = CNN()
    with torch.no_grad():  # a few steps in training mode, so that eval-mode BatchNorm does something
        for _ in range(3):
            model(1.0 + 2.0 * torch.randn(8, 3, 8, 8))
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.uniform_(layer.bias, -0.5, 0.5)
    return model.eval(), (torch.randn(4, 3, 8, 8),)


def sensor(seed: int = 0) -> Example:
    """A 1-D CNN on windows [B, 6, 16], 3 classes."""
    torch.manual_seed(seed)
    return SensorCNN().eval(), (torch.randn(4, 6, 16),)


def gru(seed: int = 0) -> Example:
    """A GRU language model, vocabulary 29."""
    torch.manual_seed(seed)
    return RecurrentLM(nn.GRU).eval(), (_tokens(29, length=4),)


def lstm(seed: int = 0) -> Example:
    """An LSTM language model, vocabulary 29."""
    torch.manual_seed(seed)
    return RecurrentLM(nn.LSTM).eval(), (_tokens(29, length=4),)


def encoder(seed: int = 0) -> Example:
    """A transformer encoder classifier on tokens, 4 classes."""
    torch.manual_seed(seed)
    return Encoder().eval(), (_tokens(23),)


def decoder(seed: int = 0) -> Example:
    """A decoder of two blocks with its own output weight, vocabulary 31."""
    torch.manual_seed(seed)
    return Decoder(layers=2).eval(), (_tokens(31),)


def tied_decoder(seed: int = 0) -> Example:
    """A decoder whose output weight is its embedding, vocabulary 31."""
    torch.manual_seed(seed)
    return Decoder(tied=True).eval(), (_tokens(31),)


def modern_decoder(seed: int = 0) -> Example:
    """RMSNorm + RoPE + SwiGLU + grouped-query attention, tied, vocabulary 31."""
    torch.manual_seed(seed)
    return ModernDecoder().eval(), (_tokens(31),)


BACKBONES: dict[str, Callable[..., Example]] = {
    f.__name__: f for f in (mlp, cnn, sensor, gru, lstm, encoder, decoder, tied_decoder, modern_decoder)
}
#: The ones whose output is per token, [B, T, vocabulary].
TOKEN_MODELS = ("gru", "lstm", "decoder", "tied_decoder", "modern_decoder")
