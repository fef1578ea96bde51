"""The personalized prediction beside that of the backbone as it shipped."""

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
from pfl_mobile.modules.model import logits_of
from pfl_mobile.modules.registry import ModuleConfig, positive, register

if TYPE_CHECKING:
    from pfl_mobile.modules.insertion import Insertion


@register("mixture")
@dataclass(frozen=True)
class BackboneMixture(ModuleConfig):
    """Mixes what the personalized model predicts with what the backbone alone does, by the message so far.

    Personalization forgets: text that is not like the user's own is predicted worse than before. Here

        p(w) = (1 - s) p_backbone(w) + s p_personal(w)

    where s is the probability that the message is of the user's kind: a Bayesian average of the two (Hoeting and others
    1999) whose log odds are those of ``share`` plus ``evidence`` times the sum of log(p_personal / p_backbone) of the
    tokens so far, at most 3 each, multiplied with ``fade`` for each token after it.

    p_backbone is of the file as it shipped: what a federation learns in shared tensors counts as personal here.

    It has no tensors of its own, and takes part in ``evaluate`` and ``predict`` only, which compute the backbone twice;
    files hold it once. The output is log p, [B, T, V] from logits [B, T, V] and tokens [B, T]; while the modules are
    fresh it is ``log_softmax`` of the backbone's logits. A word in a vocabulary slot is unknown to the backbone.

    Attributes:
        share: s before any evidence.
        evidence: how much a token says; 0 leaves the share alone.
        fade: what a token's evidence is multiplied with for each token after it.
        specials: the first ids, which stand for no word: they are no evidence.
        unk: id of the unknown word.
        words: that the backbone knows; None takes it from the example.
    """

    share: float = field(default=0.35, kw_only=True)
    evidence: float = field(default=1.0, kw_only=True)
    fade: float = field(default=0.95, kw_only=True)
    specials: int = field(default=4, kw_only=True)
    unk: int = field(default=2, kw_only=True)
    words: int | None = field(default=None, kw_only=True)

    in_gradients = False
    reads_backbone = True
    position = 30

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        check_evidence("BackboneMixture", self.share, self.evidence, self.fade, self.specials)
        positive("BackboneMixture", words=1 if self.words is None else self.words)
        if self.unk < 0:
            raise ConfigError(f"BackboneMixture: unk={self.unk} is below zero", mend="give a token id")

    @override
    def insert(self, site: Insertion) -> None:
        """Put the backbone beside what it becomes."""
        assert site.untouched is not None  # as this kind reads it
        shape = (site.shapes or {}).get("")
        if shape is not None and len(shape) != 3:
            raise ConfigError(
                f"{site.name}: the backbone's output {list(shape)} is not [batch, length, vocabulary]",
                mend="use a mixture with token models only",
            )
        words = self.words if shape is None else shape[-1]
        if words is None:
            raise ConfigError(
                f"{site.name}: how many words the backbone knows is not known",
                mend="give words=, or give personalize an example input",
            )
        if self.words not in (None, words):
            raise ConfigError(
                f"{site.name}: words={self.words}, but the backbone gives {words} logits", mend="leave it out"
            )
        if self.unk >= words:
            raise ConfigError(
                f"{site.name}: unk={self.unk} is outside of the {words} words",
                mend="give the unknown word's id",
            )
        site.extra(Mixture(self, site.untouched, words))
        site.outputs.append(site.name)


class Mixture(nn.Module):
    """The average of :class:`BackboneMixture`."""

    def __init__(self, config: BackboneMixture, backbone: nn.Module, words: int) -> None:
        """Of what comes in and what the backbone, which knows so many words and nothing was put into, predicts."""
        super().__init__()
        self.backbone = backbone
        self.words, self.unk = words, config.unk
        self.evidence = Evidence(config.share, config.evidence, config.fade, config.specials)

    def forward(self, logits: Tensor, tokens: Tensor, *others: Tensor) -> Tensor:
        """Log-probabilities [B, T, V] from logits [B, T, V] and tokens int64 [B, T]."""
        own = F.log_softmax(logits, dim=-1)
        known = torch.where(tokens < self.words, tokens, torch.full_like(tokens, self.unk))
        plain = F.log_softmax(logits_of(self.backbone(known, *others)), dim=-1)
        odds = self.evidence.weigh(tokens, self._ratio(tokens, own, plain))
        share, rest = torch.sigmoid(odds), torch.sigmoid(-odds)
        apart = torch.exp(torch.clamp(own[..., : self.words] - plain, max=_MOST_APART))
        mixed = plain + torch.log(torch.clamp(rest + share * apart, min=LEAST))
        slots = torch.log(torch.clamp(share, min=LEAST)) + own[..., self.words :]
        return torch.cat((mixed, slots), dim=-1) if slots.shape[-1] else mixed

    def _ratio(self, tokens: Tensor, own: Tensor, plain: Tensor) -> Tensor:
        """log(p_personal / p_backbone) of each token but the first, [B, T - 1, 1]."""
        least = math.log(LEAST)
        follow = tokens[:, 1:].unsqueeze(-1)
        mine = torch.gather(own[:, :-1], -1, follow)
        theirs = torch.gather(plain[:, :-1], -1, torch.clamp(follow, max=self.words - 1))
        theirs = torch.where(follow < self.words, theirs, torch.full_like(theirs, least))
        return torch.clamp(mine, min=least) - torch.clamp(theirs, min=least)


#: Log ratios of probabilities above this are taken for it: their exponential stays finite in float32.
_MOST_APART = 80.0
