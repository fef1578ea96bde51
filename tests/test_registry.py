"""One of each in a distribution of its own, found by its entry points and used from the command line."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

import pfl_exporters.cli
from pfl_exporters.targets import TARGETS
from pfl_mobile import cli
from pfl_mobile.data.registry import DATASETS
from pfl_mobile.engines import ENGINES
from pfl_mobile.errors import ConfigError, EngineUnavailableError, UnknownNameError
from pfl_mobile.merge.rules import RULES
from pfl_mobile.modules import KINDS
from pfl_mobile.registry import Registry
from pfl_mobile.strategies.registry import STRATEGIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REGISTRIES: tuple[Registry[Any], ...] = (STRATEGIES, RULES, KINDS, DATASETS, ENGINES, TARGETS)

#: What a stranger's package consists of: one file for each thing.
FILES = {
    "strategy.py": """
        from dataclasses import dataclass

        from pfl_mobile.strategies import Strategy, register


        @register("theirs", title="Theirs", paper="none", shares="all trained tensors")
        @dataclass(frozen=True, kw_only=True)
        class Theirs(Strategy):
            pass
        """,
    "weighting.py": """
        from dataclasses import dataclass

        import numpy as np

        from pfl_mobile.strategies import Strategy, Weighting, register


        @dataclass(frozen=True, kw_only=True)
        class ByRoot(Weighting):
            def weights(self, updates, server):
                return np.sqrt(updates.examples)


        @register("theirs_fair", title="By the root of the examples", paper="none", shares="all trained tensors")
        def by_root() -> Strategy:
            return Strategy(weighting=ByRoot())
        """,
    "rule.py": """
        from dataclasses import dataclass

        from pfl_mobile.merge import Average, rule


        @rule("theirs", title="Half of the mean", paper="none")
        @dataclass(frozen=True, kw_only=True)
        class Half(Average):
            def mean(self, rows, weights, *, threads=1):
                return super().mean(rows, weights / 2, threads=threads)
        """,
    "kind.py": """
        from dataclasses import dataclass

        import torch
        from torch import nn

        from pfl_mobile.modules import ModuleConfig, register


        @register("theirs")
        @dataclass(frozen=True)
        class Shift(ModuleConfig):
            target: str = ""

            def insert(self, site):
                for path, layer in site.find((self.target,), (nn.Linear,)):
                    site.add(path, "shift", torch.zeros(layer.out_features))
                    layer.register_forward_hook(Add())


        class Add:
            def __call__(self, layer, inputs, output):
                return output + layer.shift
        """,
    "dataset.py": """
        import numpy as np

        from pfl_mobile.data import ArrayPopulation, Generator, register


        def build(users: int = 6) -> ArrayPopulation:
            draw = np.random.default_rng(0)
            rows = {}
            for user in range(users):
                x = draw.normal(size=(30, 4)).astype(np.float32)
                labels = (x[:, 0] > 0.1 * user).astype(np.int64)
                rows[f"u{user}"] = {"x": x, "labels": labels, "weight": np.ones(30, np.float32)}
            return ArrayPopulation.of("theirs", rows)


        register(Generator(name="theirs", summary="six users", build=build))
        """,
    "engine.py": """
        from pfl_mobile.engines import register


        @register("theirs", runtime=("torch",))
        def load(files, programs, threads):
            from pfl_mobile.engines import torch

            session = torch.load(files, programs, threads)
            session.name = "theirs"
            return session
        """,
    "target.py": """
        from pfl_exporters.targets import TARGETS, register


        @register("theirs", engine="theirs", tools=("torch",))
        def lower(programs, folder, report):
            return TARGETS.find("torch").lower(programs, folder, report)
        """,
    "use.py": """
        import torch
        from torch import nn

        from pfl_mobile import ClassificationTask, Deployment, Local, Machine, Plan, Sgd, Study, TrainPhase
        from pfl_mobile import personalize
        from pfl_mobile.modules import make_config


        def net():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(4, 2))


        def study(data="theirs", strategy="theirs"):
            local = Local(epochs=1, optimizer=Sgd(lr=0.3))
            return Study(net, data, strategy, local=local, batch=8, cohort=4, machine=Machine(processes=0))


        def build():
            batch = {"x": torch.randn(4, 4), "labels": torch.tensor([0, 1, 1, 0]), "weight": torch.ones(4)}
            shift = make_config("theirs", {"target": "0", "role": "shared"})
            plan = Plan(phases=(TrainPhase(steps=1, optimizer=Sgd(lr=0.1)),))
            model = personalize(net().eval(), [shift], example=(batch["x"],))
            return Deployment("theirs", model, ClassificationTask(2), batch, plan)
        """,
}

ENTRY_POINTS = """
    [pfl_mobile.strategies]
    theirs = theirs.strategy
    fair = theirs.weighting
    [pfl_mobile.merge]
    theirs = theirs.rule
    [pfl_mobile.modules]
    theirs = theirs.kind
    [pfl_mobile.data]
    theirs = theirs.dataset
    [pfl_mobile.engines]
    theirs = theirs.engine
    [pfl_exporters.targets]
    theirs = theirs.target
    """


def distribution(folder: Path, name: str, files: dict[str, str], entry_points: str) -> None:
    """What ``pip install`` leaves of a package."""
    for place, held in ((name, files), (f"{name}-1.0.dist-info", {"entry_points.txt": entry_points})):
        (folder / place).mkdir()
        for file, text in held.items():
            (folder / place / file).write_text(dedent(text))
    (folder / f"{name}-1.0.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that packages are installed into; what they add is forgotten after the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PFL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for registry in REGISTRIES:
        registry.names()
        monkeypatch.setattr(registry, "_items", dict(registry._items))
        monkeypatch.setattr(registry, "_others_loaded", False)
        monkeypatch.setattr(registry, "_broken", None)
    before = dict(sys.modules)
    for name in ("theirs", "bad"):  # whatever another test has left under these names
        sys.modules.pop(name, None)
    yield folder
    for name in sys.modules.keys() - before.keys():
        if name.partition(".")[0] in ("theirs", "bad"):
            del sys.modules[name]


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command and gives its JSON, which may be that of an error."""

    def run(*arguments: object, main: Callable[..., int] = cli.main) -> Any:
        code = main([*map(str, arguments), "--json"])
        out = capsys.readouterr().out
        found = json.loads(out)
        assert (code == 2) == ("error" in found), out
        return found

    return run


def test_every_registry_lists_what_a_distribution_adds_after_ours(place: Path) -> None:
    before = {registry.what: registry.names() for registry in REGISTRIES}
    distribution(place, "theirs", FILES, ENTRY_POINTS)
    for registry in REGISTRIES:
        registry._others_loaded = False
        added = ["theirs", "theirs_fair"] if registry is STRATEGIES else ["theirs"]
        assert registry.names() == [*before[registry.what], *added]
        assert before[registry.what] == sorted(before[registry.what])


def test_strategy_fairness_rule_and_dataset_are_used_by_name(
    place: Path, tmp_path: Path, ran: Callable[..., Any]
) -> None:
    distribution(place, "theirs", FILES, ENTRY_POINTS)
    assert {"theirs", "theirs_fair"} <= {entry["name"] for entry in ran("strategies")}
    assert ran("strategies", "theirs_fair")["title"] == "By the root of the examples"
    assert "theirs" in {found["name"] for found in ran("data", "list")["datasets"]}
    assert ran("data", "get", "theirs")["users"] == 6
    said = ran("train", "theirs.use:study", "--fairness", "their_fair", "--rule", "median")["error"]
    assert "'theirs_fair'" in said["mend"]

    said = ran("compare", "theirs", "--data", "theirs")["error"]
    assert said["message"] == "no recipe has a model for the dataset 'theirs'"
    assert 'data="theirs"' in said["mend"]

    trained = ran(
        *("train", "theirs.use:study", "--data", "theirs", "--rounds", 1, "--out", tmp_path / "run"),
        *("--fairness", "theirs_fair", "--rule", "theirs"),
    )
    used = {name: json.dumps(value) for name, value in trained["study"].items()}
    assert '"theirs"' in used["strategy"]
    assert "ByRoot" in used["parameters"]
    assert "Half" in used["robust"]
    compared = ran("compare", "theirs", "--data", "theirs.use:study", "--rounds", 1, "--rule", "theirs")
    assert [row["strategy"] for row in compared["strategies"]] == ["fedavg", "theirs"]


def test_module_kind_target_and_engine_are_used_by_name(
    place: Path, tmp_path: Path, ran: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(place, "theirs", FILES, ENTRY_POINTS)
    bundle = tmp_path / "bundle"
    exported = ran("theirs.use:build", "--target", "theirs", "--out", bundle, main=pfl_exporters.cli.main)
    assert list(exported["engines"]) == ["theirs"]
    assert exported["verified"]["theirs"]["grad_max_rel_err"] < 1e-5
    (module,) = ran("inspect", bundle)["modules"]
    assert module["kind"] == "theirs"
    verified = ran(
        "verify", bundle, "--engine", "theirs"
    )  # in a child process, which finds the engine itself
    assert (verified["engine"], verified["ok"]) == ("theirs", True)

    from pfl_server import launch

    monkeypatch.setattr(launch, "run", lambda settings, bundle, services, listening: services.close())
    shown = ran(
        *("serve", bundle, "--data", tmp_path / "server", "--port", 0, "--no-privacy", "--cohort", 2),
        *("--strategy", "theirs", "--rule", "theirs"),
    )
    assert (shown["config"]["strategy"]["name"], shown["config"]["rule"]["name"]) == ("theirs", "theirs")


def test_a_process_of_its_own_finds_what_is_installed(place: Path) -> None:
    distribution(place, "theirs", FILES, ENTRY_POINTS)
    program = "import sys; from pfl_mobile.cli import main; sys.exit(main())"
    path = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program, "strategies", "theirs", "--json"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["title"] == "Theirs"


@pytest.mark.parametrize(
    ("file", "text", "entry", "why"),
    [
        ("broken.py", "import no_such_module", "bad.broken", "No module named 'no_such_module'"),
        ("broken.py", "raise SystemExit(3)", "bad.broken", "SystemExit: 3"),
        ("broken.py", "this is no Python", "bad.broken", "SyntaxError"),
        ("empty.py", "", "bad.empty", "adds no strategy"),
        ("there.py", "", "bad.elsewhere", "No module named 'bad.elsewhere'"),
        (
            "double.py",
            FILES["strategy.py"].replace('"theirs"', '"fedavg"'),
            "bad.double",
            "registered twice, in pfl_mobile.strategies.fedavg and bad.double",
        ),
    ],
)
def test_a_broken_distribution_is_named_and_ours_still_work(
    file: str, text: str, entry: str, why: str, place: Path, ran: Callable[..., Any]
) -> None:
    distribution(place, "bad", {file: text}, f"[pfl_mobile.strategies]\nmine = {entry}\n")
    for _ in range(2):  # also when asked again
        error = ran("strategies")["error"]
        assert error["type"] == "PluginError"
        assert why in error["message"]
        assert f"entry point 'mine' ({entry}) of the distribution 'bad'" in error["message"]
        assert "bad" in error["mend"]
    assert ran("strategies", "fedavg")["name"] == "fedavg"


def test_a_file_beside_the_others_is_found_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "shapes"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    (package / "__init__.py").write_text(
        "from pfl_mobile.registry import Registry\nSHAPES = Registry('shape', 'shapes')"
    )
    for name in ("square", "circle"):
        (package / f"{name}.py").write_text(
            f"from shapes import SHAPES\nSHAPES.add({name!r}, len({name!r}), home=__name__)"
        )
    shapes: Registry[int] = importlib.import_module("shapes").SHAPES
    assert "shapes.circle" not in sys.modules  # nothing is imported before it is needed
    assert dict(shapes.all()) == {"circle": 6, "square": 6}
    with pytest.raises(UnknownNameError, match="no shape is called 'sqare'") as caught:
        shapes.find("sqare")
    assert "'square'" in caught.value.mend
    with pytest.raises(ConfigError, match=r"registered twice, in shapes\.square and mine"):
        shapes.add("square", 4, home="mine")
    assert shapes.find("square") == 6
    for name in ("shapes", "shapes.circle", "shapes.square"):
        del sys.modules[name]


def test_an_unknown_engine_is_an_error_of_engines() -> None:
    with pytest.raises(EngineUnavailableError, match="no engine is called 'onnx'") as caught:
        ENGINES.find("onnx")
    assert "'onnxruntime'" in caught.value.mend


def test_engines_and_targets_go_together() -> None:
    for target in TARGETS.all().values():
        assert ENGINES.find(target.engine).name == target.engine


def test_engines_and_targets_are_listed_without_their_packages() -> None:
    program = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnxruntime", "onnxscript", "executorch", "coremltools"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Block())
from pfl_exporters.targets import TARGETS
from pfl_mobile.engines import ENGINES, load_engine
from pfl_mobile.errors import PflError

assert ENGINES.names() and TARGETS.names()
for load in [*(lambda e=e: load_engine(e) for e in ENGINES.names()), *(t.load for t in TARGETS.all().values())]:
    try:
        load()
    except PflError as error:
        print(error.code, error.mend)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    engines, targets = ("ios", "android", "onnx", "torch"), ("android", "ios", "ios", "ios", "onnx", "torch")
    assert done.stdout.splitlines() == [
        *(f"EngineUnavailableError pip install 'pfl-mobile[{extra}]'" for extra in engines),
        *(f"MissingDependencyError pip install 'pfl-mobile[{extra}]'" for extra in targets),
    ]
