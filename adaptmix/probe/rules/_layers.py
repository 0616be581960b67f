"""The rules of the layers that PyTorch and transformers have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from adaptmix.probe.rules._registry import Factored, Side, register_rule, trainable


def _rows(values: Tensor) -> Tensor:
    """Return (b, t, width): all dims between the samples and the features are positions."""
    return values.reshape(len(values), -1, values.shape[-1])


class Matrix(Factored):
    """Rule for y = x Wᵀ + b with x of shape (b, ..., in): ∂W = Σ_t g_t x_tᵀ, ∂b = Σ_t g_t.

    Args:
        transposed: whether W is (in, out) and y = x W + b.
    """

    by_position = True

    def __init__(self, *, transposed: bool = False) -> None:
        self.inputs_dim = 0 if transposed else 1

    def accepts(self, module: Any, x: Tensor) -> bool:
        """Return whether an input has a dim of samples."""
        return x.ndim >= 2

    def inputs(self, module: Any, x: Tensor, side: Side) -> Tensor:
        """Return the features of the input at each position."""
        return _rows(side.fold(x, -1))

    def outputs(self, module: Any, g: Tensor, side: Side) -> Tensor:
        """Return the features of the output gradient at each position."""
        return _rows(side.fold(g, -1))

    def product(self, module: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the weight's gradients."""
        return outputs.mT @ inputs if self.inputs_dim else inputs.mT @ outputs

    def total(self, outputs: Tensor) -> Tensor:
        """Return the bias's gradients."""
        return outputs.sum(1)


class Experts(Matrix):
    """Rule for y_t = x_t W_eᵀ with stacked weights W (E, out, in), or (E, in, out), one per row.

    Seen as one matrix of E · out rows, of which row t uses those of its expert e.
    """

    def inputs(self, module: Any, x: Tensor, side: Side) -> Tensor:
        """Return the features of the input at each row."""
        return self._features(module, x, side, stacked=not self.inputs_dim)

    def outputs(self, module: Any, g: Tensor, side: Side) -> Tensor:
        """Return the features of the output gradient at each row."""
        return self._features(module, g, side, stacked=bool(self.inputs_dim))

    def _features(self, module: Any, values: Tensor, side: Side, *, stacked: bool) -> Tensor:
        if not stacked:
            return side.fold(values, -1).unsqueeze(1)
        total = module.weight.shape[:-1].numel()
        return side.place(values, module.experts * values.shape[1], total).unsqueeze(1)


class Lookup(Matrix):
    """Rule for y = W[x] with indices x of shape (b, ...); the padding row has no gradient."""

    def __init__(self) -> None:
        super().__init__(transposed=True)

    def accepts(self, module: Any, x: Tensor) -> bool:
        """Return whether an input has a dim of samples."""
        return x.ndim >= 1

    def inputs(self, module: Any, x: Tensor, side: Side) -> Tensor:
        """Return the features of the input at each position."""
        images = side.lookup(x)
        if module.padding_idx is not None:
            images = images.masked_fill((x == module.padding_idx).unsqueeze(-1), 0.0)
        return images.reshape(len(x), -1, images.shape[-1])

    def __call__(self, module: Any, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return whole per-sample gradients, added up row by row."""
        rows, width = module.num_embeddings, module.embedding_dim
        if module.padding_idx is not None:
            g = g.masked_fill((x == module.padding_idx).unsqueeze(-1), 0.0)
        offset = rows * torch.arange(len(x), device=x.device)
        where = x.reshape(len(x), -1) + offset.unsqueeze(1)
        weight = g.new_zeros(len(x) * rows, width)
        weight.index_add_(0, where.flatten(), g.reshape(-1, width))
        return {"weight": weight.reshape(len(x), rows, width)}


class Convolution(Factored):
    """Rule for convolutions of x (b, channels, ...): the samples become groups of one sample.

    Source:
        Rochette et al., Efficient Per-Example Gradient Computations in Convolutional Neural
        Networks, arXiv:1912.06015, §3.
    """

    def accepts(self, module: Any, x: Tensor) -> bool:
        """Return whether an input has a dim of samples."""
        return x.ndim == len(module.kernel_size) + 2

    def groups(self, module: Any) -> int:
        """Return the number of groups of channels."""
        groups: int = module.groups
        return groups

    def inputs(self, module: Any, x: Tensor, side: Side) -> Tensor:
        """Return the features of the input at each position."""
        return side.fold(self._grouped(module, x), 1)

    def outputs(self, module: Any, g: Tensor, side: Side) -> Tensor:
        """Return the features of the output gradient at each position."""
        return side.fold(self._grouped(module, g), 1)

    def _grouped(self, module: Any, values: Tensor) -> Tensor:
        return values.reshape(len(values) * module.groups, -1, *values.shape[2:])

    def product(self, module: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the weight's gradients."""
        inputs, padding = _pad(module, inputs)
        weight: Tensor = _CONVOLUTION_WEIGHT[
            inputs.ndim
        ](  # type: ignore[no-untyped-call]
            inputs.reshape(1, -1, *inputs.shape[2:]),
            (outputs.shape[0] * outputs.shape[1], inputs.shape[1], *module.kernel_size),
            outputs.reshape(1, -1, *outputs.shape[2:]),
            module.stride,
            padding,
            module.dilation,
            len(inputs),
        )
        return weight

    def total(self, outputs: Tensor) -> Tensor:
        """Return the bias's gradients."""
        return outputs.flatten(2).sum(2)


_CONVOLUTION_WEIGHT = {3: conv1d_weight, 4: conv2d_weight, 5: conv3d_weight}


def _pad(module: Any, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return the input and the padding, in numbers, under which ``module`` convolves it."""
    if not isinstance(module.padding, str):
        return x, module.padding
    if module.padding == "same":
        spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        # Padding counts from the last dim; of an odd span, the larger half goes to the right.
        x = functional.pad(
            x, [side for span in reversed(spans) for side in (span // 2, span - span // 2)]
        )
    return x, (0,) * len(module.kernel_size)


class Normalisation:
    """Rule for y = weight * normalised(x) + bias; also with 1 + weight in weight's place.

    Args:
        normalised: (module, x) -> (b, ..., *shape of the weight), or None for an x that has no dim
            of samples.
        channels_first: whether the dim after the samples is the weight's, and not the last ones.
    """

    def __init__(
        self,
        normalised: Callable[[Any, Tensor], Tensor],
        *,
        channels_first: bool = False,
    ) -> None:
        self._normalised = normalised
        self.by_position = not channels_first

    def __call__(self, module: Any, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Return per-sample gradients, summed over the dims that weight and bias are shared by."""
        own = module.weight.ndim
        if x.ndim <= own:
            return {}
        normalised = self._normalised(module, x)
        first = 1 if self.by_position else 2
        positions = tuple(range(first, first + g.ndim - 1 - own))

        def total(gradient: Tensor) -> Tensor:
            return gradient.sum(positions) if positions else gradient

        gradients = {}
        if trainable(module.weight):
            gradients["weight"] = total(normalised * g)
        if trainable(getattr(module, "bias", None)):
            gradients["bias"] = total(g)
        return gradients


def _by_root_mean_square(module: Any, x: Tensor) -> Tensor:
    # In two passes over x, where functional.rms_norm takes several times as long on CPU.
    dims = tuple(range(-module.weight.ndim, 0))
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    eps = _eps(module)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return x * torch.rsqrt(norm.square() / module.weight.numel() + eps)


def _eps(module: Any) -> Any:
    """Return what is added to the mean square; the attribute has two names in the wild."""
    return getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)


def rms_norm_by_another_name(module: nn.Module) -> Normalisation | None:
    """Return the rule of a module that turns out to do what ``nn.RMSNorm`` does.

    Model libraries define their own, dozens of them, some with a twist. Whether one has none is
    found out by comparing the rule with autograd on a small input.
    """
    parameters = dict(module.named_parameters())
    if [*parameters] != ["weight"] or parameters["weight"].ndim != 1 or _eps(module) is None:
        return None
    weight = parameters["weight"]
    rule = Normalisation(_by_root_mean_square)
    try:
        x = torch.linspace(-1.0, 2.0, weight.numel(), device=weight.device).sin().reshape(1, 1, -1)
        with torch.enable_grad():
            y = type(module).forward(module, x)
            (want,) = torch.autograd.grad(y, weight, x.to(y.dtype))
        got = rule(module, x, x)["weight"][0]
        same = torch.allclose(got, want.to(got.dtype), rtol=0.02, atol=1e-4)
    except (RuntimeError, TypeError, ValueError, AttributeError):  # whatever it is, no such norm
        return None
    return rule if same else None


register_rule(nn.Linear)(Matrix())
register_rule("transformers.pytorch_utils.Conv1D")(Matrix(transposed=True))
# Gradients scaled by frequency depend on the whole batch and max_norm changes the weight in place,
# so neither has a per-sample gradient.
register_rule(
    nn.Embedding, lambda m: not (m.scale_grad_by_freq or m.sparse or m.max_norm is not None)
)(Lookup())
for _kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register_rule(_kind, lambda m: m.padding_mode == "zeros")(Convolution())
register_rule(nn.LayerNorm)(
    Normalisation(lambda m, x: functional.layer_norm(x, m.normalized_shape, eps=m.eps))
)
register_rule(nn.RMSNorm)(Normalisation(_by_root_mean_square))
register_rule(nn.GroupNorm)(
    Normalisation(
        lambda m, x: functional.group_norm(x, m.num_groups, eps=m.eps), channels_first=True
    )
)
