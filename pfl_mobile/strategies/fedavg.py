"""Federated averaging, the strategy that others depart from."""

from __future__ import annotations

from dataclasses import dataclass

from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.strategy import Strategy


@register(
    "fedavg",
    title="Federated averaging",
    paper="McMahan and others 2017, Communication-efficient learning of deep networks from decentralized data "
    "(arXiv 1602.05629)",
    shares="all trained tensors",
)
@dataclass(frozen=True, kw_only=True)
class FedAvg(Strategy):
    """Every device trains from the global values; the server averages by examples.

    The paper's algorithm 1: w_k <- w - eta * grad over E local epochs, w <- sum_k (n_k / n) w_k. Here the devices
    send w_k - w, which gives the same average.

    Limits: with one full-batch step a round is one step of gradient descent on all examples together.
    """
