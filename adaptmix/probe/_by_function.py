"""Layers that are called by function: what they are to estimators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from adaptmix.probe._coverage import Layer
from adaptmix.probe._operations import depends_on_batch, embedding_options
from adaptmix.probe._tracked import Padding, Source, matrix_rows
from adaptmix.probe.rules._embedding import Lookup
from adaptmix.probe.rules._linear import Experts, Matrix


def matrix(name: str, args: Any, kwargs: Any, source: Source) -> tuple[Layer, Padding] | None:
    """Return the layer that a product, or an embedding, is, and which rows of its weight it uses.

    Args:
        name: of the function.
        args: its arguments, the input and the weight first.
        kwargs: its arguments by keyword.
        source: the weight.
    """
    pad = matrix_rows(source, turned=name != "linear")
    if pad is None:
        return None
    index, parameter = next(iter(source.leaves.items()))
    if name != "embedding":
        module = SimpleNamespace(weight=parameter, bias=None)
        return Layer(module, Matrix(transposed=pad.of_inputs), {"weight": index}), pad
    options = embedding_options(args, kwargs)
    if pad != Padding(of_inputs=True) or parameter.ndim != 2 or depends_on_batch(options):
        return None
    return embedding(parameter, index, options.get("padding_idx")), pad


def experts(args: Any, kwargs: Any, source: Source) -> Layer | None:
    """Return the layer that a product of rows with one of several stacked weights each is.

    Args:
        args: its arguments, the input and the weight first.
        kwargs: its arguments by keyword.
        source: the weight.
    """
    x, weight = args[0], source.tensor
    offsets = kwargs.get("offs", args[2] if len(args) > 2 else None)
    if offsets is None or x.ndim != 2:
        return None
    (index, parameter), *more = source.leaves.items()
    turned = weight is not parameter
    like = parameter.mT if turned else parameter
    if more or weight.stride() != like.stride() or weight.shape != like.shape:
        return None
    places = torch.arange(len(x), device=x.device)
    each = torch.searchsorted(offsets.long(), places, right=True)
    each = each.clamp(max=len(parameter) - 1)
    module = SimpleNamespace(weight=parameter, bias=None, experts=each)
    return Layer(module, Experts(transposed=not turned), {"weight": index})


def looked_up(args: Any, kwargs: Any, sources: Sequence[Source]) -> Mapping[str, Any] | None:
    """Return the options of an embedding, where its weight is a parameter and rows are apart."""
    options, (weight, *more) = embedding_options(args, kwargs), sources
    whole = not more and weight.tensor.ndim == 2 and len(weight.leaves) == 1
    if not whole or weight.tensor is not next(iter(weight.leaves.values())):
        return None
    return None if depends_on_batch(options) else options


def embedding(parameter: Tensor, index: int, padding_idx: int | None) -> Layer:
    """Return the layer that an embedding by function is."""
    module = SimpleNamespace(
        weight=parameter,
        bias=None,
        padding_idx=padding_idx,
        num_embeddings=parameter.shape[0],
        embedding_dim=parameter.shape[1],
    )
    return Layer(module, Lookup(), {"weight": index})
