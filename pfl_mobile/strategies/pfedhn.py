"""pFedHN: a network on the server that makes every device's model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from typing_extensions import override

from pfl_mobile.hyperparameters import Param
from pfl_mobile.merge.update_rows import GROUP
from pfl_mobile.plan.upload import UpdateLayout
from pfl_mobile.random import derive
from pfl_mobile.strategies.registry import register
from pfl_mobile.strategies.state import Server, Values
from pfl_mobile.strategies.strategy import Strategy, check_values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pfl_mobile.merge.updates import Updates

#: Largest norm of a gradient of the hypernetwork, as in the authors' code.
CLIP = 50.0
#: Bound of the output layer's first weights: every device starts near the shipped values.
OUTPUT = 0.02
#: How often a step that goes too far is halved.
HALVINGS = 20

Tensors = dict[str, np.ndarray]


@register(
    "pfedhn",
    title="pFedHN: a hypernetwork makes each device's model",
    paper="Shamsian, Navon, Fetaya, Chechik 2021, Personalized federated learning using hypernetworks "
    "(arXiv 2103.04628)",
    shares="all trained tensors, which differ by device; the hypernetwork stays on the server",
)
@dataclass(frozen=True, kw_only=True)
class PFedHN(Strategy):
    """theta_i = h(v_i; phi): a multilayer perceptron h on the server, and an embedding v_i of each device.

    The paper's algorithm 1: device i gets theta_i, trains it to theta~_i and sends the change
    delta_i = theta~_i - theta_i; then, by the chain rule,

        phi <- phi + lr * (d theta_i / d phi)' delta_i,    v_i <- v_i + lr_embedding * (d theta_i / d v_i)' delta_i

    The server sees changes only, neither data nor losses. A new device needs an embedding and nothing else:
    :meth:`adapt` fits it with phi fixed.

    Ours: theta_i = shipped values + h(v_i; phi), so that training starts near them; a round has many devices, so
    phi takes the mean of their steps (by ``weighting``) and each v_i its own step; ``optimizer`` may add momentum to
    phi's step (the authors use 0.9, one device a round, and weight decay). The gradient is clipped to a norm of 50,
    as in the authors' code. The last hidden layer is divided by the root of its width, so that lr means the same
    for every width: theta_i moves by about lr * delta_i for the output's bias and once more for its weights.
    ``global`` of a device that never took part comes from its random embedding; the global model is the one of the
    mean embedding of those that did.

    A step that would move the cohort's models further than the devices did is halved until it does not: without
    that, a step of 0.5 ruined the network where devices differ by much.

    A merge takes the memory of a few hypernetworks and of ``GROUP`` models, however many devices a round has.

    Limits: lr = lr_embedding = 0 leaves every device with the model it starts with.
    """

    merges_means: ClassVar[bool] = False
    why_not_private: ClassVar[str] = "the embedding of a device follows the change of that device alone"

    lr: Annotated[float, Param("step of the hypernetwork", low=0.0)] = 0.5
    lr_embedding: Annotated[float, Param("step of the embeddings", low=0.0)] = 0.5
    embedding: Annotated[int, Param("size of an embedding; 0 is 1 + devices/4, at most 16", low=0)] = 0
    hidden: Annotated[int, Param("width of the hidden layers", low=1)] = 100
    depth: Annotated[int, Param("number of hidden layers", low=1)] = 3

    @override
    def begin(self, server: Server) -> None:
        """Draw the hypernetwork: He's bound for hidden layers, an output layer that is nearly 0, no biases."""
        layout = self._layout(server)
        size = self.embedding or min(1 + server.population // 4, 16)
        widths = [size, *[self.hidden] * self.depth, layout.size]
        phi: Tensors = {}
        for k, (fan_in, fan_out) in enumerate(pairwise(widths)):
            bound = np.sqrt(6 / fan_in) if k < self.depth else OUTPUT
            rng = np.random.default_rng(derive(0, k))
            phi[f"w{k}"] = rng.uniform(-bound, bound, (fan_out, fan_in)).astype(np.float32)
            phi[f"b{k}"] = np.zeros(fan_out, np.float32)
        shipped = np.zeros(layout.size, np.float32)
        layout.pack(server.values, shipped)
        server.sets |= {"hypernet": phi, "hypernet_shipped": {"theta": shipped}, "embeddings": {}}

    @staticmethod
    def _layout(server: Server) -> UpdateLayout:
        return UpdateLayout({n: server.values[n].shape for n in server.names("shared", "group")})

    def embedding_of(self, server: Server, client: int) -> np.ndarray:
        """v_i, float32: trained, or the random one that it starts from."""
        known = server.sets.get("embeddings", {}).get(str(client))
        if known is not None:
            return known
        size = server.sets["hypernet"]["w0"].shape[1]
        fresh = np.random.default_rng(derive(1, client)).standard_normal(size, np.float32)
        return np.asarray(fresh, np.float32)

    def generate(self, server: Server, embeddings: np.ndarray) -> np.ndarray:
        """theta of embeddings [n, size], float32 [n, P]."""
        shipped = server.sets["hypernet_shipped"]["theta"]
        return np.asarray(shipped + _forward(server.sets["hypernet"], embeddings)[-1], np.float32)

    @override
    def sets_for(self, server: Server, client: int, group: str) -> dict[str, Values]:
        flat = self.generate(server, self.embedding_of(server, client)[None])[0]
        return {"global": {**server.values, **self._layout(server).unpack(flat)}}

    @override
    def merge(self, server: Server, updates: Updates) -> None:
        """One step of the hypernetwork and of the cohort's embeddings."""
        with server.undo_on_error():
            weights = updates.bounded(self.weighting.weights(updates, server))
            embeddings, step_phi, step_v = self._steps(server, updates, weights)
            phi = dict(server.sets["hypernet"])
            self.optimizer.apply(server, "hypernet", phi, step_phi)
            check_values(phi, phi)
            server.sets["hypernet"] = phi
            self._keep(server, updates, embeddings + step_v)
            seen = np.stack([v for _, v in sorted(server.sets["embeddings"].items())])
            flat = self.generate(server, seen.mean(axis=0, dtype=np.float32)[None])[0]
            server.values = {**server.values, **self._layout(server).unpack(flat)}

    def adapt(self, server: Server, updates: Updates) -> None:
        """Fit the embeddings of new devices from their changes, and change nothing else."""
        with server.undo_on_error():
            embeddings, _, step = self._steps(server, updates, None)
            self._keep(server, updates, embeddings + step)

    def _keep(self, server: Server, updates: Updates, embeddings: np.ndarray) -> None:
        fresh = {str(c): v for c, v in zip(updates.clients, embeddings, strict=True)}
        check_values(fresh, fresh)
        server.sets["embeddings"] = {**server.sets.get("embeddings", {}), **fresh}

    def _steps(
        self, server: Server, updates: Updates, weights: np.ndarray | None
    ) -> tuple[np.ndarray, Tensors, np.ndarray]:
        """Embeddings [n, size] of the cohort, the step of phi (none without weights), those of the embeddings."""
        layout, phi = self._layout(server), server.sets["hypernet"]
        embeddings = np.stack([self.embedding_of(server, c) for c in updates.clients])
        total = 0.0 if weights is None else float(weights.sum())
        parts = np.zeros(len(updates)) if weights is None or not total else weights / total
        of_phi, of_v = {n: np.zeros_like(x) for n, x in phi.items()}, np.zeros_like(embeddings)
        for few in _groups(len(updates)):
            changes = np.empty((few.stop - few.start, layout.size), np.float32)
            for row, out in zip(range(few.start, few.stop), changes, strict=True):
                layout.pack(updates.one(row), out)
            some, of_v[few] = _backward(phi, embeddings[few], changes, parts[few].astype(np.float32))
            for name, gradient in some.items():
                of_phi[name] += gradient
        # The chain rule is linear in the change, so up is along it: phi moves theta_i toward theta~_i.
        clip = _clip(np.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in of_phi.values())))
        step_phi = {name: np.float32(self.lr * clip) * g for name, g in of_phi.items()}
        norms = np.sqrt(np.square(of_v, dtype=np.float64).sum(axis=1))
        step_v = np.array([self.lr_embedding * _clip(n) for n in norms], np.float32)[:, None] * of_v
        limit = float(np.sqrt(updates.squares(list(layout.shapes)).sum()))
        shorter = self._no_further(phi, embeddings, step_phi, step_v, limit)
        return embeddings, {n: shorter * g for n, g in step_phi.items()}, shorter * step_v

    @staticmethod
    def _no_further(
        phi: Tensors, v: np.ndarray, step_phi: Tensors, step_v: np.ndarray, limit: float
    ) -> np.float32:
        """The first of 1, 1/2, 1/4, ... that moves the cohort's models no further than ``limit``, an L2 norm."""
        factor = np.float32(1)
        for _ in range(HALVINGS):
            new, new_v = {n: x + factor * step_phi[n] for n, x in phi.items()}, v + factor * step_v
            moved = (_forward(new, new_v[few])[-1] - _forward(phi, v[few])[-1] for few in _groups(len(v)))
            if not math.hypot(*(float(np.linalg.norm(m)) for m in moved)) > limit:
                break
            factor = factor / np.float32(2)
        return factor


def _groups(count: int) -> Iterator[slice]:
    """Rows that are in memory at a time."""
    return (slice(first, min(first + GROUP, count)) for first in range(0, count, GROUP))


def _clip(norm: float) -> float:
    return CLIP / norm if norm > CLIP else 1.0


def _forward(phi: Tensors, v: np.ndarray) -> list[np.ndarray]:
    """Inputs of every layer and the output: linear layers, ReLU between them, the last hidden one over its root."""
    values, last = [v], len(phi) // 2 - 1
    for k in range(last):
        values.append(np.maximum(values[-1] @ phi[f"w{k}"].T + phi[f"b{k}"], 0))
    values[-1] = values[-1] / _root(phi)
    return [*values, values[-1] @ phi[f"w{last}"].T + phi[f"b{last}"]]


def _backward(
    phi: Tensors, v: np.ndarray, changes: np.ndarray, parts: np.ndarray
) -> tuple[Tensors, np.ndarray]:
    """Gradient of sum_i parts_i <h(v_i), changes_i> by phi, and of each <h(v_i), changes_i> by v_i, [n, size]."""
    values, last = _forward(phi, v), len(phi) // 2 - 1
    gradients: Tensors = {}
    up = changes
    for k in range(last, -1, -1):
        gradients[f"w{k}"] = (up * parts[:, None]).T @ values[k]
        gradients[f"b{k}"] = parts @ up
        up = up @ phi[f"w{k}"]
        if k:
            up = up * (values[k] > 0)
        if k == last:
            up = up / _root(phi)
    return gradients, up


def _root(phi: Tensors) -> np.float32:
    """Root of the width of the last hidden layer."""
    return np.float32(np.sqrt(phi[f"w{len(phi) // 2 - 1}"].shape[1]))
