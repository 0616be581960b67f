"""The gradient probe: hooks that see every sample's gradient in an ordinary backward pass."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import zip_longest

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adaptmix._checks import choice, integer
from adaptmix.data._segments import Segments
from adaptmix.errors import CoverageWarning
from adaptmix.probe._compiled import Uncompiled, any_compiled, unwrapped
from adaptmix.probe._coverage import Coverage, ParameterMap, accumulator, own_parameters
from adaptmix.probe._follower import Follower
from adaptmix.probe._functions import Functions
from adaptmix.probe._hooks import ModelHooks
from adaptmix.probe._isolation import warn_unless_isolated
from adaptmix.probe._mass import GradientMass
from adaptmix.probe._pauses import Pauses
from adaptmix.probe._rows import RowTracker
from adaptmix.probe._tracked import check_rows
from adaptmix.probe._verification import Verifier, roots_of
from adaptmix.probe.estimators._exact import ExactBatch
from adaptmix.probe.estimators._gradients import GradientSums
from adaptmix.probe.estimators._micro_batch import MicroBatch
from adaptmix.probe.estimators._sketch import Projections, SketchBatch

ESTIMATORS = ("sketch", "exact", "norm")

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
    backwards alternate; of several that accumulate gradients, the last counts.

    Parameters that are unfrozen or added later are measured from the next observed step on.

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
        self._model, self._seed = model, seed
        self._estimator = choice("estimator", estimator, ESTIMATORS)
        self._uncompiled, self._pauses = Uncompiled(), Pauses()
        self._mass = GradientMass(self._pauses)
        self._attached = False
        self._observing = False
        self._inspected = False
        self._isolated: bool | None = None  # whether packed samples are
        self._twice = False
        self._listening = True
        self._build([*unwrapped(model).modules()])

    def _build(self, modules: Sequence[nn.Module]) -> None:
        """Begin anew with all modules of the model, and the parameters that are trained."""
        model, norms_only = unwrapped(self._model), self._estimator == "norm"
        self._trained = _trained(modules)
        self._parameters = ParameterMap(model, norms_only=norms_only)
        self._projections = (
            Projections(self._parameters, seed=self._seed) if self._estimator == "sketch" else None
        )
        tracker = RowTracker()
        self._follower = Follower(self._parameters, tracker, self._pauses, self._new_batch())
        self._functions = Functions(self._parameters, self._follower, tracker, self._pauses)
        self._hooks = ModelHooks(self._parameters.layers, self._functions, self._follower)
        self._verifier = Verifier(model, self._parameters)
        self._drop()

    def _drop(self) -> None:
        self._follower.upcoming, self._follower.current = self._new_batch(), None
        self._total: GradientSums | None = None

    def _new_batch(self) -> MicroBatch:
        if self._projections is None:
            return ExactBatch(self._parameters, self._num_domains)
        return SketchBatch(self._parameters, self._num_domains, self._projections)

    @property
    def misread(self) -> bool:
        """Whether next to nothing that is read is of the samples that it is taken for."""
        return self._verifier.misread

    @property
    def inspected(self) -> bool:
        """Whether a step was observed yet."""
        return self._inspected

    @property
    def watching(self) -> bool:
        """Whether this step's backward passes are to be announced."""
        return self._observing

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
        modules = [*unwrapped(self._model).modules()]
        if self._attached or any(module in _watched for module in modules):
            raise ValueError(
                "model must be watched by one controller at most; it, or a part of it, is watched "
                "already. Build the model anew for another run, or call remove() on what "
                "controller.watch(model) returned."
            )
        self._attached = True
        _watched.update(modules)
        if any(isinstance(module, _BatchNorm) for module in self._model.modules()):
            warnings.warn(
                "The model normalises over the batch, so a sample's gradient holds parts of the "
                "others' and variances within domains are approximate. Group or layer "
                "normalisation keeps samples apart.",
                CoverageWarning,
                stacklevel=3,
            )

    @property
    def model(self) -> nn.Module:
        """What is watched, with its wrappers."""
        return self._model

    def detach(self) -> None:
        """Leave the model and forget what was not collected; nothing when not attached."""
        if not self._attached:
            return
        self._attached = False
        self._observe(False)
        _watched.difference_update(unwrapped(self._model).modules())
        self._drop()

    def forget(self) -> None:
        """Forget what was seen of a step that is not going to be finished."""
        self._drop()

    def arm(self, observing: bool, *, step: int) -> None:
        """Choose, before the forward of a step, whether the step is observed.

        Forward passes before it that were never differentiated are forgotten.

        Args:
            observing: whether it is.
            step: optimizer steps completed, which the projections are drawn by.
        """
        if not (observing or self._observing):
            return
        self._observe(observing and self._attached)
        if self._observing and self._projections is not None:
            self._projections.redraw(step)
        self._follower.upcoming = self._new_batch()
        self._functions.forget()

    def _observe(self, observing: bool) -> None:
        self._observing = observing
        self._hooks.remove()
        self._mass.close()
        modules = [*self._model.modules()] if observing else []
        self._uncompiled.turn(any_compiled(modules))
        if observing:
            inner = modules[modules.index(unwrapped(self._model)) :]
            if any(now and not then for now, then in zip_longest(_trained(inner), self._trained)):
                self._build(inner)
            self._hooks.install(inner)
            # Where all is seen, there is no mass that is not.
            self._listening = not self._parameters.seen_all
            self._mass.listen(self._parameters.numbered(inner) if self._listening else {})

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
            ObjectiveError: the model ran another number of rows, and ``samples`` does not
                say which.
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
        batch, self._follower.upcoming = self._follower.upcoming, self._new_batch()
        batch.operations = self._parameters.refuse_used_outside(outputs or [loss], batch.calls)
        if segments is None:
            check_rows(batch.sizes, len(domains), samples)
        elif self._isolated is None:
            self._isolated = warn_unless_isolated(segments, values, batch.first, outputs=outputs)
        if samples is not None:
            samples = samples.to(domains.device, non_blocking=True)
        if segments is None or self._isolated:
            roots = roots_of(values, outputs, samples, len(domains), segments)
            # Losses may be weighted inside the model's forward, whose operations are followed.
            with self._follower.proving(batch):
                self._verifier(batch, domains, samples, roots, segments)
        batch.calls.clear()
        batch.first.clear()
        batch.expect(domains, factors, segments, samples, accumulator(loss))
        loss.register_hook(batch.begin)
        self._follower.current = batch

    def collect(self) -> GradientSums | None:
        """Return the sums over the micro-batches since the last call, or None without any."""
        self._finish()
        total, self._total = self._total, None
        if total is not None:
            self._inspected = True
            if not self._listening and not self._parameters.seen_all:
                total.forget()  # how much of it is seen is not known; in the next step it is
            seen = set() if self._twice else self._parameters.seen
            total.mass += self._mass.split(seen, total.mass)
        self._twice = False
        return total

    def _finish(self) -> None:
        """Add the micro-batch whose backward is done to the step's sums."""
        batch, self._follower.current = self._follower.current, None
        sums = None if batch is None else batch.finish()
        self._twice |= batch is not None and batch.twice
        self._parameters.twice |= self._twice
        if sums is None:
            return
        if self._total is None:
            self._total = sums
            return
        for total, part in zip(self._total.tensors(), sums.tensors(), strict=True):
            total += part

    def aside(self) -> AbstractContextManager[None]:
        """Return a context in which something else is differentiated, and nothing is measured."""
        return self._pauses.aside()


def _trained(modules: Iterable[nn.Module]) -> list[bool]:
    """Return which of the parameters that modules hold are trained."""
    return [p.requires_grad for p in own_parameters(modules)]
