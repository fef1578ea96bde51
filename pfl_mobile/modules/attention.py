"""PyTorch's own attention layers, with hooks where they ask for values or give NaN that a device would meet."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]


def prepare(root: nn.Module) -> None:
    """Hook the attentions, stock encoders and stock decoders in a copied backbone.

    *An attention whose weights are asked for* (``need_weights``, as it is without a word) gives NaN for an example
    whose keys are all padding. Devices fill a last batch with such examples, of weight 0, and NaN of weight 0 is NaN in
    the sum of a batch. With the hook it sees the keys of these examples instead; nothing else changes.

    *An encoder or decoder* compares its mask with the causal one to choose a kernel, which no trace can do. It gets the
    answer that fits every mask.

    *An encoder* packs padded rows where its first layer is frozen, and the layers behind it cannot take that where they
    are trained. A program never packs: it computes what is here too.
    """
    for layer in root.modules():
        if isinstance(layer, nn.MultiheadAttention):
            layer.register_forward_pre_hook(_unmask, with_kwargs=True)
        elif isinstance(layer, nn.TransformerEncoder):
            layer.enable_nested_tensor = layer.use_nested_tensor = False
            layer.register_forward_pre_hook(_any_encoder_mask, with_kwargs=True)
        elif isinstance(layer, nn.TransformerDecoder):
            layer.register_forward_pre_hook(_any_decoder_mask, with_kwargs=True)


def _unmask(_attention: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    names = ("query", "key", "value", "key_padding_mask", "need_weights")
    given = dict(zip(names, args, strict=False)) | kwargs
    mask = given.get("key_padding_mask")
    if not given.get("need_weights", True) or not isinstance(mask, Tensor):
        return None
    if mask.is_floating_point():
        mask = mask.masked_fill(mask.isneginf().all(-1, keepdim=True), 0.0)
    else:
        mask = mask & ~mask.all(-1, keepdim=True)
    if len(args) > 3:
        return (*args[:3], mask, *args[4:]), kwargs
    return args, {**kwargs, "key_padding_mask": mask}


def _any_encoder_mask(
    _encoder: nn.TransformerEncoder, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call | None:
    return _any_mask(args, kwargs, "is_causal", 3)


def _any_decoder_mask(
    _decoder: nn.TransformerDecoder, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call | None:
    return _any_mask(args, kwargs, "tgt_is_causal", 6)


def _any_mask(args: tuple[Any, ...], kwargs: dict[str, Any], hint: str, place: int) -> Call | None:
    """With ``hint`` set to False where it is None, that is, where the mask's own values would be asked."""
    if len(args) > place:
        return ((*args[:place], False, *args[place + 1 :]), kwargs) if args[place] is None else None
    return (args, {**kwargs, hint: False}) if kwargs.get(hint) is None else None
