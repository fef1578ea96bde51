"""A study and a server give the same answer to the same question, as both are drivers of one definition of a round.

Asked for every strategy x fairness x merge rule x privacy mechanism, as the registries list them: may these be put
together, and what do they make of the same updates? Refused is refused with the same code, and accepted gives the same
bits. A study is asked by its rounds, and for each strategy and fairness by the whole `Study`, which takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pfl_mobile.bundle import Bundle
from pfl_mobile.errors import PflError
from pfl_mobile.federation.compose import compose
from pfl_mobile.merge.rules import create_rule, rule_entries
from pfl_mobile.merge.update_rows import MatrixRows, norms
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.schema import Plan
from pfl_mobile.plan.upload import UpdateLayout
from pfl_mobile.privacy import Ledger, config
from pfl_mobile.programs.tasks import ClassificationTask
from pfl_mobile.random import derive
from pfl_mobile.simulation import privacy as simulated
from pfl_mobile.simulation.rounds import Rounds
from pfl_mobile.simulation.worker import Record, Setup
from pfl_mobile.strategies import Local, Strategy, create, names, registry
from pfl_mobile.strategies.state import Server
from pfl_mobile.study import Study
from pfl_server.federation.config import FederationConfig
from pfl_server.federation.runtime import Runtime
from pfl_server.rounds.accepted_updates import Accepted
from pfl_server.rounds.merge import merge_rows
from tests.server.basics import RepeatingNoise
from tests.server.testbed import open_bundle
from tests.simulation.small import Task, Users
from tests.study.small import Net, population

pytest.importorskip("dp_accounting")

USERS, SEED, LR = 9, 5, 0.3
GROUPS = {"even": [0, 2, 4, 6, 8], "odd": [1, 3, 5, 7]}
TENSORS = (("a", "shared", (4,)), ("b", "shared", (2, 3)), ("p", "personal", (2,)))
FAIRNESS = (None, *registry.fairness_names())
RULES = [entry.name for entry in rule_entries()]
#: Some updates are longer than the clip norm.
COMMON = {"clip_norm": 0.3, "cohort": USERS, "population": USERS}
NOISE = {"delta": 1e-3, "budget_epsilon": 20.0}
MECHANISMS: dict[str, dict[str, Any]] = {
    "gaussian": {"noise_multiplier": 1.0} | NOISE,
    "matrix": {"noise_multiplier": 1.0} | NOISE,
    "local": {"local_noise_multiplier": 2.0} | NOISE,
    "none": {},
}


def test_every_mechanism_is_asked_about() -> None:
    assert set(MECHANISMS) == set(config.MECHANISMS)


@dataclass(frozen=True)
class Question:
    strategy: str
    fairness: str | None
    rule: str
    mechanism: str


@dataclass(frozen=True)
class Answer:
    """A code where the question is refused; else the server after a round of the made-up updates."""

    code: str | None = None
    merged: Server | None = None
    silent: bool = False


class Model:
    """What the simulator asks of a model: the tensors of a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def device_tensors(self) -> list[Any]:
        return list(self.bundle.manifest.tensors)

    def values(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(value) for name, value in self.bundle.values().items()}


class MadeUp:
    """An engine whose devices send made-up updates in place of training."""

    lanes = 1

    def start(self, setup: Setup) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"name": "made up"}

    def run(self, task: Any, jobs: Sequence[Any], pool: Any, states: Any) -> tuple[list[Any], np.ndarray]:
        assert task.summed_by is None
        clients = [client for job in jobs for client in job.clients]
        return [record(client, task.plan) for client in clients], changes(task.changes, clients)

    def close(self) -> None:
        pass


def record(client: int, plan: Plan) -> Record:
    """Examples and losses that are near to those of others: the bounds of a server change nothing of them."""
    rng = np.random.default_rng((1, client))
    reports = {name: float(rng.uniform(0.9, 1.1)) for name in sorted(plan.reports)}
    if "cluster" in reports:
        reports["cluster"] = float(client % 2)
    return Record(client, int(rng.integers(20, 40)), int(rng.integers(3, 6)), reports)


def changes(layout: UpdateLayout, clients: Sequence[int]) -> np.ndarray:
    found = [np.random.default_rng((2, client)).standard_normal(layout.size) for client in clients]
    return (0.1 * np.array(found)).astype(np.float32)


def as_they_are(number: int, updates: Any) -> Any:
    """A tampering that does nothing: changes are not added up before the merge."""
    return updates


@cache
def composed(strategy: str, fairness: str | None) -> Strategy:
    return compose(strategy, {}, fairness).strategy


class Asked:
    """The two drivers, and the same privacy for both."""

    def __init__(self, folder: Path) -> None:
        self.bundle = open_bundle(folder / "bundle", tensors=TENSORS)
        users = Users(USERS, groups=GROUPS)
        example = {"weight": torch.ones(2)}
        self.setup = Setup(Model(self.bundle), Task(), example, users, trainer=MadeUp)  # type: ignore[arg-type]
        self.local = Local(optimizer=Sgd(lr=LR))
        self.data = population(USERS)

    def config(self, asked: Question) -> FederationConfig:
        said = {"name": asked.strategy, "fairness": asked.fairness, "optimizer": {"kind": "sgd", "lr": LR}}
        return FederationConfig.model_validate(
            {
                "strategy": said,
                "rule": {"name": asked.rule},
                "rounds": {"cohort": USERS, "minimum": USERS},
                "privacy": {"mechanism": asked.mechanism} | COMMON | MECHANISMS[asked.mechanism],
                "groups": tuple(GROUPS),
            }
        )

    def rounds(self, asked: Question) -> Rounds:
        return Rounds(
            composed(asked.strategy, asked.fairness),
            self.setup,
            MadeUp(),
            local=self.local,
            rounds=1,
            cohort_size=USERS,
            seed=SEED,
            choose=lambda number: range(USERS),  # sums depend on the order in their last bits
            rule=create_rule(asked.rule),
            privacy=self.config(asked).privacy,
            tamper=as_they_are,
        )

    def study(self, asked: Question) -> Study:
        return Study(
            Net,
            self.data,
            asked.strategy,
            split=["head"],
            fairness=asked.fairness,
            robust=asked.rule,
            privacy=self.config(asked).privacy,
            task=ClassificationTask(3),
            local=self.local,
            cohort=USERS,
        )

    def of_study(self, asked: Question) -> Answer:
        try:
            rounds = self.rounds(asked)
            rounds.step()
        except PflError as error:
            return Answer(error.code)
        return Answer(merged=rounds.server, silent=not rounds.plan(0).upload)

    def of_server(self, asked: Question) -> Answer:
        config = self.config(asked)
        try:
            runtime = Runtime(None, self.bundle, config)  # type: ignore[arg-type]
        except PflError as error:
            return Answer(error.code)
        runtime.noise = RepeatingNoise(derive(SEED, simulated._NOISE))
        server = runtime.beginning()
        known = runtime.round_plan(0, runtime.plan(server, derive(SEED, 0)).model_dump(mode="json"))
        private = runtime._private()
        told = [record(client, known.plan) for client in range(USERS)]
        sent = changes(known.layout, range(USERS))
        if config.privacy.local_noise_multiplier:  # what devices of the study add
            devices = simulated.SimulatedPrivacy(config.privacy, SEED, USERS, USERS)
            received = runtime.definition.received(known, sent, [accepted(r, 0.0) for r in told], USERS)
            sent = devices.on_devices(private.clip_norm, 0, received).changes
        rows = [accepted(r, norm) for r, norm in zip(told, norms(MatrixRows(sent)), strict=True)]
        fresh = np.zeros(USERS, np.int64)
        try:
            merge_rows(runtime, server, private, known, MatrixRows(sent), rows, USERS, fresh)
        except PflError as error:
            return Answer(error.code)
        assert private.ledger.rounds == 1
        return Answer(merged=server)


def accepted(of: Record, norm: float) -> Accepted:
    group = next(name for name, members in GROUPS.items() if of.client in members)
    return Accepted(
        client=of.client,
        group=group,
        examples=of.examples,
        steps=of.steps,
        reports=dict(of.reports),
        id="",
        base=0,
        blob="",
        offset=0,
        norm=float(norm),
    )


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    costs: dict[Any, float] = {}
    plain = Ledger.epsilon

    def epsilon(ledger: Ledger, delta: float | None = None) -> float:
        key = (ledger.to_json(), delta)
        if key not in costs:
            costs[key] = plain(ledger, delta)
        return costs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "epsilon", epsilon)  # the same few accounts, again and again
        yield Asked(tmp_path_factory.mktemp("same"))


def same(one: Server, other: Server) -> None:
    assert one.round == other.round
    for name in ("values", "groups", "sets"):
        ours, theirs = ({k: v for k, v in getattr(s, name).items() if k != "privacy"} for s in (one, other))
        assert bits(ours) == bits(theirs), name
    assert {k: v for k, v in one.numbers.items() if k != "privacy"} == other.numbers


def bits(of: Any) -> Any:
    return {name: bits(value) for name, value in of.items()} if isinstance(of, dict) else of.tobytes()


@pytest.mark.parametrize("strategy", names())
@pytest.mark.parametrize("fairness", FAIRNESS, ids=str)
def test_study_and_server_answer_alike(ask: Asked, strategy: str, fairness: str | None) -> None:
    for rule, mechanism in product(RULES, MECHANISMS):
        asked = Question(strategy, fairness, rule, mechanism)
        ours, theirs = ask.of_study(asked), ask.of_server(asked)
        if ours.silent:  # its devices train alone: a study measures them, a server has nothing to merge
            assert theirs.code == "ConfigError", asked
            continue
        assert ours.code == theirs.code, asked
        if ours.merged is not None and theirs.merged is not None:
            same(ours.merged, theirs.merged)


@pytest.mark.parametrize("fairness", sorted(set(names()) - set(registry.fairness_names())))
def test_what_is_no_fairness_is_one_nowhere(ask: Asked, fairness: str) -> None:
    asked = Question("fedper", fairness, "average", "none")
    assert ask.of_study(asked).code == ask.of_server(asked).code == "ConfigError"


def refusal(make: Callable[[Question], object], asked: Question) -> str | None:
    try:
        make(asked)
    except PflError as error:
        return error.code
    return None


@pytest.mark.parametrize("strategy", [name for name in names() if not create(name).modules(Net())])
def test_a_whole_study_is_refused_where_its_rounds_are(ask: Asked, strategy: str) -> None:
    """With every fairness; rules and mechanisms by turns, another pair for each strategy and fairness."""
    turn, pairs = names().index(strategy), list(product(RULES, MECHANISMS))
    for number, fairness in enumerate(FAIRNESS):
        asked = Question(strategy, fairness, *pairs[(len(FAIRNESS) * turn + number) * 5 % len(pairs)])
        assert refusal(ask.study, asked) == refusal(ask.rounds, asked), asked
