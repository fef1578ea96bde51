"""A model of Hugging Face's transformers, from its folder: architecture, tokenizer and shapes are read, not written.

Nothing is downloaded and no code of the folder is run: a folder that ``save_pretrained`` or a download made, or an
identifier of a model that is in the local cache already.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pfl_exporters.families import KINDS, Shape, called, check_causal, family
from pfl_exporters.model_folder import Report, check_new, open_folder
from pfl_exporters.peft_adapter import PeftAdapter
from pfl_mobile.bundle.peft import import_model
from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.insertion import ALL_LINEAR
from pfl_mobile.modules.lora import LoRA
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.plan.optimizers import AdamW
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.plan.schema import Guard, Plan
from pfl_mobile.programs.deployment import Deployment

if TYPE_CHECKING:
    from pfl_mobile.modules.personalize import PersonalizedModel
    from pfl_mobile.modules.registry import ModuleConfig

__all__ = ["Shape", "by_leaf", "deployment"]

#: Examples with which the modules are tried before anything is traced.
_TRIED = 2


def deployment(
    source: str | Path,
    modules: Sequence[ModuleConfig] | None = None,
    *,
    adapter: str | Path | None = None,
    shape: Shape | None = None,
    plan: Plan | None = None,
    name: str | None = None,
    report: Report = lambda _: None,
) -> Deployment:
    """The model of a folder, with modules, ready to be exported.

    The task is that of the architecture. ``...ForCausalLM`` and ``...LMHeadModel`` learn the next token of texts, by
    the folder's ``tokenizer.json``. The others take arrays: ``...ForSequenceClassification`` and
    ``...ForTokenClassification`` rows of tokens ``input_ids`` and ``attention_mask`` int64 [B, T],
    ``...ForConditionalGeneration`` these or ``input_features``, and ``decoder_input_ids`` int64 [B, U];
    ``...ForImageClassification`` ``pixel_values`` float32 [B, C, H, W]; ``...ForAudioClassification``, and models of
    sounds for sequences, ``input_values`` float32 [B, samples] or ``input_features`` float32 [B, mels, frames].

    Args:
        source: a folder, or the identifier of a model in the local cache.
        modules: what is personal; patterns name the model's own layers. By default those of the adapter, and without
            one LoRA on all linear layers.
        adapter: folder of an adapter of peft, which says what is personal besides; where its weights are there, too,
            devices start from them.
        shape: batch and length.
        plan: what a device does; by default one epoch of AdamW, adopted where the loss falls.
        name: of the bundle; by default the folder's.
        report: told what is done.

    Raises:
        MissingDependencyError: transformers is not installed.
        UnknownNameError: there is no such folder; a pattern matches no layer.
        ConfigError: the architecture is not one of those, brings its own code, has no such length, or its weights are
            not all there; the adapter is of a kind that has no module here.
        DataError: its files cannot be read, or the tokenizer is not the model's.
        TensorMismatchError: the adapter is another model's.
    """
    shape = shape or Shape()
    folder = open_folder(str(source), tuple(KINDS))
    given = None if adapter is None else PeftAdapter.read(adapter)
    found = family(folder, shape)
    own = list(modules) if modules is not None else [] if given else [LoRA(ALL_LINEAR, rank=8)]
    backbone, missing = folder.weights(lambda made: called(made, found.arguments), report)
    if given is not None:
        own = [*given.modules(backbone), *own]
    check_new(folder, missing, own)
    if found.causal:
        check_causal(folder, backbone)
    example = [found.batch[entry][:_TRIED] for entry in found.task.inputs]
    report(f"put {', '.join(dict.fromkeys(module.kind for module in own))} into {folder.architecture}")
    model = personalize(backbone, own, example=example)
    if given is None:
        _check_ranks(model)
    elif given.trained:
        report(f"start from the adapter in {given.folder}")
        import_model(model, given.folder)
    return Deployment(
        name=name or folder.name,
        model=model,
        task=found.task,
        batch=found.batch,
        plan=plan
        or Plan(
            phases=(TrainPhase(epochs=1, optimizer=AdamW(lr=1e-3), clip=1.0),),
            guard=Guard(metric="loss", min_examples=10),
        ),
        **found.more,
    )


def by_leaf(targets: Sequence[str]) -> tuple[str, ...]:
    """Patterns from names as peft takes them: ``q_proj`` is every layer whose path ends in it."""
    written = ("*", "?", "[", ":", ".")
    return tuple(
        t if t == ALL_LINEAR or any(sign in t for sign in written) else f"re:(.*\\.)?{re.escape(t)}"
        for t in targets
    )


def _check_ranks(model: PersonalizedModel) -> None:
    """Low-rank parts are smaller than their layers.

    ``all-linear`` takes small ones too, that of few answers or of one gate, where some layer has that rank.

    Raises:
        ConfigError: naming a layer whose rank is larger than both sides allow.
    """
    values = model.values()
    fits: dict[str, list[tuple[bool, str, int, int]]] = {}
    for info in model.device_tensors():
        path, _, leaf = info.name.rpartition(".")
        if leaf == "lora_A":
            a, b = values[info.name], values[f"{path}.lora_B"]
            rank = b.shape[1]
            most = min(a.numel() // rank, b.shape[0])
            fits.setdefault(info.module, []).append((rank <= most, path, rank, most))
    for module, layers in fits.items():
        everywhere = ALL_LINEAR in getattr(model.configs[module], "targets", ())
        for fit, path, rank, most in layers:
            if fit or (everywhere and any(other for other, *_ in layers)):
                continue
            raise ConfigError(
                f"the rank {rank} of LoRA is larger than layer {path!r}, whose weight has a rank of at most {most}",
                mend=f"--rank {most} or less; or leave that layer out, or train it as a whole: --head {path}",
            )
