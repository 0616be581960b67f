"""Convolutions in one to three dimensions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from adaptmix.probe.rules._registry import Factored, Side, register_rule


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


for _kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    register_rule(_kind, lambda m: m.padding_mode == "zeros")(Convolution())
