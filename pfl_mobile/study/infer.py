"""From a model and data to a task and a personalized model, where the user did not say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from pfl_mobile.data.user_rows import rename_to_labels
from pfl_mobile.errors import ConfigError, UnknownNameError
from pfl_mobile.modules.head import Head
from pfl_mobile.modules.insertion import matches, near_pattern
from pfl_mobile.modules.personalize import PersonalizedModel, personalize
from pfl_mobile.programs.tasks import Batch, Task
from pfl_mobile.study.labels import LabelFacts, task_of

if TYPE_CHECKING:
    from pfl_mobile.rows import Rows


def example_batch(rows: Rows, size: int) -> Batch:
    """A batch of exactly ``size`` examples of the shape of ``rows``, repeated as needed."""
    index = np.arange(size) % len(rows["weight"])
    return {name: torch.from_numpy(np.ascontiguousarray(value[index])) for name, value in rows.items()}


def infer_task(
    model: nn.Module, batch: Batch, *, specials: int = 0, labels: Iterable[np.ndarray] | None = None
) -> tuple[Task, str]:
    """The task that fits the data, tokens, classes or real values, and why it is that one.

    Args:
        model: gives outputs for the batch.
        batch: examples with ``labels`` and ``weight``.
        specials: first ids of tokens that stand for no word (padding, unknown): those of the text encoder, where
            one made the tokens.
        labels: all labels that are known, by user; by default those of the batch.

    Raises:
        ConfigError: it cannot be told, or the model does not take the batch.
    """
    if "labels" not in batch:
        raise ConfigError(f"the rows have {sorted(batch)} but no 'labels'", mend=rename_to_labels(batch))
    inputs = tuple(name for name in batch if name not in ("labels", "weight"))
    own, output = batch["labels"], _output(model, batch, inputs)
    facts = LabelFacts.of([own.numpy()] if labels is None else labels)
    dtype = str(own.dtype).removeprefix("torch.")
    return task_of(inputs, (dtype, tuple(own.shape)), tuple(output.shape), facts, specials)


def _output(model: nn.Module, batch: Batch, inputs: Sequence[str]) -> torch.Tensor:
    """What the model gives on a batch, as on a device: without dropout, and with BatchNorm as it is.

    Nothing stays of the call, neither in the model nor in torch's generator.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = model.eval()(*(batch[name] for name in inputs))
    except Exception as error:
        raise ConfigError(
            f"the model fails on a batch with {list(inputs)}: {type(error).__name__}: {error}",
            mend="give the rows the names and the order of forward's arguments, or give task=",
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(output, torch.Tensor):
        raise ConfigError(
            f"the model returns a {type(output).__name__}, not one tensor",
            mend="wrap it in a module whose forward returns the logits only",
        )
    return output


def personalized(
    model: nn.Module,
    *,
    shared: Sequence[str] | None,
    personal: Sequence[str] | None,
    seed: int = 0,
) -> PersonalizedModel:
    """The model with the layers named by ``shared`` and ``personal`` trainable; the others stay frozen.

    With neither, every layer with parameters is trainable and shared. With ``personal`` alone, all others are
    shared. A model that is personalized already keeps its modules and roles.

    Raises:
        UnknownNameError: a pattern matches no layer.
        ConfigError: a layer is both, or the model has no parameters.
    """
    if isinstance(model, PersonalizedModel):
        if shared is not None or personal is not None:
            raise ConfigError(
                "the model has modules with roles of their own",
                mend="give roles to personalize(...), or a plain model to the study",
            )
        return model
    layers = leaf_layers(model, complete=shared is None)
    own = _below(model, personal or (), layers, "personal")
    rest = [path for path in layers if path not in own]
    if shared is not None:
        rest = _below(model, shared, layers, "shared")
        both = sorted(set(rest) & set(own))
        if both:
            raise ConfigError(
                f"layer {both[0]!r} is named by shared= and by personal=",
                mend="narrow one of the two patterns",
            )
    chosen = {"personal": own, "shared": rest}
    modules = [
        Head([f"re:{re.escape(path)}" for path in paths], name=role)
        for role, paths in chosen.items()
        if paths
    ]
    return personalize(model, modules, roles={m.name: m.name for m in modules if m.name}, seed=seed)


def leaf_layers(model: nn.Module, *, complete: bool) -> list[str]:
    """Paths of the layers that own parameters themselves.

    Args:
        model: any.
        complete: refuse a model that training all those layers would change in another way.

    Raises:
        ConfigError: there are none; or ``complete``, and some parameters belong to no layer, or are tied.
    """
    found = [path for path, layer in model.named_modules() if list(layer.parameters(recurse=False))]
    if not found:
        raise ConfigError(
            f"the model {type(model).__name__} has no parameters to train", mend="give a model with layers"
        )
    if not complete:
        return [path for path in found if path]
    if "" in found:
        raise ConfigError(
            f"the model {type(model).__name__} has parameters of its own, outside of its layers",
            mend="put them into a layer, or name what is trained with shared= and personal=",
        )
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(parameter), name)
        if first != name:
            raise ConfigError(
                f"the weights {first!r} and {name!r} are one tensor, and training would part them",
                mend="name what is trained with shared= and personal=, or use modules: personalize(model, [LoRA(...)])",
            )
    return found


def _below(model: nn.Module, patterns: Sequence[str], layers: Sequence[str], what: str) -> list[str]:
    """The layers with parameters that a pattern matches, or that lie in a block it matches."""
    paths = [path for path, _ in model.named_modules() if path]
    chosen: set[str] = set()
    for pattern in patterns:
        hit = [path for path in paths if matches(pattern, path)]
        inside = {p for p in layers for h in hit if p == h or p.startswith(f"{h}.")}
        if not inside:
            raise UnknownNameError(
                f"{what}= names {pattern!r}, which matches no layer with parameters",
                mend=near_pattern(pattern, paths),
            )
        chosen |= inside
    return [path for path in layers if path in chosen]
