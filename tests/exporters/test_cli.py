"""``pfl-export``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pfl_mobile.bundle import Bundle
from pfl_mobile.cli import user_code
from tests.cli.conftest import Ran, cache, pfl
from tests.exporters.test_hugging_face import llama

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Ran]

__all__ = ["cache", "pfl"]

MODEL = """
from tests import tiny

def build(data=None, report=print):
    report(f"data is {data}")
    return tiny.arrays()

def nothing():
    pass

def fails():
    raise ValueError("boom")

def needs(x):
    pass
"""


WITH_TABLE = """
from tests.programs.test_weights import mixed

def build():
    return mixed(words=512)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "my_model.py"
    path.write_text(MODEL)
    return path


def test_a_model_of_transformers_is_exported_from_its_folder(pfl_export: Run, tmp_path: Path) -> None:
    folder = llama(tmp_path / "small")
    given = [f"hf:{folder}", "--lora", "q_proj,v_proj", "--rank", 2, "--length", 8, "--batch", 2]
    ran = pfl_export(*given, "--target", "torch", "--out", tmp_path / "b", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["name"] == "small"
    with Bundle.open(tmp_path / "b") as bundle:
        assert {t.name.rpartition(".")[0] for t in bundle.manifest.tensors} == {
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.self_attn.v_proj",
        }
        assert bundle.manifest.tokenizer is not None


def test_what_is_for_models_of_transformers_is_refused_for_others(pfl_export: Run, model: Path) -> None:
    ran = pfl_export(f"{model}:build", "--rank", 2, "--json")
    assert ran.code == 2
    assert "--rank is for a model of transformers" in ran.error["message"]
    ran = pfl_export("hf:folder", "--rank", 2, "--head", "score", "--check", "--json")
    assert "--rank and --alpha go with --lora" in ran.error["message"]


def test_a_function_in_a_file_is_exported(pfl_export: Run, pfl: Run, model: Path, tmp_path: Path) -> None:
    pfl("keys", "new", tmp_path / "k.pem")
    out = tmp_path / "out" / "b.pflb"
    ran = pfl_export(
        f"{model}:build",
        "--target",
        "torch",
        "--out",
        out,
        "--data",
        "D",
        "--sign",
        tmp_path / "k.pem",
        "--json",
    )
    assert ran.code == 0
    assert ran.json["bundle"] == str(out)
    assert ran.json["verified"]["torch"]["grad_max_rel_err"] < 1e-4
    assert "data is D" in ran.err
    checked = pfl("verify", out, "--public-key", tmp_path / "k.pem.pub", "--engine", "torch", "--json")
    assert checked.json["ok"]


def test_weights_are_stored_in_fewer_bits_and_the_distance_is_told(
    pfl_export: Run, pfl: Run, tmp_path: Path
) -> None:
    path = tmp_path / "table.py"
    path.write_text(WITH_TABLE)
    ran = pfl_export(
        f"{path}:build", "--target", "torch", "--weights", "int8", "--out", tmp_path / "b", "--json"
    )
    assert ran.code == 0, ran.err
    told = ran.json["weights"]
    assert (told["kind"], told["group"]) == ("int8", None)
    assert told["tensors"]["embed.weight"]["bits"] == 8
    assert 0 < told["output_rel_err"] < 0.05
    assert told["bytes"] < 0.3 * told["float32_bytes"]
    with Bundle.open(tmp_path / "b") as bundle:
        assert bundle.manifest.weights is not None
        assert bundle.manifest.weights.loss == told["loss"]
    shown = pfl("inspect", tmp_path / "b")
    assert "4 weights stored as int8: loss on the example batch" in " ".join(shown.out.split())
    assert pfl("inspect", tmp_path / "b", "--json").json["weights"]["kind"] == "int8"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--weights", "int5"], "'int5'"),
        (["--weights", "int4:24", "--target", "torch"], "embed.weight: groups of 24"),
        (["--weights", "int4", "--target", "ios17"], "target 'ios17' takes no weights of int4"),
        (["--weights", "int4", "--target", "ios17", "--check"], "target 'ios17' takes no weights of int4"),
    ],
)
def test_weights_that_cannot_be_stored_so_are_refused(
    pfl_export: Run, tmp_path: Path, more: list[str], says: str
) -> None:
    path = tmp_path / "table.py"
    path.write_text(WITH_TABLE)
    ran = pfl_export(f"{path}:build", *more, "--json")
    assert ran.code != 0
    assert says in ran.error["message"]
    assert ran.error["mend"]


def test_the_default_place_is_named_after_the_function(
    pfl_export: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = pfl_export("my_model:build", "--target", "torch")
    assert ran.code == 0
    assert "pfl inspect build-bundle" in ran.out
    assert (tmp_path / "build-bundle" / "manifest.json").is_file()
    sys.modules.pop("my_model", None)


@pytest.mark.parametrize(
    ("arguments", "type_", "words"),
    [
        (["{}/other.py:build"], "UnknownNameError", "my_model.py"),
        (["{}/my_model.py:biuld"], "UnknownNameError", "'build'"),
        (["{}/my_model.py"], "ConfigError", "my_model.py:FUNCTION"),
        (["{}/my_model.py:nothing", "--target", "torch"], "ConfigError", "return Deployment("),
        (["{}/my_model.py:needs", "--target", "torch"], "ConfigError", "defaults"),
        (["{}/my_model.py:fails", "--target", "torch"], "UserCodeError", "line"),
        (["{}/my_model.py:nothing", "--data", "x", "--target", "torch"], "ConfigError", "--data"),
        (["{}/my_model.py:build", "--engine", "coreml"], "ConfigError", "name target 'ios'"),
        (["{}/my_model.py:build", "--target", "onyx"], "UnknownNameError", "'onnx'"),
        (["{}/my_model.py:build", "--sign", "{}/none.pem"], "KeyFileError", "PEM"),
        (["{}/my_model.py:build", "--out", "{}"], "UnwritableError", "bundle"),
        (["{}/my_model.py:build", "--out", "{}/my_model.py/b"], "UnwritableError", "--out"),
        (["keybord"], "UnknownNameError", "keyboard"),
        (["no.such.module:f"], "UnknownNameError", "no.such.module.py:function"),
    ],
)
def test_wrong_input_names_the_mend(
    pfl_export: Run, model: Path, arguments: list[str], type_: str, words: str
) -> None:
    ran = pfl_export(*(a.format(model.parent) for a in arguments), "--json")
    assert (ran.code, ran.error["type"]) == (2, type_)
    assert words in ran.error["mend"]


def test_an_error_inside_the_file_shows_its_line(pfl_export: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import os\nimport nonexistent_package\n")
    ran = pfl_export(f"{tmp_path / 'bad.py'}:f", "--json")
    assert ran.error["type"] == "UserCodeError"
    assert "line 2: import nonexistent_package" in ran.error["message"]
    assert "Traceback" in ran.err
    assert "user_code" not in ran.err
    assert "bad" not in sys.modules  # as after any import that failed
    (tmp_path / "syntax.py").write_text("x = 1\ndef f(:\n")
    assert "line 2" in pfl_export(f"{tmp_path / 'syntax.py'}:f", "--json").error["message"]


def test_a_missing_package_of_ours_names_the_extra(
    pfl_export: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    (tmp_path / "wants_peft.py").write_text("import peft\n")
    ran = pfl_export(f"{tmp_path / 'wants_peft.py'}:f", "--json")
    assert ran.error["type"] == "MissingDependencyError"
    assert "pfl-mobile[peft]" in ran.error["mend"]


def test_a_model_that_cannot_be_exported_leaves_nothing(pfl_export: Run, tmp_path: Path) -> None:
    (tmp_path / "branch.py").write_text(
        "import torch\nfrom dataclasses import replace\nfrom torch import nn\n"
        "from pfl_mobile import LoRA, personalize\nfrom tests import tiny\n"
        "class Branch(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(6, 4)\n"
        "    def forward(self, x):\n        return self.a(x) if x.sum() > 0 else -self.a(x)\n"
        "def build():\n"
        "    found = tiny.arrays()\n"
        "    return replace(found, model="
        "personalize(Branch().eval(), [LoRA('a', rank=1)], example=(found.batch['x'],)))\n"
    )
    ran = pfl_export(
        f"{tmp_path / 'branch.py'}:build", "--target", "torch", "--out", tmp_path / "o", "--json"
    )
    assert ran.code in (1, 2)
    assert ran.error["mend"]
    assert not (tmp_path / "o").exists()


def test_recipes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "keyboard" in user_code.recipes()


def test_rules_for_a_vocabulary_are_handed_on_or_refused(
    pfl_export: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blocked.txt").write_text("Zorp\n")
    (tmp_path / "ruled.py").write_text(
        "from pfl_mobile.text.encoder import WordTokenizer\n"
        "def build(vocabulary=None):\n"
        "    WordTokenizer.of_users({'ann': ['see zorp 7']}, 9, vocabulary)\n"
        "def plain():\n    pass\n"
    )
    ran = pfl_export("ruled.py:build", "--json")
    assert (ran.code, ran.error["type"]) == (2, "TooFewUsersError")
    assert "--min-users 1" in ran.error["mend"]
    ran = pfl_export("ruled.py:build", "--min-users", 1, "--block", "blocked.txt", "--json")
    assert (ran.code, ran.error["type"]) == (
        2,
        "ConfigError",
    )  # build went on to the end, and returned nothing
    assert "returned nothing" in ran.error["message"]
    for options in (
        ("ruled.py:plain", "--min-users", 1),
        ("ruled.py:build", "--min-users", 1, "--vocabulary-epsilon", 2),
        ("ruled.py:build", "--vocabulary-delta", 1e-7),
        ("ruled.py:build", "--vocabulary-epsilon", "nan"),
    ):
        assert pfl_export(*options, "--json").error["type"] == "ConfigError"
    assert pfl_export("ruled.py:build", "--block", "none.txt", "--json").error["type"] == "DataError"


@pytest.mark.slow
def test_nothing_but_our_own_lines_is_shown(tmp_path: Path) -> None:
    """Neither in success nor in refusal, of toolchains in Python and in C++. All in one process, as the tools take long
    to import."""
    models = (
        "import sys\nimport torch\nfrom pfl_exporters.cli import main\nfrom tests.exporters import odd\n"
        "def fine():\n    return odd.model(torch.tanh)\n"
        "def refused():\n    return odd.model(odd.inverse_error)\n"
    )
    runs = (
        "for target in ('android', 'onnx', 'ios'):\n"
        "    sys.stderr.write(f'-- {target} fine\\n')\n"
        "    assert main(['m.py:fine', '--target', target, '--out', target]) == 0\n"
        "    sys.stderr.write(f'-- {target} refused\\n')\n"
        "    assert main(['m.py:refused', '--target', target]) == 2\n"
    )
    (tmp_path / "m.py").write_text(models)
    (tmp_path / "run.py").write_text(models + runs)
    ran = subprocess.run(
        [sys.executable, "run.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    ours = re.compile(
        r"(--|load|build|trace|compare|look|see whether|write|android:|ios:|onnx:|error \(|mend:) ?.*"
    )
    assert [line for line in ran.stderr.splitlines() if not ours.fullmatch(line)] == []
    assert ran.stderr.count("erfinv in layer '1'") == 3
    out = re.compile(
        r"engine +loss error +gradient error|\w[\w-]* +[\d.e+-]+ +[\d.e+-]+||\w+: odd version 1.*|look .*"
    )
    assert [line for line in ran.stdout.splitlines() if not out.fullmatch(line.strip())] == []
