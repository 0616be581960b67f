"""Linear layers, by name or by function, and stacks of them of which each row uses one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from adaptmix.probe.rules._registry import Factored, Side, register_rule


def _rows(values: Tensor) -> Tensor:
    """Return (b, t, width): all dims between the samples and the features are positions."""
    return values.reshape(len(values), -1, values.shape[-1])


class Matrix(Factored):
    """Rule for y = x Wᵀ + b with x of shape (b, ..., in): ∂W = Σ_t g_t x_tᵀ, ∂b = Σ_t g_t.

    Args:
        transposed: whether W is (in, out) and y = x W + b.
    """

    by_position = True
    outer = True
    plain = True

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

    plain = False

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


register_rule(nn.Linear)(Matrix())
register_rule("transformers.pytorch_utils.Conv1D")(Matrix(transposed=True))
