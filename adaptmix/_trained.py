"""What trainers call on a run, where they make loaders, losses and logs themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adaptmix._changed import carried_over, refuse_change
from adaptmix._checks import choice
from adaptmix._reported import ReportedRun
from adaptmix.data import Draw, PlanSampler, sample_lengths
from adaptmix.data._elsewhere import PublishedShares
from adaptmix.errors import StateError
from adaptmix.noise import NoiseTerms
from adaptmix.state import _schema as schema
from adaptmix.state._checkpoint import unseal
from adaptmix.state._parts import Part, load_parts, open_parts, save_parts


class TrainedRun(ReportedRun):
    """What trainers call on a run, and read of it; users call ``Controller``."""

    def sampler(
        self,
        batch_size: int,
        *,
        accumulation: int = 1,
        steps: int | None = None,
        epoch_steps: int | None = None,
    ) -> PlanSampler:
        """Return the batch sampler of this run, for trainers that make the loader themselves.

        Args:
            batch_size: rows of a micro-batch on this process.
            accumulation: micro-batches per optimizer step.
            steps: optimizer steps of the whole run; one pass over the rows when None.
            epoch_steps: optimizer steps of one iteration; all that are left when None.

        Raises:
            ValueError: an option out of its range.
            StateError: another global batch than the restored run's.
        """
        layout = self._layout(batch_size, accumulation)
        steps = layout.epoch_steps(len(self.mixture)) if steps is None else steps
        return self._make_sampler(layout, steps, epoch_steps)

    def count_tokens(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        """Count the tokens of some rows of each domain, if ``tokens_per_row`` is a function.

        ``loader`` does so by itself. Call it where a trainer makes the loader.

        Args:
            collate_fn: makes a batch of rows.

        Raises:
            ValueError: ``tokens_per_row`` does not return one number per row.
        """
        plan, known = self._plan, self._measurements.lengths_started
        if self._count is None or known or isinstance(plan, PublishedShares):
            return
        sample = sample_lengths(self.mixture, collate_fn, self._count, seed=plan.seed)
        if sample is not None:
            self._measurements.sample_lengths(sample.tokens, sample.rows, sample.whole)
            plan.schedule.begin_with(self._adaptation.row_shares)

    def multipliers(self, draw: Draw | None = None, *, ahead: bool = False) -> Tensor:
        """Return what each row's share of a mean loss is to be multiplied by, (B,).

        A loss that is a mean over rows (tokens, with unit "token") has the gradient of Σ π w L, in
        expectation, once its rows' gradients are multiplied so; ``adaptmix.trainers`` does that
        where losses cannot be had row by row. Call ``observe`` for the same batch afterwards.

        Args:
            draw: as for ``Controller.loss``.
            ahead: whether the draw may be of a later micro-batch than the next to train.

        Raises:
            BatchOrderError: as ``Controller.loss`` does.
            ValueError: a draw of another controller.
        """
        draw = self._order.draw_of(draw) if ahead else self._next_draw(draw)
        if not self._settings.adapting:
            return torch.ones(len(draw))
        return self._scaler.multipliers(draw, self.weights, lengths=self._measurements.lengths)

    def expected_tokens(self, draw: Draw) -> float:
        """Return the expected supervised tokens per row of the step that a draw belongs to.

        With unit "sample" it is the expected share of rows that have a supervised label.
        """
        return self._scaler.mean_length(draw, self._measurements.lengths)

    def observe(
        self,
        loss: Tensor,
        *,
        factors: Tensor,
        losses: Tensor | None = None,
        mask: Tensor | None = None,
        noise: NoiseTerms | Tensor | None = None,
        samples: Tensor | None = None,
        outputs: Sequence[Tensor] = (),
        draw: Draw | None = None,
    ) -> None:
        """Record the statistics of a micro-batch whose weighted loss was computed elsewhere.

        Args:
            loss: () the scalar that ``backward()`` is called on.
            factors: (B,) what ``loss`` multiplies each row's own loss by: its mean over tokens, or
                with unit "token" their sum.
            losses: as for ``Controller.loss``; unknown when None.
            mask: as for ``Controller.loss``; without ``losses`` only its counts are used.
            noise: as for ``Controller.loss``.
            samples: as for ``Controller.loss``.
            outputs: the tensors that rows' losses are computed from, where ``loss`` has more than
                these, such as a penalty on parameters.
            draw: as for ``Controller.loss``.

        Raises:
            BatchOrderError: as ``Controller.loss`` does.
            ObjectiveError: as ``Controller.loss`` does.
            TypeError: as ``Controller.loss`` does.
            ValueError: as ``Controller.loss`` does.
        """
        self._agreement.device = loss.device
        draw = self._next_draw(draw)
        values, tokens = None, torch.ones(len(draw), device=loss.device)
        if losses is not None:
            rows = self._scaler.rows(losses, draw, mask)
            values, tokens = rows.values, rows.tokens
        elif mask is not None:
            tokens = mask.reshape(len(draw), -1).sum(1)
        domains = draw.domains.to(tokens.device, non_blocking=True)
        told = losses is not None or mask is not None
        adapting = self._settings.adapting
        self._measurements.start_lengths(domains, tokens, known=told, adapting=adapting)
        factors = factors.to(loss.device, non_blocking=True)
        self._record(
            loss,
            draw,
            factors,
            values,
            tokens,
            noise,
            segments=draw.segments,
            samples=samples,
            outputs=outputs,
        )

    def record_noise(self, noise: NoiseTerms | Tensor, domain: str) -> None:
        """Add noise terms of held-out rows; they replace a domain's training residuals.

        Args:
            noise: terms of ``adaptmix.noise``, or (B,) squared residuals, of rows that are never
                trained on.
            domain: the name of the domain that all of them are of.

        Raises:
            TypeError: noise that is no tensor.
            ValueError: an unknown domain.
        """
        index = self.mixture.domains.index(choice("domain", domain, self.mixture.domains))
        self._measurements.record_noise(index, NoiseTerms.of(noise))

    def abandon_step(self) -> None:
        """Forget what was recorded of an unfinished step; the step is trained anew.

        Call it where an exception, such as a lack of memory, cut a step short, and set gradients to
        zero. Iterating a loader and loading a state call it themselves. Between steps it does
        nothing.
        """
        self._order.abandon_step()
        self._forget_step()

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as plain tensors, numbers and strings.

        Every process must call it, because sums are gathered from all. It returns the same on
        each, and any number of processes may load it.

        Raises:
            ValueError: called between the micro-batches of a step.
            ProcessMismatchError: processes that do not agree.
        """
        if self._order.micro:
            raise ValueError(
                f"state_dict() must be called between optimizer steps; got {self._order.micro} "
                "micro-batches of an unfinished one. Call step() first, or abandon_step() to leave "
                "it out."
            )
        self._agree_on_run()
        warned = sorted(self._warn.given)
        return save_parts(self._identity(), self._parts, step_rows=self._step_rows, warned=warned)

    def load_state_dict(self, state: Mapping[str, Any], *, changed: bool = False) -> None:
        """Go on where a saved controller stopped.

        Args:
            state: what its ``state_dict()`` returned.
            changed: whether the mixture may be another one. Domains of a known name go on where
                they were, new ones begin with their importance as share, others are left out; the
                log says which. The policy begins anew, with the statistics that are known.

        Raises:
            StateError: the state is damaged, or of another mixture, seed or configuration; or
                ``changed`` with ``Domains``. The controller is then as it was.
            ValueError: ``changed`` after training has begun.
        """
        if changed:
            if self.completed:
                raise ValueError(
                    f"changed must be used before training; got {self.completed} trained steps. "
                    "Make a controller of the new mixture, and load the state into it."
                )
            fresh = save_parts(self._identity(), self._parts, step_rows=0, warned=[])
            state = carried_over(state, unseal(fresh), self._identity())
        refuse_change(state, self.mixture.domains)
        saved = open_parts(
            state,
            self._identity(),
            self._parts,
            names=self.mixture.domains,
            step_rows=schema.integer(),
            warned=schema.several(schema.text),
        )
        if self._step_rows and saved["step_rows"] != self._step_rows:
            raise StateError(
                f"batch_size × processes × accumulation must stay {saved['step_rows']}, as in the "
                f"saved run; got {self._step_rows}. Make the loader with that product."
            )
        load_parts(saved, self._parts)
        if changed:
            self._steering.begin_anew()
        self._warn.given = set(saved["warned"])
        self._step_rows = saved["step_rows"]
        self._adaptation.resume()
        self._log.restart(self.completed)
        self._order.start_anew()
        self._forget_step()
        if isinstance(self._plan, PublishedShares):
            self._plan.tell()

    @property
    def _parts(self) -> dict[str, Part]:
        return {
            "plan": self._plan,
            "measurements": self._measurements,
            "steering": self._steering,
            "guards": self._guards,
        }

    def __reduce__(self) -> Any:
        raise TypeError(
            "A Controller must not be copied or pickled: it is part of a run, with its model, its "
            "loader and its logs. Build another one with the same arguments, and call its "
            "load_state_dict(controller.state_dict())."
        )

    @property
    def ended(self) -> bool:
        """Whether rows are used up, so that no step is left to train, however long the run was."""
        return self._plan.end is not None and self.completed >= self._plan.end

    @property
    def unit(self) -> str:
        """What the objective averages over: "sample" or "token"."""
        return self._settings.unit

    @property
    def requires(self) -> frozenset[str]:
        """The statistics that the policy reads."""
        return self._steering.requires
