"""The gradient probe: hooks that see every sample's gradient in an ordinary backward pass."""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm

from adaptmix.checks import choice, integer
from adaptmix.errors import CoverageWarning, SeamError
from adaptmix.segments import Segments
from adaptmix.statistics.attention import Arrange
from adaptmix.statistics.compiled import Uncompiled, is_compiled, unwrapped
from adaptmix.statistics.coverage import Coverage, Layer, ParameterMap
from adaptmix.statistics.exact import ExactBatch
from adaptmix.statistics.gradients import GradientSums, MicroBatch
from adaptmix.statistics.hooks import LayerHooks
from adaptmix.statistics.isolation import warn_unless_isolated
from adaptmix.statistics.layers import Normalisation
from adaptmix.statistics.mass import GradientMass
from adaptmix.statistics.sketch import Projections, SketchBatch

ESTIMATORS = ("sketch", "exact", "norm")
_COVERAGE_EXPECTED = 0.9
_FIRST = 4  # outputs of layers, among which one is of positions that samples are packed in

_watched: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class GradientProbe:
    """Sums of per-sample gradients by domain, taken from the backward pass itself.

    Each step: ``arm`` before the forward; ``expect`` between the forward and the backward of each
    micro-batch; ``collect`` after the last backward. The backward pass, and so training, is the
    same to the bit; nothing waits for the device.

    The gradient of sample j is read at the outputs of the layers, so it is that of the sample's
    own loss only where samples do not meet inside the model: batch normalisation, losses over
    pairs of samples and auxiliary losses beside ``loss`` break this. The first dim of a layer's
    input and output must be the sample; any other dim of length B passes for it. Forwards and
    backwards alternate, and each backward runs once.

    A model that is compiled runs uncompiled in observed steps, for compiled code ignores hooks.

    Args:
        model: the model; what it is wrapped into by ``torch.compile`` or
            ``DistributedDataParallel`` is looked through.
        num_domains: K.
        estimator: "sketch": unbiased random projections of the gradients; "exact": whole
            gradients; "norm": whole gradients of normalisation layers only, whose variances tell
            domains apart but are far too small.
        seed: of the projections, the same on every process.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no trainable parameter of the kind, or an argument out of its range.
    """

    def __init__(
        self, model: nn.Module, num_domains: int, *, estimator: str = "sketch", seed: int = 0
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
        self._num_domains = integer("num_domains", num_domains, minimum=1)
        self._model = model
        only = Normalisation if choice("estimator", estimator, ESTIMATORS) == "norm" else None
        self._parameters = ParameterMap(unwrapped(model), only=only)
        self._projections = (
            Projections(self._parameters, seed=seed) if estimator == "sketch" else None
        )
        self._uncompiled = Uncompiled()
        self._hooks = LayerHooks(
            self._parameters.layers, on_call=self._on_call, refuse=self._refuse
        )
        self._attached = False
        self._observing = False
        self._inspected = False
        self._warned = False
        self._isolation_known = False
        self._mass: GradientMass | None = None
        self._drop()

    def _drop(self) -> None:
        self._upcoming = self._new_batch()
        self._current: MicroBatch | None = None
        self._total: GradientSums | None = None

    def _new_batch(self) -> MicroBatch:
        if self._projections is None:
            return ExactBatch(self._parameters, self._num_domains)
        return SketchBatch(self._parameters, self._num_domains, self._projections)

    @property
    def coverage(self) -> Coverage:
        """Which parameters are seen: foreseeably, before a backward pass, and then in fact.

        A layer that was never called, such as an expert without tokens, is not seen so far.
        """
        return self._parameters.coverage

    def attach(self) -> None:
        """Make this the model's probe; its hooks are on the model in observed steps only.

        Raises:
            ValueError: this or another probe is attached to the model or to a part of it.
        """
        modules = [layer.hooked for layer in self._parameters.layers]
        if self._attached or any(module in _watched for module in modules):
            raise ValueError(
                "model must have one probe at most; got one that is attached already. "
                "Call its detach() first."
            )
        self._attached = True
        _watched.update(modules)
        self._check_coverage()
        if any(isinstance(module, _BatchNorm) for module in self._model.modules()):
            warnings.warn(
                "The model normalises over the batch, so a sample's gradient holds parts of the "
                "others' and variances within domains are approximate. Group or layer "
                "normalisation keeps samples apart.",
                CoverageWarning,
                stacklevel=3,
            )

    def detach(self) -> None:
        """Leave the model and forget what was not collected; nothing when not attached."""
        if not self._attached:
            return
        self._attached = False
        self._observe(False)
        self._stop_weighing()
        _watched.difference_update(layer.hooked for layer in self._parameters.layers)
        self._drop()

    def arm(self, observing: bool, *, step: int) -> None:
        """Choose, before the forward of a step, whether the step is observed.

        Forward passes before it that were never differentiated are forgotten.

        Args:
            observing: whether it is.
            step: optimizer steps completed, which the projections are drawn by.
        """
        self._observe(observing and self._attached)
        if self._observing and self._projections is not None:
            self._projections.redraw(step)
        self._upcoming = self._new_batch()

    def _observe(self, observing: bool) -> None:
        self._observing = observing
        self._uncompiled.turn(observing and is_compiled(self._model))
        self._hooks.remove()
        if observing:
            self._hooks.install()

    def expect(
        self,
        domains: Tensor,
        factors: Tensor,
        loss: Tensor,
        *,
        segments: Segments | None = None,
        samples: Tensor | None = None,
        values: Tensor | None = None,
        outputs: Sequence[Tensor] = (),
    ) -> None:
        """Announce the backward pass of a micro-batch, after its forward; nothing unless observing.

        Args:
            domains: (B,) int64 in [0, K), on the model's device.
            factors: (B,) c_j of ``loss`` = Σ_j c_j ℓ_j, where ℓ_j is sample j's own loss. Samples
                with c_j = 0 are left out.
            loss: () the loss; what is done to it before ``backward`` (mixed precision's scale, a
                division by the number of micro-batches) is measured, and is not part of c_j.
            segments: where the samples are, when they are packed.
            samples: (R,) integers in [0, B): the sample that each row inside the model is of, when
                it runs other rows than the samples. The gradients of a sample's rows add up.
            outputs: all tensors that the samples' losses are computed from, where ``loss`` has more
                than these, such as a penalty on parameters; ``loss`` itself when empty.
            values: (B,) ℓ_j, by which packed samples are checked not to see each other.

        Warns:
            PackingWarning: once, when they do, or when that cannot be checked.

        Raises:
            SeamError: the model ran another number of rows, and ``samples`` does not tell of which.
            ValueError: different lengths, or a loss that is not a scalar with a gradient.
        """
        if domains.ndim != 1 or domains.shape != factors.shape:
            raise ValueError(
                "domains and factors must have one entry per sample, shape (B,); "
                f"got {tuple(domains.shape)} and {tuple(factors.shape)}."
            )
        if not self._observing:
            return
        if loss.numel() != 1 or not loss.requires_grad:
            raise ValueError(
                "loss must be a scalar that requires grad; "
                f"got shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}. "
                "Call expect between the forward and the backward."
            )
        self._finish()
        batch, self._upcoming = self._upcoming, self._new_batch()
        if not self._inspected:
            self._parameters.refuse_used_outside(outputs or [loss], batch.calls)
            self._mass = self._parameters.weigh(unwrapped(self._model))
            self._inspected = True
        if segments is None:
            _check_rows(batch.sizes, len(domains), samples)
        if segments is not None and not self._isolation_known:
            self._isolation_known = warn_unless_isolated(segments, values, batch.first)
        batch.calls.clear()
        batch.first.clear()
        if samples is not None:
            samples = samples.to(domains.device, non_blocking=True)
        batch.expect(domains, factors, segments, samples)
        loss.register_hook(batch.begin)
        self._current = batch

    def collect(self) -> GradientSums | None:
        """Return the sums over the micro-batches since the last call, or None without any.

        Warns:
            CoverageWarning: once, when less than 0.9 of the parameters or, from the second
                observation on, of their gradient is seen.
        """
        self._finish()
        total, self._total = self._total, None
        if self._observing:
            # The mass of this very step's gradient is still on its way.
            self._check_coverage(with_mass=self._mass is None)
            self._stop_weighing()
        return total

    def _finish(self) -> None:
        """Add the micro-batch whose backward is done to the step's sums."""
        batch, self._current = self._current, None
        sums = None if batch is None else batch.finish()
        if sums is None:
            return
        if self._total is None:
            self._total = sums
            return
        for total, part in zip(self._total.tensors(), sums.tensors(), strict=True):
            total += part

    def _refuse(self, layer: Layer) -> None:
        # A call that is a checkpoint's second one belongs to the micro-batch in its backward.
        if not _recomputing() or self._current is not None:
            self._parameters.refuse(layer.indices.values())

    def _on_call(
        self,
        layer: Layer,
        inputs: list[Tensor],
        output: Tensor,
        arrange: Arrange | None,
        arrange_gradient: Arrange | None,
    ) -> None:
        """Follow one call of a layer; ``arrange`` puts its samples first where they are not."""
        recomputing = _recomputing()
        batch = self._current if recomputing else self._upcoming
        if batch is None:
            return
        if not recomputing:
            # Without grad too: reentrant checkpointing runs its first forward that way.
            for index in layer.indices.values():
                batch.uses[index] += 1
        if not output.requires_grad:
            return
        if not self._inspected and output.grad_fn is not None:
            batch.calls[output.grad_fn] = [x.grad_fn for x in inputs if x.grad_fn is not None]
        if not self._isolation_known and len(batch.first) < _FIRST and not recomputing:
            # Its place in the graph, for the output itself may be needed by nobody else.
            batch.first.append((get_gradient_edge(output), output.shape))
        x = inputs[0] if arrange is None else arrange(inputs[0])
        with torch.no_grad(), _full_precision(x.device.type):
            kept = batch.keep(layer, x)
        size = len(x) if x.ndim else 0
        if not recomputing:
            batch.sizes[size] += 1
        # On the output and not on the module, whose backward hooks forbid in-place activations.
        # In a list, to be taken out when it is used: hooks live as long as the graph does.
        hook = partial(self._on_backward, layer, batch, size, [kept], arrange_gradient)
        output.register_hook(hook)

    @torch.no_grad()
    def _on_backward(
        self,
        layer: Layer,
        batch: MicroBatch,
        size: int,
        kept: list[Tensor | None],
        arrange: Arrange | None,
        gradient: Tensor,
    ) -> None:
        if batch is not self._current:  # collected or detached meanwhile
            return
        gradient = gradient.detach() if arrange is None else arrange(gradient.detach())
        # Backward hooks inherit autocast where backward() is called inside of it.
        with _full_precision(gradient.device.type):
            batch.add(layer, size, kept.pop(), gradient)

    def _stop_weighing(self) -> None:
        if self._mass is not None:
            self._mass.close()
            self._mass = None

    def _check_coverage(self, *, with_mass: bool = False) -> None:
        if self._warned:
            return
        coverage = self.coverage
        share, what = coverage.share, "trainable parameters"
        if with_mass and coverage.mass is not None and coverage.mass < share:
            share, what = coverage.mass, "gradient's squared norm"
        if share >= _COVERAGE_EXPECTED:
            return
        self._warned = True
        kinds = ", ".join(sorted(set(coverage.unseen.values())))
        warnings.warn(
            f"The gradient probe sees {share:.0%} of the {what}, so gradient "
            f"variances come out too small. Not seen: parameters in {kinds}. Types "
            "without a rule get one by adaptmix.register_rule; layers with one "
            "must be called, not have their weights used elsewhere, on inputs of shape (B, ...).",
            CoverageWarning,
            stacklevel=3,
        )


def _check_rows(sizes: Counter[int], number: int, samples: Tensor | None) -> None:
    """Check that the model ran rows that samples are known of.

    Args:
        sizes: how many layer calls took inputs of each number of rows.
        number: B, of samples.
        samples: (R,) the sample of each row, or None.

    Raises:
        SeamError: it ran others.
    """
    told = number if samples is None else len(samples)
    if not sizes or sizes[told] or (samples is None and sizes[number]):
        return
    rows = sizes.most_common(1)[0][0]
    k = max(1, rows // number)
    raise SeamError(
        f"The model must run the {told} rows {'drawn' if samples is None else 'of samples'}; its "
        f"layers ran {rows}, so the gradients of samples cannot be told apart. Say which row of "
        f"the draw each of the {rows} is of: samples=torch.arange({number}).repeat({k}) where the "
        "draw's rows come over and over (all chosen answers, then all rejected ones), "
        f"samples=torch.arange({number}).repeat_interleave({k}) where copies of a row follow each "
        "other. Rows packed into one need segments=, and models start with the dim of rows."
    )


def _full_precision(device: str) -> AbstractContextManager[Any]:
    """Return a context without autocast, which costs something to switch off where it is not on."""
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def _recomputing() -> bool:
    """Return whether a backward pass is running, so that a forward is a checkpoint's second one.

    It is no further use of its layers, and belongs to the micro-batch that is differentiated.
    """
    return bool(torch._C._current_graph_task_id() != -1)
