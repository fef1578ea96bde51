"""Optimizers of the server: the mean change of a round is a pseudo-gradient.

Reddi and others 2021, "Adaptive federated optimization" (arXiv 2003.00295), algorithm 2, with Delta_t the mean
change of the devices:

    m_t = beta1 * m_(t-1) + (1 - beta1) * Delta_t
    v_t = v_(t-1) + Delta_t^2                                              (FedAdagrad)
    v_t = v_(t-1) - (1 - beta2) * Delta_t^2 * sign(v_(t-1) - Delta_t^2)    (FedYogi)
    v_t = beta2 * v_(t-1) + (1 - beta2) * Delta_t^2                        (FedAdam)
    x_(t+1) = x_t + eta * m_t / (sqrt(v_t) + tau)

without bias correction; m starts at 0 and v at tau^2. FedAvgM is server momentum: Hsu, Qi and Brown 2019,
"Measuring the effects of non-identical data distribution for federated visual classification"
(arXiv 1909.06335): v <- beta * v + Delta, x <- x + eta * v.

They go with every strategy: ``FedRep(optimizer=FedAdam(lr=0.01))``. They optimize shared tensors; tensors of groups
are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.strategies.fedavg import FedAvg
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.server_optimizer import ServerOptimizer
from pfl_mobile.strategies.state import Server, Values

Rate = Annotated[float, Param("learning rate of the server, eta", low=0.0, open=("low",))]
Beta1 = Annotated[float, Param("decay of the first moment; 0 is none", low=0.0, high=1.0, open=("high",))]
Beta2 = Annotated[float, Param("decay of the second moment", low=0.0, high=1.0, open=("high",))]
Tau = Annotated[
    float,
    Param("adaptivity; with tau large the step is lr / (2 tau) * m, not adaptive", low=0.0, open=("low",)),
]
Momentum = Annotated[
    float, Param("server momentum, beta; 0 is FedAvg when lr is 1", low=0.0, high=1.0, open=("high",))
]


@dataclass(frozen=True, kw_only=True)
class FedAvgM(ServerOptimizer):
    """Server momentum. Limits: momentum = 0 and lr = 1 is plain averaging, bit for bit."""

    lr: Rate = 1.0
    momentum: Momentum = 0.9

    @override
    def apply(self, server: Server, key: str, values: dict[str, np.ndarray], change: Values) -> None:
        """v <- momentum * v + change; values <- values + lr * v."""
        old = server.sets.get(f"{key}.momentum", {})
        new = dict(old)
        for name, delta in change.items():
            new[name] = np.float32(self.momentum) * old[name] + delta if name in old else delta
            values[name] = values[name] + np.float32(self.lr) * new[name]
        server.sets[f"{key}.momentum"] = new


@dataclass(frozen=True, kw_only=True)
class _Adaptive(ServerOptimizer):
    """What the three adaptive optimizers have in common."""

    lr: Rate = 0.1
    beta1: Beta1 = 0.9
    tau: Tau = 1e-3

    def second(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        """v_t from v_(t-1) and Delta_t^2."""
        raise NotImplementedError

    @override
    def apply(self, server: Server, key: str, values: dict[str, np.ndarray], change: Values) -> None:
        """One step of algorithm 2."""
        first, second = dict(server.sets.get(f"{key}.m", {})), dict(server.sets.get(f"{key}.v", {}))
        lr, beta, tau = np.float32(self.lr), np.float32(self.beta1), np.float32(self.tau)
        for name, delta in change.items():
            m, v = first.get(name, np.zeros_like(delta)), second.get(name, np.full_like(delta, tau * tau))
            first[name] = beta * m + (np.float32(1) - beta) * delta
            second[name] = self.second(v, delta * delta)
            values[name] = values[name] + lr * first[name] / (np.sqrt(second[name]) + tau)
        server.sets[f"{key}.m"], server.sets[f"{key}.v"] = first, second


@dataclass(frozen=True, kw_only=True)
class FedAdagrad(_Adaptive):
    """v grows by every squared change. Limits: see ``tau``."""

    beta1: Beta1 = 0.0

    @override
    def second(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        """v + Delta^2."""
        return np.asarray(v + square)


@dataclass(frozen=True, kw_only=True)
class FedAdam(_Adaptive):
    """v is a moving mean of squared changes. Limits: beta1 = beta2 = 0 and tau -> 0 takes steps lr * sign."""

    beta2: Beta2 = 0.99

    @override
    def second(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        """beta2 * v + (1 - beta2) * Delta^2."""
        return np.asarray(np.float32(self.beta2) * v + np.float32(1 - self.beta2) * square)


@dataclass(frozen=True, kw_only=True)
class FedYogi(_Adaptive):
    """v moves towards the squared change by an amount that depends on the latter alone.

    Limits: see ``tau``; while changes grow from zero it is FedAdagrad with (1 - beta2) * Delta^2.
    """

    beta2: Beta2 = 0.99

    @override
    def second(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        """v - (1 - beta2) * Delta^2 * sign(v - Delta^2)."""
        return np.asarray(v - np.float32(1 - self.beta2) * square * np.sign(v - square))


_PAPER = "Reddi and others 2021, Adaptive federated optimization (arXiv 2003.00295)"


@register(
    "fedavgm",
    title="FedAvg with server momentum",
    paper="Hsu, Qi and Brown 2019, Measuring the effects of non-identical data distribution for federated visual "
    "classification (arXiv 1909.06335)",
    shares="all trained tensors",
)
def fedavgm(lr: Rate = 1.0, momentum: Momentum = 0.9) -> FedAvg:
    """FedAvg whose server is ``FedAvgM``."""
    return FedAvg(optimizer=FedAvgM(lr=lr, momentum=momentum))


@register("fedadagrad", title="FedAvg with Adagrad on the server", paper=_PAPER, shares="all trained tensors")
def fedadagrad(lr: Rate = 0.1, beta1: Beta1 = 0.0, tau: Tau = 1e-3) -> FedAvg:
    """FedAvg whose server is ``FedAdagrad``."""
    return FedAvg(optimizer=FedAdagrad(lr=lr, beta1=beta1, tau=tau))


@register("fedadam", title="FedAvg with Adam on the server", paper=_PAPER, shares="all trained tensors")
def fedadam(lr: Rate = 0.1, beta1: Beta1 = 0.9, beta2: Beta2 = 0.99, tau: Tau = 1e-3) -> FedAvg:
    """FedAvg whose server is ``FedAdam``."""
    return FedAvg(optimizer=FedAdam(lr=lr, beta1=beta1, beta2=beta2, tau=tau))


@register("fedyogi", title="FedAvg with Yogi on the server", paper=_PAPER, shares="all trained tensors")
def fedyogi(lr: Rate = 0.1, beta1: Beta1 = 0.9, beta2: Beta2 = 0.99, tau: Tau = 1e-3) -> FedAvg:
    """FedAvg whose server is ``FedYogi``."""
    return FedAvg(optimizer=FedYogi(lr=lr, beta1=beta1, beta2=beta2, tau=tau))
