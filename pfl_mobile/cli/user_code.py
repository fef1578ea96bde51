"""From the MODEL of the command line to a deployment or a study: a file, module or recipe, and a function in it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfl_mobile.cli.changes import PARTS, with_changes
from pfl_mobile.errors import ConfigError, PflError, UnknownNameError, UserCodeError, missing_package, near

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from pfl_mobile.programs.deployment import Deployment
    from pfl_mobile.study import Study, StudyResult
    from pfl_mobile.text.vocabulary import VocabularyRule

#: Package with the recipes.
RECIPES = "pfl_recipes"

DEPLOYMENT_EXAMPLE = """return a Deployment, for instance:
    def build():
        model = personalize(backbone, [LoRA("*.attn.[qv]", rank=4)], example=(x,))
        batch = {"x": x, "labels": y, "weight": torch.ones(len(x))}
        plan = Plan(phases=(TrainPhase(epochs=2, optimizer=AdamW(lr=1e-3)),))
        return Deployment("mine", model, ClassificationTask(classes=5), batch, plan)
or a Study"""

STUDY_EXAMPLE = """return a Study, for instance:
    def study(data="wisdm", **settings):
        return Study(Net, data, **({"strategy": "fedrep", "personal": ["head"]} | settings))"""

#: Names in ``sys.modules`` that stand for files the user named.
_FILES: set[str] = set()

_FORMS = "give file.py:function, package.module:function, or the name of a recipe"


@dataclass(frozen=True)
class UserFunction:
    """A function that makes a deployment, a study or a model.

    Attributes:
        name: of the function or recipe, for the default name of the bundle's folder.
        shown: as the user wrote it.
        call: the function.
        file: where it was read from, to point at the lines that fail.
    """

    name: str
    shown: str
    call: Callable[..., Any]
    file: str | None

    def deployment(
        self,
        data: str | None,
        report: Callable[..., None],
        vocabulary: VocabularyRule | None = None,
        *,
        trained: bool = True,
    ) -> Deployment:
        """Call the function, with ``data``, ``report`` and ``vocabulary`` where it takes them.

        A study that it returns is deployed as its finished run left it, and is run first where it has no folder; with
        ``trained=False`` it is deployed as it is, with a plan that says nothing of it.

        Raises:
            ConfigError: it needs other arguments, takes no data or vocabulary, or returns something else; the study's
                folder has no finished run.
            UserCodeError: it failed.
            MissingDependencyError: it needs an optional package.
        """
        from pfl_mobile.programs.deployment import Deployment
        from pfl_mobile.study import Study, StudyResult

        if data is not None and not self._takes("data"):
            raise ConfigError(
                f"{self.shown} takes no data", mend="leave --data out, or give it a parameter `data`"
            )
        named = inspect.signature(self.call).parameters
        if vocabulary is not None and "vocabulary" not in named:
            raise ConfigError(
                f"{self.shown} takes no rule for a vocabulary",
                mend="leave --min-users, --vocabulary-epsilon and --block out, or give it a parameter `vocabulary` for "
                "WordTokenizer.of_users(users, size, vocabulary)",
            )
        offered: dict[str, Any] = {"report": report} if "report" in named else {}
        offered |= {"vocabulary": vocabulary} if vocabulary is not None else {}
        if data is not None or ("data" in named and named["data"].default is inspect.Parameter.empty):
            offered["data"] = data
        found = self._invoke(offered)
        if isinstance(found, Study):
            found = _finished(found, report) if trained else _untrained(found)
        if isinstance(found, StudyResult):
            with found:
                return found.deployment()
        if not isinstance(found, Deployment):
            raise ConfigError(
                f"{self.shown} returned {_kind(found)}, not a Deployment", mend=DEPLOYMENT_EXAMPLE
            )
        return found

    def study(self, settings: Mapping[str, Any]) -> Study:
        """Call the function with the settings it takes; the others replace those of the study it returns.

        A function or class that makes an ``nn.Module`` becomes the model of a study with these settings.

        Args:
            settings: as in the constructor of ``Study``, or parts of them by the names of ``cli.changes``; it is
                called with such a part only where it has a parameter of that name.

        Raises:
            UnknownNameError: neither the function nor ``Study`` has such a setting.
            ConfigError: it needs other arguments or returns something else, or a model comes without data.
            UserCodeError: it failed.
            MissingDependencyError: it needs an optional package.
        """
        from torch import nn

        from pfl_mobile.study import Study

        known = {*inspect.signature(Study).parameters, *PARTS} - {"model"}
        for name in settings:
            if name not in known and not self._takes(name, named=True):
                raise UnknownNameError(f"a study has no setting {name!r}", mend=near(name, known))
        if inspect.isclass(self.call) and issubclass(self.call, nn.Module):
            return self._of_model(settings)
        taken = {n: value for n, value in settings.items() if self._takes(n, named=n in PARTS)}
        found = self._invoke(taken)
        if isinstance(found, nn.Module) and not taken:
            return self._of_model(settings)
        if not isinstance(found, Study):
            raise ConfigError(f"{self.shown} returned {_kind(found)}, not a Study", mend=STUDY_EXAMPLE)
        rest = {name: value for name, value in settings.items() if name not in taken}
        if "strategy" in rest:
            rest = {"parameters": None, **rest}  # they are those of the other strategy
        return with_changes(found, rest)

    def _of_model(self, settings: Mapping[str, Any]) -> Study:
        from pfl_mobile.study import Study

        if "data" not in settings:
            raise ConfigError(
                f"{self.shown} makes a model, and there is no data to train it on",
                mend="give the data too, or a function that returns a Study",
            )
        whole = {name: value for name, value in settings.items() if name not in PARTS}
        parts = {name: value for name, value in settings.items() if name in PARTS}
        return with_changes(Study(self.call, **whole), parts)

    def _takes(self, name: str, *, named: bool = False) -> bool:
        parameters = inspect.signature(self.call).parameters
        return name in parameters or (not named and any(p.kind is p.VAR_KEYWORD for p in parameters.values()))

    def _invoke(self, given: Mapping[str, Any]) -> Any:
        parameters = inspect.signature(self.call).parameters.values()
        needed = [
            p.name
            for p in parameters
            if p.default is p.empty
            and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            and p.name not in given
        ]
        if needed:
            raise ConfigError(
                f"{self.shown} needs the argument {needed[0]!r}",
                mend="give its parameters defaults, except `data` and `report`",
            )
        try:
            return self.call(**given)
        except PflError:
            raise
        except Exception as error:
            raise _failed(f"{self.shown} failed", error, self.file) from error


def recipes() -> list[str]:
    """Names of the recipes that are installed."""
    try:
        package = importlib.import_module(RECIPES)
    except ModuleNotFoundError:
        return []
    return sorted(package.names())


def load_study(spec: str, **settings: Any) -> Study:
    """The study that ``file.py:function``, ``package.module:function`` or the name of a recipe makes.

    Args:
        spec: see :func:`find_function`; the function returns a ``Study``, or makes the model of one.
        settings: in place of the study's own; see :meth:`UserFunction.study`.

    Raises:
        UnknownNameError: there is no such file, module, recipe, function or setting.
        ConfigError, UserCodeError, MissingDependencyError: see :meth:`UserFunction.study`.
    """
    return find_function(spec, "study").study(settings)


def find_function(model: str, wanted: str = "deployment") -> UserFunction:
    """The function that MODEL names.

    Args:
        model: ``file.py:function``, ``package.module:function``, the name of a recipe, or for a deployment the
            folder of a study's run.
        wanted: ``deployment`` or ``study``; a recipe without a deployment of its own gives its study for both, and
            the name of a dataset the study of the recipe that serves it.

    Raises:
        UnknownNameError: there is no such file, module, recipe or function.
        UserCodeError: the file or module cannot be imported.
        MissingDependencyError: it imports an optional package that is not installed.
    """
    source, colon, function = model.rpartition(":")
    if not colon or len(source) == 1:  # one letter and a colon begin a path on Windows
        return _without_function(model, wanted)
    if source.endswith(".py") or "/" in source or "\\" in source:
        module = _import_file(Path(source).expanduser())
    else:
        module = _import_module(source)
    call = getattr(module, function, None)
    if not callable(call):
        names = _functions(module)
        if not hasattr(module, function):
            raise UnknownNameError(f"{function!r} in {source} does not exist", mend=near(function, names))
        example = STUDY_EXAMPLE if wanted == "study" else DEPLOYMENT_EXAMPLE
        other = f"{near(function, names)}; or " if names else ""
        raise UnknownNameError(
            f"{function!r} in {source} is {_kind(call)}, not a function",
            mend=f"{other}put it into a function, to {example}",
        )
    return UserFunction(function, model, call, getattr(module, "__file__", None))


def _without_function(model: str, wanted: str) -> UserFunction:
    path = Path(model).expanduser()
    if model.endswith(".py") or os.path.isfile(path):
        if not os.path.isfile(path):
            raise UnknownNameError(f"there is no file {model}", mend=_FORMS)
        names = _functions(_import_file(path))
        mend = f"name the function: {model}:{names[0] if len(names) == 1 else 'FUNCTION'}"
        raise ConfigError(
            f"{model} is a file; which function in it makes the {wanted}?", mend=_list(mend, names)
        )
    known = recipes()
    if wanted == "deployment" and model not in known and os.path.isdir(path):
        from pfl_mobile.cli.runs import open_run

        return UserFunction(path.resolve().name, f"the run in {model}", lambda: open_run(path), None)
    if not known:
        raise UnknownNameError(f"there is no recipe {model!r}", mend=_FORMS)
    package = importlib.import_module(RECIPES)
    served = package.datasets() if wanted == "study" else {}
    if model not in known and model not in served:
        if wanted == "study":
            _refuse_bare_dataset(model)
        near_names = near(model, [*known, *served])
        raise UnknownNameError(f"there is no recipe {model!r}", mend=f"{near_names}; or {_FORMS}")
    found = package.find(model) if model in known else served[model]
    module, function = found.deployment if wanted == "deployment" and found.deployment else found.study
    call = getattr(_import_module(module), function)
    if model not in known:
        return UserFunction(model, f"recipe {found.name} on {model}", partial(call, data=model), None)
    return UserFunction(model, f"recipe {model}", call, None)


def _refuse_bare_dataset(name: str) -> None:
    """Say of a dataset without a recipe, for instance one of another distribution, that a model is missing."""
    from pfl_mobile.data.registry import DATASETS

    if name in DATASETS:
        raise ConfigError(
            f"no recipe has a model for the dataset {name!r}",
            mend=f"write a file with one, give it as file.py:function, and {STUDY_EXAMPLE}".replace(
                "wisdm", name
            ),
        )


def _finished(study: Study, report: Callable[..., None]) -> StudyResult:
    """The finished run in the study's folder; a run of now where it has none."""
    if study.folder is not None:
        return study.result()
    report("train the study; the folder of a finished run of it can be exported too")
    return study.run(on_progress=report)


def _untrained(study: Study) -> Deployment:
    """A study's model with the task and the batch that it would be deployed with."""
    from pfl_mobile.plan.optimizers import Sgd
    from pfl_mobile.plan.phases import TrainPhase
    from pfl_mobile.plan.schema import Plan
    from pfl_mobile.programs.deployment import Deployment, text_parts

    encoder = getattr(study.data, "encoder", None)
    parts: dict[str, Any] = {"batch": study.batch}
    if encoder is not None:
        parts |= text_parts(encoder, len(study.batch["weight"]))
    plan = Plan(phases=(TrainPhase(epochs=1, optimizer=Sgd(lr=0.1)),))
    return Deployment(name=study.name, model=study.model, task=study.task, plan=plan, **parts)


def _list(mend: str, names: list[str]) -> str:
    return f"{mend} (it has {', '.join(names)})" if len(names) > 1 else mend


def _import_file(path: Path) -> ModuleType:
    if not os.path.isfile(path):
        folder = path.parent
        beside = [p.name for p in folder.glob("*.py")] if os.path.isdir(folder) else []
        mend = near(path.name, beside) if beside else _FORMS
        raise UnknownNameError(f"there is no file {path}", mend=mend)
    path = path.resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file", mend=_FORMS)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as `python file.py` does, for its own imports
    if path.stem not in sys.modules or path.stem in _FILES:  # hide no package behind a file of its name
        _FILES.add(path.stem)
        sys.modules[path.stem] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        if sys.modules.get(path.stem) is module:  # half of a module would answer for a package of its name
            del sys.modules[path.stem]
            _FILES.discard(path.stem)
        if isinstance(error, PflError) or not isinstance(error, Exception):
            raise
        raise _failed(f"cannot import {path.name}", error, str(path)) from error
    return module


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, "")  # a module in the folder the command is run in
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise UnknownNameError(
                f"there is no module {error.name!r}",
                mend=f"run this in the folder that has it, or install it; a file is given as {name}.py:function",
            ) from error
        raise _failed(f"cannot import {name}", error, None) from error
    except PflError:
        raise
    except Exception as error:
        raise _failed(f"cannot import {name}", error, None) from error


def _functions(module: ModuleType) -> list[str]:
    return [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]


def _kind(found: object) -> str:
    return "nothing (None)" if found is None else f"a {type(found).__name__}"


def _failed(what: str, error: Exception, file: str | None) -> PflError:
    """The error for what the user's code raised, with the line it was raised in."""
    if isinstance(error, ModuleNotFoundError):
        missing = missing_package(error, what.removeprefix("cannot import "))
        if missing is not None:
            return missing
    where = _line(error, file)
    mend = "mend that line; the traceback is above"
    if isinstance(error, ModuleNotFoundError):
        mend = f"install {error.name!r}, or correct the name"
    return UserCodeError(f"{what}: {type(error).__name__}: {error}{where}", mend=mend)


def _line(error: Exception, file: str | None) -> str:
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"\n  {error.filename}, line {error.lineno}: {(error.text or '').strip()}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if file is not None and f.filename == file] or [
        f for f in frames if "importlib" not in f.filename and f.filename != __file__
    ]
    return f"\n  {own[-1].filename}, line {own[-1].lineno}: {own[-1].line}" if own else ""
