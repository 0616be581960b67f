"""Whether the gradients that are read at layers are those of the samples they are taken for.

Rows are followed by what operations do to their first dim, and by its size where nothing else is
known of a tensor. A dim of another kind may be as long as there are samples. Two backward passes
prove what was assumed. The row of sample j in tensors that the losses are computed from has the
gradient v_j u_j, with factors v_j of our own. Then

- v_j g_j is what is read of sample j, so sums of what is read over v_j are the same for all v;
  parts of other samples would come in with other factors;
- what is read adds up to the whole gradient of each parameter, which autograd tells.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adaptmix.data._segments import Segments
from adaptmix.errors import CoverageWarning, RowOrderWarning
from adaptmix.probe._coverage import ParameterMap, some
from adaptmix.probe._saved import restoring_saved
from adaptmix.probe._tracked import Rows
from adaptmix.probe.estimators._micro_batch import Kind, MicroBatch

# Differences between sums of as many terms, relative to their norm, that are rounding. Products
# in TensorFloat-32 have the precision of halves.
_ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-3}
_HALVES = 5e-2
# Gradients so small beside the model's are rounding themselves, as those of a bias that softmax
# ignores are.
_NEGLIGIBLE = 0.1
_ATTEMPTS = 3  # where nothing can be told
_NEXT_TO_NOTHING = 0.01
_GOLDEN = 0.6180339887498949


Roots = Sequence[tuple[Tensor, Tensor]]
"""Tensors that losses are computed from, and (rows, …) the sample of each of their rows."""


@dataclass(frozen=True)
class Findings:
    """What two backward passes showed.

    Args:
        mixed: numbers of the parameters whose gradients hold parts of other samples.
        incomplete: of those whose samples' gradients do not add up to the whole.
        share: of the squared norm of all that was read, which the others hold.
    """

    mixed: frozenset[int]
    incomplete: frozenset[int]
    share: float


def kind_of(indices: Iterable[int], rows: Rows) -> Kind:
    """Return what a call is taken for.

    Rows of many lengths are flattened alike, so each length is not a kind of its own.
    """
    return tuple(indices), min(rows.each, 2), rows.ids is not None, rows.arrange is not None


def normalises_over_batch(model: nn.Module) -> bool:
    """Return whether samples meet in a model's batch normalisation."""
    return any(
        isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        for module in model.modules()
    )


def misread(names: str) -> str:
    """Return a sentence on gradients that next to none are right of."""
    return (
        f"The gradients that are read at {names} are not those of the losses' own rows: samples "
        "meet there, or rows are put into another order inside the model. Gradient statistics "
        "would be other domains', so weights stay as they are. Give the model its rows in the "
        "order of the losses, and every row a loss of its own."
    )


def doubted(names: str, findings: Findings) -> str:
    """Return a sentence on gradients of which some are not right."""
    if findings.mixed:
        why = (
            "are not those of the losses' own rows: samples meet there, or rows change their order"
        )
    else:
        why = "of the samples do not add up to the whole ones"
    return f"The gradients that are read at {names} {why}. They count as not seen."


def roots_of(
    values: Tensor | None,
    outputs: Sequence[Tensor],
    samples: Tensor | None,
    size: int,
    segments: Segments | None = None,
) -> list[tuple[Tensor, Tensor]] | None:
    """Return (tensor, (rows,) the sample of each of its rows) of what losses are computed from.

    Where samples are packed, it is (P, positions) the sample of each position; −1 in padding.

    Args:
        values: (B,) losses of samples; without a graph where they were computed elsewhere.
        outputs: the tensors that losses are computed from.
        samples: (R,) the sample of each row inside the model, or None.
        size: B.
        segments: of packed samples, or None.
    """
    if values is not None and values.requires_grad:
        return [(values, torch.arange(size, device=values.device))]
    roots = []
    for output in outputs:
        if not output.requires_grad or not output.ndim:
            return None
        if segments is not None:
            positions = output.shape[1] if output.ndim > 1 else 0
            if len(output) != len(segments.ids) or segments.shape[1] - positions not in (0, 1):
                return None
            roots.append((output, segments.ids[:, :positions].to(output.device)))
        elif len(output) == size:
            roots.append((output, torch.arange(size, device=output.device)))
        elif samples is not None and len(output) == len(samples):
            roots.append((output, samples.to(output.device)))
        else:
            return None
    return roots or None


def verify(
    batch: MicroBatch,
    roots: Roots,
    parameters: Mapping[int, Tensor],
    *,
    domains: Tensor,
    samples: Tensor | None,
    segments: Segments | None = None,
    apart: bool,
) -> Findings | None:
    """Run two backward passes, and compare what is read in them.

    Args:
        batch: the micro-batch, which the hooks of its forward add to.
        roots: as ``roots_of`` returns them.
        parameters: {number: parameter}.
        domains: (B,).
        samples: (R,) or None.
        segments: of packed samples, or None.
        apart: whether samples are to be apart inside the model.

    Returns:
        None when it cannot be told: nothing was read, gradients are not finite, or the graph
        refuses to be differentiated twice.
    """
    size = len(domains)
    generic = _generic(size).to(domains.device)
    inputs: list[Any] = [*parameters.values()]
    inputs += [edge for edge, _ in batch.first]
    ones = torch.ones_like(generic)
    try:
        read, gradients = _passed(batch, roots, inputs, domains, ones, samples, segments)
        whole = {
            number: batch.image(number, gradient)
            for number, gradient in zip(parameters, gradients, strict=False)
            if gradient is not None and number in read
        }
        del gradients
        again, _ = _passed(batch, roots, inputs, domains, generic, samples, segments)
    except RuntimeError:  # as reentrant checkpointing raises, or there is no memory for it
        return None
    if not read.keys() & again.keys():
        return None
    return _compare(batch, read, again, whole, apart=apart)


def _generic(size: int) -> Tensor:
    """Return (B,) float64 factors in [1/4, 4), all of them different."""
    places = torch.arange(1, size + 1, dtype=torch.float64) * _GOLDEN
    return torch.exp2(4.0 * (places - places.floor()) - 2.0)


def _passed(
    batch: MicroBatch,
    roots: Roots,
    inputs: Sequence[Any],
    domains: Tensor,
    factors: Tensor,
    samples: Tensor | None,
    segments: Segments | None,
) -> tuple[dict[int, Tensor], tuple[Tensor | None, ...]]:
    """Return sums by domain, by parameter, and the whole gradients of ``inputs``."""
    # Scalars with these gradients: passing gradients themselves makes torch import SymPy, which
    # takes longer than all else that a run begins with.
    table = torch.cat([factors, factors.new_zeros(1)])  # what is of no sample is left out
    weighted = [
        root
        * _direction(root)
        * table[rows].to(root.dtype).reshape(*rows.shape, *[1] * (root.ndim - rows.ndim))
        for root, rows in roots
    ]
    with (
        restoring_saved(root for root, _ in roots),
        batch.rehearsal(domains, factors, samples, segments) as sums,
    ):
        whole = torch.autograd.grad(
            [product.sum() for product in weighted],
            inputs,
            retain_graph=True,
            allow_unused=True,
        )
    return sums, whole


def _direction(root: Tensor) -> Tensor:
    """Return a gradient that no structure of a model is special to; ones for losses."""
    if root.ndim == 1:
        return torch.ones_like(root)
    places = torch.arange(root.numel(), device=root.device, dtype=torch.float32)
    return (1.0 + torch.sin(places)).reshape(root.shape).to(root.dtype)


def _compare(
    batch: MicroBatch,
    read: Mapping[int, Tensor],
    again: Mapping[int, Tensor],
    whole: Mapping[int, Tensor],
    *,
    apart: bool,
) -> Findings | None:
    numbers = sorted(read.keys() & again.keys())
    rows = []
    for number in numbers:
        first, second = read[number].double(), again[number].double()
        total = first.sum(0)
        target = whole.get(number, total).double()
        differences = [(second - first).norm(), (total - target.reshape(total.shape)).norm()]
        rows.append(torch.stack([*differences, first.norm(), target.norm()]))
    moved, missed, norms, targets = torch.stack(rows).T.cpu()
    if not all(bool(column.isfinite().all()) for column in (moved, missed, norms, targets)):
        return None
    exact = batch.precision == torch.float64 or first.device.type == "cpu"
    tolerance = _ROUNDING.get(batch.precision, _HALVES) if exact else _HALVES
    floor = _NEGLIGIBLE * torch.maximum(norms.norm(), targets.norm())
    scale = tolerance * torch.maximum(torch.maximum(norms, targets), floor)
    mixed = {n for n, bad in zip(numbers, moved > scale, strict=True) if bad and apart}
    incomplete = {n for n, bad in zip(numbers, missed > scale, strict=True) if bad}
    fine = torch.tensor([n not in mixed | incomplete for n in numbers])
    share = float((norms * fine).norm() / norms.norm().clamp(min=1e-300)) ** 2
    return Findings(frozenset(mixed), frozenset(incomplete), share)


class Verifier:
    """Proves each kind of call of a model once, and again where another operation is in between.

    Args:
        model: the model, without wrappers.
        parameters: of it.
    """

    def __init__(self, model: nn.Module, parameters: ParameterMap) -> None:
        self._model, self._parameters = model, parameters
        self._proved: set[tuple[Kind, bool, bool]] = set()
        self._operations: set[str] = set()
        self._attempts = _ATTEMPTS
        self.misread = False

    def __call__(
        self,
        batch: MicroBatch,
        domains: Tensor,
        samples: Tensor | None,
        roots: Roots | None,
        segments: Segments | None = None,
    ) -> None:
        """Prove that what is read is of the samples, where a call is not as those before.

        Args:
            batch: the micro-batch.
            domains: (B,).
            samples: (R,) or None.
            roots: as ``roots_of`` returns them.
            segments: of packed samples, or None.

        Warns:
            RowOrderWarning: next to nothing is.
            CoverageWarning: part of it is not, which is left out.
        """
        kinds = {(kind, samples is None, segments is None) for kind in batch.kinds}
        known = kinds <= self._proved and batch.operations <= self._operations
        if roots is None or known or not self._attempts:
            return
        found = verify(
            batch,
            roots,
            self._parameters.numbered(self._model.modules()),
            domains=domains,
            samples=samples,
            segments=segments,
            apart=not normalises_over_batch(self._model),
        )
        if found is None:
            self._attempts -= 1
            return
        self._proved |= kinds
        self._operations |= batch.operations
        wrong = found.mixed | found.incomplete
        if not wrong:
            return
        names = some(self._parameters.named(wrong))
        if found.share < _NEXT_TO_NOTHING:
            self.misread = True
            warnings.warn(misread(names), RowOrderWarning, stacklevel=5)
        else:
            self._parameters.doubt(wrong)
            warnings.warn(doubted(names, found), CoverageWarning, stacklevel=5)
