"""Held-out losses by domain, in the same pass over the evaluation rows as everything else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from transformers import Trainer

from adaptmix import Controller, Mixture, Segments
from adaptmix.noise import NoiseTerms
from adaptmix.trainers import (
    PREFIX,
    Replacements,
    WarnOnce,
    as_mixture,
    find_segments,
    gather,
    safe_names,
    sum_over_ranks,
    tolerant,
)
from adaptmix_transformers import _internals as internals
from adaptmix_transformers import _known as known
from adaptmix_transformers._capture import Seen, watch_outputs
from adaptmix_transformers._heldout import held_out_losses
from adaptmix_transformers._pairs import Margins
from adaptmix_transformers._reading import NumItems
from adaptmix_transformers._rows import RowLosses, Rule
from adaptmix_transformers._setup import Settings

_log = logging.getLogger("adaptmix")
ROWS, SEGMENTS = "adaptmix_rows", "adaptmix_segments"


class RowNumbers(Dataset[Any]):
    """A dataset whose items know their row.

    Args:
        dataset: map-style.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, row: int) -> tuple[int, Any]:
        return row, self._dataset[row]


class CollateRowNumbers:
    """Collates items of ``RowNumbers``; their rows go into the batch.

    Args:
        collate_fn: for the items themselves.
    """

    def __init__(self, collate_fn: Any) -> None:
        self.collate_fn = collate_fn

    def __call__(self, items: list[tuple[int, Any]]) -> Any:
        """Return the batch of numbered items."""
        rows = [item for _, item in items]
        batch = self.collate_fn(rows)
        batch[SEGMENTS] = find_segments(rows, batch)
        batch[ROWS] = torch.tensor([row for row, _ in items])
        return batch


class DomainLosses:
    """Sums losses of evaluated rows, each row once however processes pad their batches.

    Args:
        mixture: of the evaluation rows.
        read: returns rows' losses of (loss, what the model showed, inputs, tokens), or None.
        unit: "sample", "token", or None to go by the shape of the losses.
        controller: of the run whose policy needs the noise of held-out rows, or None.
        pairs: whether a row is a preference pair.
        warn: of what is missing.
    """

    def __init__(
        self,
        mixture: Mixture,
        read: Callable[[Tensor, Seen, Mapping[str, Any], NumItems], RowLosses | None],
        unit: str | None,
        controller: Controller | None,
        *,
        warn: Callable[[str], None],
        pairs: bool = False,
    ) -> None:
        self.mixture, self._pairs, self._warn = mixture, pairs, warn
        self._read, self._unit, self._controller = read, unit, controller
        self._sums: Tensor | None = None
        self._unreadable = False
        self.errors: dict[str, float] = {}

    def check_added(self) -> None:
        """Say why there is nothing to tell, after rows were evaluated and none was added."""
        if self._sums is None and not self._unreadable:
            self._unreadable = True
            self._warn(
                "There is no eval_loss_<domain>: the trainer evaluated rows without its "
                "compute_loss. Seq2SeqTrainer with predict_with_generate=True does so, and so does "
                "a prediction_step of one's own, and rows without labels. Evaluate the loss apart, "
                "with predict_with_generate=False."
            )

    def add(
        self,
        rows: Tensor,
        segments: Segments | None,
        model: Any,
        inputs: Mapping[str, Any],
        native: Callable[[Any, NumItems], Any],
        num_items: NumItems,
    ) -> Any:
        """Return what the trainer's ``compute_loss`` does, and add the rows' losses."""
        if self._unreadable:
            return native(inputs, num_items)
        given = dict(inputs)
        margins = Margins(len(rows)) if self._pairs else nullcontext()
        with watch_outputs(model) as seen, margins:
            result = native(inputs, num_items)
        loss = result[0] if isinstance(result, tuple) else result
        if isinstance(margins, Margins):
            losses = margins.losses(loss)
        else:
            losses = self._read(loss, seen, given, num_items)
        if losses is not None and segments is not None:
            losses = losses.unpacked(segments)
        if losses is None or len(losses.values) != len(rows):
            self._unreadable, self._sums = True, None
            self._warn(
                "There is no eval_loss_<domain>: how the trainer's loss is made of rows' losses is "
                "not known. Pass AdaptMixCallback(loss=f) with f(outputs, inputs) returning rows' "
                "unreduced losses, (B,) or (B, T)."
            )
            return result
        if self._controller is not None and losses.noise is not None:
            self._record_noise(self._controller, losses.noise(None), rows)
        unit = self._unit or ("sample" if losses.mask is None else "token")
        tokens = losses.tokens.double()
        totals = losses.totals.double()
        if unit == "sample":
            totals, tokens = totals / tokens.clamp(min=1), torch.ones_like(tokens)
        if self._sums is None:
            shape = (3, len(self.mixture))
            self._sums = torch.zeros(shape, dtype=torch.float64, device=totals.device)
        self._sums[:, rows.to(totals.device)] = torch.stack(
            [totals, tokens, torch.ones_like(totals)]
        )
        return result

    def _record_noise(self, controller: Controller, noise: NoiseTerms, rows: Tensor) -> None:
        domains = torch.from_numpy(self.mixture.domain_of(rows.cpu())).to(noise.residual.device)
        for index, name in enumerate(self.mixture.domains):
            mine = domains == index
            if name in controller.mixture.domains and mine.any():
                terms = NoiseTerms(noise.residual[mine], noise.expected[mine])
                controller.record_noise(terms, name)

    def means(self) -> dict[str, float]:
        """Return each domain's mean loss, over all processes, which all call this.

        Nothing where the losses of any process could not be read, or none has had a row.
        """
        device = None if self._sums is None else self._sums.device.type
        known = gather((device, self._unreadable))
        devices = [device for device, _ in known if device is not None]
        if not devices or any(unreadable for _, unreadable in known):
            return {}
        if self._sums is None:  # this process had no row
            shape = (3, len(self.mixture))
            self._sums = torch.zeros(shape, dtype=torch.float64, device=devices[0])
        sum_over_ranks([self._sums])
        totals, tokens, times = self._sums.cpu()
        times = times.clamp(min=1)
        domains = torch.from_numpy(self.mixture.domain_of(torch.arange(len(self.mixture))))
        table = torch.zeros(2, len(self.mixture.domains), dtype=torch.float64)
        totals, tokens = totals / times, tokens / times
        table.index_add_(1, domains, torch.stack([totals, tokens]))
        self.errors = self._errors(totals, tokens, domains)
        return {
            name: float(total / count)
            for name, total, count in zip(self.mixture.domains, *table, strict=True)
            if count > 0
        }

    def _errors(self, totals: Tensor, tokens: Tensor, domains: Tensor) -> dict[str, float]:
        """Return standard errors of means, which are ratios of two sums over rows.

        Source:
            Cochran, Sampling Techniques, section 2.11.
        """
        errors = {}
        for index, name in enumerate(self.mixture.domains):
            mine = (domains == index) & (tokens > 0)
            rows, size = int(mine.sum()), tokens[mine].sum()
            if rows > 1:
                mean = totals[mine].sum() / size
                squares = (totals[mine] - mean * tokens[mine]).square().sum()
                errors[name] = float((squares * rows / (rows - 1)).sqrt() / size)
        return errors


class Evaluation:
    """Adds ``eval_loss_<domain>`` and ``eval_weighted_loss`` to a Trainer's metrics.

    Args:
        trainer: to evaluate with; its methods are handed over as they were.
        own: its own ``get_eval_dataloader``, ``evaluation_loop`` and ``prediction_step``.
        settings: of the callback.
    """

    def __init__(self, trainer: Trainer, own: Replacements, settings: Settings) -> None:
        self._trainer, self._own, self._settings = trainer, own, settings
        self._mixtures: dict[int, tuple[Any, Mixture | None]] = {}
        self._losses: DomainLosses | None = None
        self._rows: Tensor | None = None
        self._segments: Segments | None = None
        self._warn_of_logs = WarnOnce()
        self._warn = cache(_log.warning)  # each message once, however often one evaluates
        self.controller: Controller | None = None
        self.rule: Callable[[], Rule | None] = lambda: None  # that training follows

    def dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the trainer's loader, with row numbers in batches where domains are known."""
        trainer, settings = self._trainer, self._settings
        own = self._own["get_eval_dataloader"]
        dataset = internals.evaluated(trainer, eval_dataset)
        mixture = None if dataset is None else self._mixture(dataset)
        self._losses = None
        if mixture is None:
            return own(eval_dataset)
        unit = settings.unit if self.controller is None else self.controller.unit
        controller, pairs = self.controller, known.rows_per_sample(trainer) > 1
        noisy = controller is not None and "noise" in controller.requires and trainer.is_in_train
        reader = controller if noisy else None
        self._losses = DomainLosses(mixture, self._read, unit, reader, warn=self._warn, pairs=pairs)
        rows = internals.used_columns(trainer, dataset)
        with internals.evaluating(
            trainer, eval_dataset, rows, RowNumbers(rows), CollateRowNumbers
        ) as stand_in:
            return own(stand_in)

    def _read(
        self, loss: Tensor, seen: Seen, given: Mapping[str, Any], num_items: NumItems
    ) -> RowLosses | None:
        return held_out_losses(
            loss,
            seen,
            given,
            trainer=self._trainer,
            user_loss=self._settings.loss,
            rule=self.rule(),
            num_items=num_items,
        )

    def _mixture(self, dataset: Any) -> Mixture | None:
        known = self._mixtures.get(id(dataset))
        if known is None:
            mixture = evaluation_mixture(dataset, self._settings)
            known = self._mixtures[id(dataset)] = (dataset, mixture)
        return known[1]

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Take the row numbers out of the batch before anything else sees them."""
        self._rows, self._segments = inputs.pop(ROWS, None), inputs.pop(SEGMENTS, None)
        try:
            result = self._own["prediction_step"](model, inputs, *args, **kwargs)
        finally:
            numbered, self._rows = self._rows is not None, None
        if numbered and self._losses is not None:
            self._losses.check_added()
        return result

    def loss(
        self,
        native: Callable[[Any, NumItems], Any],
        model: Any,
        inputs: Mapping[str, Any],
        num_items: NumItems,
    ) -> Any:
        """Return what the trainer's ``compute_loss`` does, and add the rows' losses."""
        if self._losses is None or self._rows is None:
            return native(inputs, num_items)
        return self._losses.add(self._rows, self._segments, model, inputs, native, num_items)

    def loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Run the trainer's loop, and add each domain's loss to its metrics."""
        output = self._own["evaluation_loop"](*args, metric_key_prefix=metric_key_prefix, **kwargs)
        losses, self._losses = self._losses, None
        means = {} if losses is None else losses.means()
        metrics = {f"{metric_key_prefix}_loss_{name}": value for name, value in means.items()}
        if self.controller is not None:
            domains = self.controller.mixture.info
            known = {name: means[name] for name in domains.names if name in means}
            if len(known) == len(domains):
                mean = float(domains.importance @ np.array(list(known.values())))
                # Ends with "loss", by which the Trainer knows that less is better.
                metrics[f"{metric_key_prefix}_weighted_loss"] = mean
            finite = {name: value for name, value in known.items() if isfinite(value)}
            errors = {} if losses is None else losses.errors
            errors = {name: errors[name] for name in finite if isfinite(errors.get(name, np.nan))}
            self.controller.record_evaluation(finite, errors=errors)
            self._write_errors(errors, domains.names)
        output.metrics.update(metrics)
        return output

    def _write_errors(self, errors: Mapping[str, float], names: Sequence[str]) -> None:
        """Write standard errors to TensorBoard alone: they would crowd the trainer's metrics."""
        writer = internals.tensorboard_writer(self._trainer)
        labels = dict(zip(names, safe_names(names), strict=True))
        if writer is None:
            return
        with tolerant(self._warn_of_logs):
            for name, error in errors.items():
                tag = f"train/{PREFIX}heldout_loss_error/{labels[name]}"
                writer.add_scalar(tag, error, self._trainer.state.global_step)


def evaluation_mixture(dataset: Any, settings: Settings) -> Mixture | None:
    """Return the mixture of evaluation rows, or None where nothing tells their domains.

    Args:
        dataset: evaluated.
        settings: of the callback.

    Raises:
        ValueError: labels that do not fit.
    """
    domains = settings.domains
    if settings.eval_domains is not None:
        return as_mixture(dataset, settings.eval_domains)
    if domains is None:
        parts = isinstance(dataset, (Mixture, ConcatDataset))
        return as_mixture(dataset, None) if parts else None
    named = isinstance(domains, str) and domains in (getattr(dataset, "column_names", None) or ())
    return as_mixture(dataset, domains) if named else None
