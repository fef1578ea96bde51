"""From the MODEL of the command line to a deployment: a file, a module or a recipe, and a function in it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfl_mobile.cli.common import missing_package
from pfl_mobile.errors import ConfigError, PflError, UnknownNameError, UserCodeError, near

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from pfl_mobile.deployment import Deployment

#: Package with the recipes; the function every recipe has.
RECIPES, FUNCTION = "pfl_recipes", "deployment"

EXAMPLE = """return a Deployment, for instance:
    def build():
        model = personalize(backbone, [LoRA("*.attn.[qv]", rank=4)], example=(x,))
        batch = {"x": x, "labels": y, "weight": torch.ones(len(x))}
        plan = Plan(phases=(TrainPhase(epochs=2, optimizer=AdamW(lr=1e-3)),))
        return Deployment("mine", model, ClassificationTask(classes=5), batch, plan)"""

_FORMS = "give file.py:function, package.module:function, or the name of a recipe"


@dataclass(frozen=True)
class ModelFunction:
    """A function that makes a deployment.

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

    def deployment(self, data: str | None, report: Callable[..., None]) -> Deployment:
        """Call the function, with ``data`` and ``report`` where it takes them.

        Raises:
            ConfigError: it needs other arguments, takes no data, or returns something else.
            UserCodeError: it failed.
            MissingDependencyError: it needs an optional package.
        """
        from pfl_mobile.deployment import Deployment

        offered = {"data": data, "report": report}
        parameters = inspect.signature(self.call).parameters
        needed = [
            p.name
            for p in parameters.values()
            if p.default is p.empty
            and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            and p.name not in offered
        ]
        if needed:
            raise ConfigError(
                f"{self.shown} needs the argument {needed[0]!r}",
                mend="the function takes no argument, or `data` and `report`; give the others defaults",
            )
        if data is not None and "data" not in parameters:
            raise ConfigError(
                f"{self.shown} takes no data", mend="leave --data out, or give it a parameter `data`"
            )
        try:
            found = self.call(**{name: value for name, value in offered.items() if name in parameters})
        except PflError:
            raise
        except Exception as error:
            raise _failed(f"{self.shown} failed", error, self.file) from error
        if not isinstance(found, Deployment):
            raise ConfigError(f"{self.shown} returned {_kind(found)}, not a Deployment", mend=EXAMPLE)
        return found


def recipes() -> list[str]:
    """Names of the recipes that are installed."""
    try:
        package = importlib.import_module(RECIPES)
    except ModuleNotFoundError:
        return []
    return sorted(entry.name for entry in pkgutil.iter_modules(package.__path__) if entry.ispkg)


def find_function(model: str) -> ModelFunction:
    """The function that MODEL names.

    Args:
        model: ``file.py:function``, ``package.module:function``, or the name of a recipe.

    Raises:
        UnknownNameError: there is no such file, module, recipe or function.
        UserCodeError: the file or module cannot be imported.
        MissingDependencyError: it imports an optional package that is not installed.
    """
    source, colon, function = model.rpartition(":")
    if not colon or len(source) == 1:  # one letter and a colon begin a path on Windows
        return _without_function(model)
    if source.endswith(".py") or "/" in source or "\\" in source:
        module = _import_file(Path(source).expanduser())
    else:
        module = _import_module(source)
    call = getattr(module, function, None)
    if not callable(call):
        names = _functions(module)
        what = "is not a function" if hasattr(module, function) else "does not exist"
        raise UnknownNameError(f"{function!r} in {source} {what}", mend=near(function, names))
    return ModelFunction(function, model, call, getattr(module, "__file__", None))


def _without_function(model: str) -> ModelFunction:
    path = Path(model).expanduser()
    if model.endswith(".py") or path.is_file():
        if not path.is_file():
            raise UnknownNameError(f"there is no file {model}", mend=_FORMS)
        names = _functions(_import_file(path))
        mend = f"name the function: {model}:{names[0] if len(names) == 1 else 'FUNCTION'}"
        raise ConfigError(
            f"{model} is a file; which function in it makes the deployment?", mend=_list(mend, names)
        )
    known = recipes()
    if model not in known:
        mend = f"{near(model, known)}; or {_FORMS}" if known else _FORMS
        raise UnknownNameError(f"there is no recipe {model!r}", mend=mend)
    module = _import_module(f"{RECIPES}.{model}")
    call = getattr(module, FUNCTION, None)
    if not callable(call):
        raise UnknownNameError(f"recipe {model!r} has no function {FUNCTION!r}", mend="update pfl-mobile")
    return ModelFunction(model, f"recipe {model}", call, None)


def _list(mend: str, names: list[str]) -> str:
    return f"{mend} (it has {', '.join(names)})" if len(names) > 1 else mend


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        folder = path.parent
        beside = [p.name for p in folder.glob("*.py")] if folder.is_dir() else []
        mend = near(path.name, beside) if beside else _FORMS
        raise UnknownNameError(f"there is no file {path}", mend=mend)
    path = path.resolve()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file", mend=_FORMS)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as `python file.py` does, for its own imports
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except PflError:
        raise
    except Exception as error:
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
