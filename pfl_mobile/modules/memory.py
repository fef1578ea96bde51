"""A personal n-gram memory that is mixed into the output."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.evidence import LEAST, Evidence, check_evidence
from pfl_mobile.modules.registry import ModuleConfig, positive, register
from pfl_mobile.modules.shared_ngrams import SharedNgrams
from pfl_mobile.modules.slots import UNASSIGNED

if TYPE_CHECKING:
    from pfl_mobile.modules.insertion import Insertion


@register("memory")
@dataclass(frozen=True)
class NgramMemory(ModuleConfig):
    """Remembers which token followed which context and mixes those counts with the model's prediction.

    An interpolated n-gram model (Jelinek and Mercer 1980) over the user's own text, with the backbone as one
    more component, as in cache language models (Kuhn and De Mori 1990):

        p(w) = sum_k lambda_k count_k(w) / n_k + lambda_S p_S(w) + lambda_LM p_LM(w),   k = 0..order-1

    n_k is the number of entries whose last k context tokens are those before the position. The lambdas are a
    softmax over ``bias_k + weight_k log(1 + n_k)``, the score of the row of p_S, and 0 for the LM; an order
    with n_k = 0 takes no part. p_S are n-grams of everybody's text, frozen (:class:`SharedNgrams`): there are
    none unless ``shared`` and ``followers`` are given. The output is log p, [B, T, V] from logits [B, T, V] and
    tokens [B, T]; with an empty memory it is exactly ``log_softmax(logits)``. It takes part in ``evaluate`` and
    ``predict`` only.

    Tensors, written by the host: ``memory.next`` int64 [capacity], the token that followed, 0 for an empty
    entry; ``memory.context`` int64 [capacity, order - 1], the tokens before it, nearest first, 0 before the
    start of the message. The weights ``memory.gate.weight`` and ``memory.gate.bias`` [order] are frozen on a
    device; a recipe may train them beforehand. All tensors of the user's text are personal.

    Attributes:
        capacity: number of entries.
        order: longest n-gram, 2 or more: 4 looks at up to three tokens of context.
        vocabulary: total number of tokens including slots, to check what is loaded; None checks nothing.
        shared: buckets for contexts of two tokens in everybody's n-grams; needs ``vocabulary`` and ``followers``.
        followers: words kept after each context in everybody's n-grams; 0 for no such n-grams.
        discount: D, from 0 to below 1; 0 for the sum of orders above.
        share: of the user's n-grams in the mixture, with a discount and before any evidence.
        evidence: how much the message so far says about that share; 0 leaves it alone.
        fade: what a token's evidence is multiplied with for each token after it.
        specials: the first ids, which stand for no word: they are no evidence.
    """

    capacity: int = 2048
    order: int = 4
    vocabulary: int | None = None
    shared: int = 0
    followers: int = 0
    discount: float = field(default=0.0, kw_only=True)
    share: float = field(default=0.3, kw_only=True)
    evidence: float = field(default=0.3, kw_only=True)
    fade: float = field(default=0.8, kw_only=True)
    specials: int = field(default=4, kw_only=True)

    in_gradients = False
    position = 40

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        positive("NgramMemory", capacity=self.capacity)
        positive("NgramMemory", vocabulary=1 if self.vocabulary is None else self.vocabulary)
        if self.order < 2:
            raise ConfigError(f"NgramMemory: order={self.order} has no context", mend="give 2 or more")
        if self.shared or self.followers:
            positive("NgramMemory", shared=self.shared, followers=self.followers)
            if self.vocabulary is None:
                raise ConfigError(
                    "NgramMemory: everybody's n-grams need the size of the vocabulary",
                    mend="give vocabulary=",
                )
        self._check_discount()

    def _check_discount(self) -> None:
        if not 0.0 <= self.discount < 1.0:
            raise ConfigError(
                f"NgramMemory: discount={self.discount}", mend="give a number from 0 to below 1"
            )
        check_evidence("NgramMemory", self.share, self.evidence, self.fade, self.specials)
        if self.discount and self.followers:
            raise ConfigError(
                "NgramMemory: with a discount there are no n-grams of everybody",
                mend="leave out shared and followers, or the discount",
            )

    @override
    def insert(self, site: Insertion) -> None:
        """Add the memory behind the backbone's output."""
        shared = SharedNgrams(self.vocabulary or 0, self.shared, self.followers) if self.followers else None
        own: nn.Module = Memory(self.order, shared)
        if self.discount:
            own = DiscountedMemory(self)
        site.extra(own)
        contexts = torch.zeros(self.capacity, self.order - 1, dtype=torch.int64)
        empty = torch.zeros(self.capacity, dtype=torch.int64)
        site.add(site.name, "next", empty, update="memorize", private=True)
        site.add(site.name, "context", contexts, update="memorize", private=True)
        shape = (site.shapes or {}).get("")
        if shape is not None and len(shape) != 3:
            raise ConfigError(
                f"{site.name}: the backbone's output {list(shape)} is not [batch, length, vocabulary]",
                mend="use a memory with token models only",
            )
        site.outputs.append(site.name)


class MemoryGate(nn.Module):
    """Mixture weights from the number of matches of each context length."""

    def __init__(self, order: int) -> None:
        """Defaults: trust grows with the length of the context and, slowly, with the number of matches."""
        super().__init__()
        steps = torch.arange(order, dtype=torch.float32)
        bias = -3.0 + steps
        bias[0] = -3.5
        weight = torch.full((order,), 0.2)
        weight[0] = 0.05  # every entry matches the empty context, so its count tells little
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias.clamp(max=0.0), requires_grad=False)

    def forward(self, counts: Tensor, shared: Tensor | None = None) -> Tensor:
        """Log of the weights [..., order + 1], the LM last, from counts [..., order].

        With the score of everybody's n-grams [...], their weight stands before the LM's: [..., order + 2].
        """
        scores = self.bias + self.weight * torch.log1p(counts)
        scores = torch.where(counts > 0, scores, torch.full_like(scores, UNASSIGNED))
        others = [] if shared is None else [shared.unsqueeze(-1)]
        return F.log_softmax(torch.cat([scores, *others, torch.zeros_like(scores[..., :1])], dim=-1), dim=-1)


class Entries(nn.Module):
    """What a memory remembers, as buffers ``next`` and ``context``, and which of it fits."""

    next: Tensor
    context: Tensor

    def __init__(self, order: int) -> None:
        """Entries of n-grams of up to ``order`` tokens."""
        super().__init__()
        self.order = order

    def matches(self, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
        """Which entries the context before each position of tokens int64 [B, T] matches.

        Returns:
            One mask float32 for each order, [capacity] for order 0 and [B, T, capacity] for 1..order-1; and the
            counts n_k [B, T, order].
        """
        dtype = torch.float32
        masks = [(self.next > 0).to(dtype)]
        # max(0, 1 - |a - b|) is 1 for equal ids and 0 for others, exactly. Phones have fast kernels for it, but
        # not for comparing integers, and this is most of the work.
        own, ids = self.context.to(dtype).t().contiguous(), tokens.to(dtype)
        for k in range(self.order - 1):
            before = F.pad(ids, (k, 0))[:, : ids.shape[1]].unsqueeze(-1)
            masks.append(masks[-1] * torch.clamp(1.0 - torch.abs(before - own[k]), min=0.0))
        counts = [mask.sum(-1).expand(tokens.shape) for mask in masks]
        return masks, torch.stack(counts, dim=-1)


class Memory(Entries):
    """The sum of orders of :class:`NgramMemory`."""

    def __init__(self, order: int, shared: SharedNgrams | None = None) -> None:
        """Memory for n-grams of up to ``order`` tokens, perhaps with everybody's n-grams beside them."""
        super().__init__(order)
        self.gate = MemoryGate(order)
        self.shared = shared

    def forward(self, logits: Tensor, tokens: Tensor, *_others: Tensor) -> Tensor:
        """Log-probabilities [B, T, V] from logits [B, T, V] and tokens int64 [B, T]."""
        masks, count = self.matches(tokens)
        shared, score = self.shared, None
        rows = tokens if shared is None else shared.rows(tokens)
        if shared is not None:
            score = shared.scores(rows)
        log_weights = self.gate(count, score)
        shares = torch.exp(log_weights[..., : self.order]) / torch.clamp(count, min=1.0)
        # one weight an entry first, so that there is a single scatter over the vocabulary
        weight = shares[..., :1] * masks[0]
        for k in range(1, self.order):
            weight = weight + shares[..., k : k + 1] * masks[k]
        log_p = F.log_softmax(logits, dim=-1)
        index = self.next.expand(*tokens.shape, -1)
        cache = torch.zeros_like(log_p).scatter_add(-1, index, weight)
        if shared is not None:
            words, parts = shared.followers(rows)
            cache = cache.scatter_add(-1, words, torch.exp(log_weights[..., -2:-1]) * parts)
        return _added(log_p + log_weights[..., -1:], cache, logits)


#: Places in which equal pairs of context and token are counted; a prime, so that ids spread over them.
_BUCKETS = 262139
# Spreads the ids of a context over the buckets.
_STRIDE = 7919


class DiscountedMemory(Entries):
    """The discounted model of :class:`NgramMemory`."""

    def __init__(self, config: NgramMemory) -> None:
        """With the sizes and numbers of the module."""
        super().__init__(config.order)
        self.discount = config.discount
        self.evidence = Evidence(config.share, config.evidence, config.fade, config.specials)

    def discounts(self) -> list[Tensor]:
        """D / c_k of each entry, [capacity] for each order: c_k entries are like it in token and context."""
        buckets, found = torch.remainder(self.next, _BUCKETS), []
        for k in range(self.order):
            if k:
                buckets = torch.remainder(buckets * _STRIDE + self.context[:, k - 1] + 1, _BUCKETS)
            used = (self.next > 0).to(torch.float32)
            count = torch.zeros(_BUCKETS).scatter_add(0, buckets, used).index_select(0, buckets)
            found.append(self.discount / torch.clamp(count, min=1.0))
        return found

    def own(self, tokens: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The user's part of p_{order-1}, [B, T, V] as ``like``, and the share [B, T, 1] that it leaves to the LM."""
        masks, counts = self.matches(tokens)
        discounts = self.discounts()
        left, scales = torch.ones_like(counts[..., :1]), []
        for k in reversed(range(self.order)):
            count = counts[..., k : k + 1]
            most = torch.clamp(count, min=1.0)
            scales.append(left / most)
            taken = (masks[k] * discounts[k]).sum(-1).expand(tokens.shape).unsqueeze(-1)
            left = left * torch.where(count > 0, taken / most, torch.ones_like(count))
        weight = scales.pop() * (masks[0] * (1.0 - discounts[0]))
        for k in range(1, self.order):
            weight = weight + scales.pop() * masks[k] * (1.0 - discounts[k])
        index = self.next.expand(*tokens.shape, -1)
        return torch.zeros_like(like).scatter_add(-1, index, weight), left

    def share(self, tokens: Tensor, own: Tensor, left: Tensor, log_p: Tensor) -> Tensor:
        """s [B, T, 1], from what the parts thought of the tokens so far."""
        follow = tokens[:, 1:].unsqueeze(-1)
        expected = torch.gather(log_p[:, :-1], -1, follow)
        mine = torch.gather(own[:, :-1], -1, follow) + left[:, :-1] * torch.exp(expected)
        ratio = torch.log(torch.clamp(mine, min=LEAST)) - torch.clamp(expected, min=math.log(LEAST))
        return torch.sigmoid(self.evidence.weigh(tokens, ratio))

    def forward(self, logits: Tensor, tokens: Tensor, *_others: Tensor) -> Tensor:
        """Log-probabilities [B, T, V] from logits [B, T, V] and tokens int64 [B, T]."""
        log_p = F.log_softmax(logits, dim=-1)
        own, left = self.own(tokens, log_p)
        share = self.share(tokens, own, left, log_p)
        # exactly 0 where the memory is empty, as it leaves everything then
        return _added(log_p + torch.log1p(-share * (1.0 - left)), share * own, logits)


def _added(a: Tensor, cache: Tensor, logits: Tensor) -> Tensor:
    """log(exp(a) + cache), and exactly ``a`` where the cache is 0; unassigned slots stay impossible.

    The inner values stay finite on both branches, so gradients of a gate do too.
    """
    hit = (cache > 0) & (logits > 0.5 * UNASSIGNED)
    b = torch.log(torch.where(hit, cache, torch.ones_like(cache)))
    top = torch.maximum(a, b)
    return torch.where(hit, top + torch.log(torch.exp(a - top) + torch.exp(b - top)), a)
