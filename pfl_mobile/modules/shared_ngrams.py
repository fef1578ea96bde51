"""Everybody's n-grams as a frozen table: what usually follows one or two tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pfl_mobile.modules.slots import UNASSIGNED

# Spreads pairs of tokens over the buckets.
_STRIDE = 7919


class SharedNgrams(nn.Module):
    """The likeliest followers of contexts of one and of two tokens, to look up in constant time.

    Rows 0..vocabulary-1 are for the contexts of that one token; bucket ``(7919 u + v) mod buckets`` behind them
    is for the context u v. Buffers, frozen on a device and empty at first: ``words`` int32 [rows, followers];
    ``parts`` float32 [rows, followers], their probabilities, with sum 1; ``score`` [rows], how far to trust the
    row, -1e9 for an empty one; ``key`` int64 [buckets], u * vocabulary + v of the context in the bucket or -1.

    Args:
        vocabulary: number of tokens, slots included.
        buckets: places for contexts of two tokens.
        followers: words kept for each context.
    """

    words: Tensor
    parts: Tensor
    score: Tensor
    key: Tensor

    def __init__(self, vocabulary: int, buckets: int, followers: int) -> None:
        """An empty table."""
        super().__init__()
        self.vocabulary, self.buckets = vocabulary, buckets
        rows = vocabulary + buckets
        self.register_buffer("words", torch.zeros(rows, followers, dtype=torch.int32))
        self.register_buffer("parts", torch.zeros(rows, followers))
        self.register_buffer("score", torch.full((rows,), UNASSIGNED))
        self.register_buffer("key", torch.full((buckets,), -1, dtype=torch.int64))

    def bucket(self, first: Tensor, second: Tensor) -> Tensor:
        """Bucket of the contexts ``first second``, int64 of their shape."""
        return torch.remainder(first * _STRIDE + second, self.buckets)

    def rows(self, tokens: Tensor) -> Tensor:
        """Row int64 [B, T] for the context of each position: two tokens where they are known, else one."""
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
        bucket = self.bucket(before, tokens)
        key = self.key.index_select(0, bucket.flatten()).reshape(tokens.shape)
        return torch.where(key == before * self.vocabulary + tokens, self.vocabulary + bucket, tokens)

    def scores(self, rows: Tensor) -> Tensor:
        """Trust in each row, float32 of the shape of ``rows``."""
        return self.score.index_select(0, rows.flatten()).reshape(rows.shape)

    def followers(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Words int64 and probabilities float32 [B, T, followers] of rows [B, T]."""
        flat, shape = rows.flatten(), (*rows.shape, -1)
        words = self.words.index_select(0, flat).to(torch.int64).reshape(shape)
        return words, self.parts.index_select(0, flat).reshape(shape)
