"""What every system of ``bench/simulation.py`` trains: models, clients' examples, cohorts and orders.

``prepare`` writes one workload's arrays into a folder; every system maps the same bytes, so nothing depends on a
system's own versions, and data costs all of them the same memory. Peers import this file with numpy and torch
alone; only the factories for pfl-mobile (``personalized``, ``task``, ``plan``) need more.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from pfl_mobile import PersonalizedModel
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.programs.tasks import Task

CLASSES = 62
LENGTH, VOCABULARY, RANK = 20, 2000, 4
REPOSITORY = Path(__file__).resolve().parents[2]
Rows = dict[str, np.ndarray]


class Mlp(nn.Module):
    """Two linear layers with a ReLU between: float32 [B, inputs] to [B, 62]."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.output = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes."""
        return self.output(F.relu(self.hidden(x)))


class Cnn(nn.Module):
    """The convolutional network of FEMNIST papers, in its common small form: float32 [B, 784] to [B, 62]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.hidden = nn.Linear(64 * 12 * 12, 128)
        self.output = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes."""
        x = F.relu(self.conv1(x.reshape(-1, 1, 28, 28)))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.output(F.relu(self.hidden(x.flatten(1))))


class LoRALinear(nn.Linear):
    """A frozen linear layer plus ``B(A(x))``, as anyone would write it."""

    def __init__(self, base: nn.Linear, rank: int = RANK) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.empty(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """[..., out] from [..., in]."""
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.lora_A), self.lora_B)


def _keyboard() -> nn.Module:
    """The keyboard recipe's decoder, read from its file: the package need not be installed."""
    path = REPOSITORY / "recipes" / "pfl_recipes" / "keyboard" / "model.py"
    spec = importlib.util.spec_from_file_location("keyboard_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    config = module.KeyboardConfig(
        vocabulary=VOCABULARY, length=LENGTH, width=128, layers=2, heads=4, feed_forward=512, dropout=0.0
    )
    keyboard: nn.Module = module.Keyboard(config)
    return keyboard


def _with_lora(keyboard: Any) -> nn.Module:
    for block in keyboard.blocks:
        block.attention.query = LoRALinear(block.attention.query)
        block.attention.value = LoRALinear(block.attention.value)
    for name, parameter in keyboard.named_parameters():
        parameter.requires_grad_("lora_" in name)
    module: nn.Module = keyboard
    return module


def _size(rng: np.random.Generator, clients: int) -> np.ndarray:
    """Lognormal numbers of examples of mean 100, 10 to 1000, int64 [clients]."""
    return np.clip(rng.lognormal(np.log(100) - 0.125, 0.5, clients), 10, 1000).astype(np.int64)


def _labels(rng: np.random.Generator, size: int) -> np.ndarray:
    """Classes of one client, who has a taste of its own for a few of them, int64 [size]."""
    return rng.choice(CLASSES, size, p=rng.dirichlet(np.full(CLASSES, 0.3)))


def _images(rng: np.random.Generator, prototypes: np.ndarray, labels: np.ndarray) -> Rows:
    x = rng.standard_normal((len(labels), prototypes.shape[1]), dtype=np.float32)
    x += prototypes[labels]
    x *= np.float32(0.3)
    return {"x": x, "labels": labels, "weight": np.ones(len(labels), np.float32)}


def _femnist_like(inputs: int) -> Callable[[np.random.Generator, int], Rows]:
    """Images of 62 classes, float32 [examples, inputs]."""

    def generate(rng: np.random.Generator, clients: int) -> Rows:
        sizes = _size(rng, clients)
        prototypes = rng.standard_normal((CLASSES, inputs), dtype=np.float32)
        labels = np.concatenate([_labels(rng, size) for size in sizes])
        return {**_images(rng, prototypes, labels), "sizes": sizes}

    return generate


class LazyImages:
    """Rows like those of ``mlp``, made when a client's are asked for: index to (train, test)."""

    def __init__(self, inputs: int = 784) -> None:
        """Images of ``inputs`` values."""
        self.prototypes = np.random.default_rng(42).standard_normal((CLASSES, inputs), dtype=np.float32)

    def __call__(self, index: int) -> tuple[Rows, Rows]:
        """All rows of a client, and no rows to test on."""
        rng = np.random.default_rng([42, index])
        rows = _images(rng, self.prototypes, _labels(rng, int(_size(rng, 1)[0])))
        return rows, {name: value[:0] for name, value in rows.items()}


def _sentences(rng: np.random.Generator, clients: int) -> Rows:
    """20 sequences of 20 tokens for each client, words by Zipf's law over an order of the client's own."""
    zipf = 1 / np.arange(1, VOCABULARY + 1)
    zipf /= zipf.sum()
    drawn = rng.choice(VOCABULARY, (clients, 20, LENGTH + 1), p=zipf)
    shift = rng.integers(VOCABULARY, size=(clients, 1, 1))
    text = ((drawn + shift) % VOCABULARY).reshape(-1, LENGTH + 1)
    return {
        "tokens": np.ascontiguousarray(text[:, :-1]),
        "labels": np.ascontiguousarray(text[:, 1:]),
        "weight": np.ones((len(text), LENGTH), np.float32),
        "sizes": np.full(clients, 20),
    }


@dataclass(frozen=True)
class Workload:
    """One model and its federation; local training is one epoch of SGD over batches of ``batch`` rows.

    Attributes:
        build: a plain PyTorch module; what ``requires_grad`` is trained and exchanged.
        generate: all clients' rows in one piece, with ``sizes`` int64 [clients].
        inputs: name of the model's input among the rows.
        rounds: rounds after which the systems' models are compared, warm-up included.
    """

    name: str
    build: Callable[[], nn.Module]
    generate: Callable[[np.random.Generator, int], Rows]
    inputs: str = "x"
    clients: int = 1000
    cohort: int = 50
    batch: int = 10
    lr: float = 0.1
    rounds: int = 3

    def module(self) -> nn.Module:
        """The plain module in eval mode (it has no dropout and no batch statistics), weights not yet set."""
        return self.build().eval()

    def draw(self) -> dict[str, np.ndarray]:
        """Values of the whole module by parameter name, drawn by numpy so that no torch version matters."""
        rng = np.random.default_rng(7)
        values = {}
        for name, parameter in self.module().named_parameters():
            shape = tuple(parameter.shape)
            if name.endswith(("lora_B", "bias")):
                values[name] = np.zeros(shape, np.float32)
            elif len(shape) == 1:
                values[name] = np.ones(shape, np.float32)
            else:
                scale = 0.02 if name == "position" else float(np.prod(shape[1:])) ** -0.5
                values[name] = np.float32(scale) * rng.standard_normal(shape, dtype=np.float32)
        return values


WORKLOADS = {
    w.name: w
    for w in (
        Workload("mlp", lambda: Mlp(784, 200), _femnist_like(784)),
        Workload(
            "lora_keyboard",
            lambda: _with_lora(_keyboard()),
            _sentences,
            inputs="tokens",
            cohort=32,
            batch=5,
            lr=0.5,
        ),
        Workload("tiny", lambda: Mlp(64, 32), _femnist_like(64)),
        Workload("cnn", Cnn, _femnist_like(784), lr=0.01, rounds=2),
    )
}


#: Which phase of FedAvg's plan trains; the order of examples depends on it.
TRAINS = 1


def client_seed(number: int, client: int) -> int:
    """Seed of a client's shuffle in one round."""
    return (number << 32) + client


def prepare(
    workload: Workload, folder: Path, *, rounds: int, clients: int | None = None, cohort: int | None = None
) -> str:
    """Write the arrays of a workload into ``folder``; returns a digest of their bytes.

    Args:
        rounds: rounds with a cohort and orders of their own; a system that runs longer begins again.
        clients, cohort: sizes other than the workload's.
    """
    from pfl_mobile.rows import epoch_order

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(42)
    clients, cohort = clients or workload.clients, cohort or workload.cohort
    arrays = workload.generate(rng, clients)
    sizes = arrays.pop("sizes")
    chosen = np.stack([rng.choice(clients, cohort, replace=False) for _ in range(rounds)])
    orders = [
        epoch_order(int(sizes[client]), client_seed(number, int(client)), TRAINS, 0)
        for number, cohort_ in enumerate(chosen)
        for client in cohort_
    ]
    tables = {
        "sizes": sizes,
        "cohorts": chosen,
        "orders": np.concatenate(orders),
        **{f"rows.{k}": v for k, v in arrays.items()},
        **{f"value.{k}": v for k, v in workload.draw().items()},
    }
    digest = hashlib.sha256()
    for name in sorted(tables):
        np.save(folder / f"{name}.npy", tables[name])
        digest.update(name.encode() + np.ascontiguousarray(tables[name]).tobytes())
    (folder / "rows.json").write_text(json.dumps(sorted(arrays)))
    return digest.hexdigest()


class Prepared:
    """A prepared workload, its arrays mapped from the folder."""

    def __init__(self, name: str, folder: Path) -> None:
        """Open what :func:`prepare` wrote for workload ``name``."""
        self.workload = WORKLOADS[name]
        self.folder = folder
        # copy-on-write: PyTorch warns about arrays that cannot be written
        self._rows = {
            k: np.load(folder / f"rows.{k}.npy", mmap_mode="c")
            for k in json.loads((folder / "rows.json").read_text())
        }
        self.sizes = np.load(folder / "sizes.npy")
        self.cohorts: list[list[int]] = np.load(folder / "cohorts.npy").tolist()
        self._ends = np.cumsum(self.sizes)
        self._orders = np.load(folder / "orders.npy", mmap_mode="c")
        counts = self.sizes[np.array(self.cohorts)].ravel()
        self._order_ends = np.cumsum(counts)

    def cohort(self, number: int) -> list[int]:
        """Clients of round ``number``, in their order; the list of cohorts begins again at its end."""
        return self.cohorts[number % len(self.cohorts)]

    def seed(self, number: int, client: int) -> int:
        """The client's ``Client.seed`` in round ``number``."""
        return client_seed(number % len(self.cohorts), client)

    def rows(self, client: int) -> Rows:
        """The client's rows, views of the mapped arrays."""
        end = int(self._ends[client])
        part = slice(end - int(self.sizes[client]), end)
        return {k: np.asarray(v[part]) for k, v in self._rows.items()}

    def order(self, number: int, place: int) -> np.ndarray:
        """``epoch_order`` of the client at ``place`` in round ``number``'s cohort, int64 [rows].

        Computed beforehand: peers shuffle with a generator of PyTorch's own, ours should not slow them down.
        """
        k = (number % len(self.cohorts)) * len(self.cohorts[0]) + place
        end = int(self._order_ends[k])
        client = self.cohort(number)[place]
        return np.asarray(self._orders[end - int(self.sizes[client]) : end])

    def batches(self, number: int, place: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(input, labels) of every step of that client, in the order that all systems share."""
        rows = self.rows(self.cohort(number)[place])
        order = torch.from_numpy(self.order(number, place))
        x = torch.from_numpy(rows[self.workload.inputs])[order]
        y = torch.from_numpy(rows["labels"])[order]
        yield from zip(x.split(self.workload.batch), y.split(self.workload.batch), strict=True)

    def module(self) -> nn.Module:
        """The plain module with the common initial weights."""
        module = self.workload.module()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.from_numpy(np.load(self.folder / f"value.{name}.npy")))
        return module

    def initial(self) -> dict[str, np.ndarray]:
        """Initial values of the trained tensors by name, sorted."""
        trained = [n for n, p in self.workload.module().named_parameters() if p.requires_grad]
        return {name: np.load(self.folder / f"value.{name}.npy") for name in sorted(trained)}

    def example(self) -> dict[str, Tensor]:
        """One batch of the right shapes, for tracing."""
        rows = {k: np.array(v[: self.workload.batch]) for k, v in self._rows.items()}
        return {k: torch.from_numpy(v) for k, v in rows.items()}

    def personalized(self) -> PersonalizedModel:
        """The same model as pfl-mobile sees it, all trained tensors shared; names as in :meth:`initial`."""
        from pfl_mobile import Head, LoRA, personalize

        if self.workload.name == "lora_keyboard":
            backbone = _keyboard()
            modules: list[Any] = [LoRA(("*.attention.query", "*.attention.value"), rank=RANK)]
        else:
            backbone = self.workload.module()
            modules = [Head("*")]
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                parameter.copy_(torch.from_numpy(np.load(self.folder / f"value.{name}.npy")))
        model = personalize(backbone, modules, roles={"*": "shared"})
        model.load_values(self.initial())
        return model

    def task(self) -> Task:
        """The loss as pfl-mobile's task."""
        from pfl_mobile import ClassificationTask, TokenTask

        return TokenTask(VOCABULARY) if self.workload.inputs == "tokens" else ClassificationTask(CLASSES)

    def plan(self) -> Plan:
        """What FedAvg lets a device do: take the server's values over, then one epoch of SGD."""
        from pfl_mobile.plan.optimizers import Sgd
        from pfl_mobile.strategies.fedavg import FedAvg
        from pfl_mobile.strategies.state import Local, RoundContext

        local = Local(epochs=1, optimizer=Sgd(lr=self.workload.lr))
        return FedAvg().plan(RoundContext(tuple(self.personalized().device_tensors()), local))


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over all examples, or all tokens, of a batch."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())
