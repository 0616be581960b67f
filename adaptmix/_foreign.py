"""What users call on a run whose rows somebody else's loader draws."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from adaptmix._checks import FloatArray, choice, vector
from adaptmix._trained import TrainedRun
from adaptmix.data import Draw
from adaptmix.data._elsewhere import Expected, Listener, PublishedShares
from adaptmix.errors import ObjectiveError, RealisedSharesWarning

_REALISED = "realised"


class ForeignRun(TrainedRun):
    """A run whose rows may be drawn elsewhere: its controller was given ``Domains``."""

    def expect(self, batch_size: int, *, steps: int, accumulation: int = 1) -> None:
        """Say what batches somebody else's loader brings, in place of ``loader``.

        Call it before training, and again after a resume.

        Args:
            batch_size: rows of a micro-batch on this process.
            steps: length of the whole run in optimizer steps.
            accumulation: micro-batches per optimizer step.

        Raises:
            TypeError: this controller has a mixture.
            ValueError: a number below 1.
            StateError: another global batch than the restored run's.
        """
        plan = self._published("expect()")
        layout = self._layout(batch_size, accumulation)
        expected = Expected(layout, steps)
        self._check_step_rows(layout)
        self._order.start_anew()
        self._forget_step()
        self._sampler = expected
        plan.starts += 1
        self._prepare(layout, steps)

    def on_publish(self, listener: Listener) -> None:
        """Tell somebody else's loader with which shares to draw, now and whenever they change.

        Args:
            listener: called with the version, counted from 0, and each domain's share of *rows* by
                name; in ``step()``, in every process. With unit "token", rows of domains with long
                rows are asked for less often, so that sampling weights are shares of tokens.

        Raises:
            TypeError: this controller has a mixture.
        """
        self._published("on_publish()").listen(listener)

    def foreign(
        self,
        domains: ArrayLike | Tensor,
        *,
        version: ArrayLike | Tensor | None = None,
        shares: Mapping[str, float] | ArrayLike | Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Draw:
        """Return the draw of a micro-batch of somebody else's loader, to pass as ``draw=``.

        Each row's loss is divided by the share it was drawn with, so that the gradient is that of
        the objective in expectation, however old the shares are and whatever else the loader does,
        as long as a row's domain was drawn with that share. Each process passes its own rows, and
        their shares may differ from those of other processes.

        Args:
            domains: (B,) name of each row's domain, or its number in ``Domains``.
            version: that was in force when the rows were drawn, one for all or (B,).
            shares: in place of ``version``, what they were drawn with: by name for all of them, or
                (B,) that of each row's own domain. "realised": each domain's part of this
                micro-batch. A domain that is not in it then does not count in it, so that rare ones
                count too little: one of share p, 1 − (1 − p)^B of its weight.
            fresh: (B,) bool, whether the run trains on a row for the first time, so that its noise
                is out of sample. When None, the rows of domains without a known size are.

        Raises:
            TypeError: this controller has a mixture.
            ObjectiveError: neither ``version`` nor ``shares``.
            ValueError: both; an unknown domain; other than ``batch_size`` rows; a share of 0, or
                above 1; ``expect`` was not called.
            VersionError: a version that is not known.

        Warns:
            RealisedSharesWarning: once, with "realised" shares.
        """
        plan = self._published("foreign()")
        if not isinstance(self._sampler, Expected):
            raise ValueError(
                "expect() must be called before foreign(), with the batch size and the steps of "
                "the run; it was not."
            )
        layout = self._sampler.layout
        numbers = self._numbers(domains, layout.batch_size)
        own = self._own_shares(numbers, plan, version, shares)
        if fresh is None:
            unknown = np.isinf(self.mixture.info.sizes)
            fresh = torch.from_numpy(unknown[numbers])
        fresh = fresh.cpu()
        if fresh.shape != numbers.shape or fresh.dtype != torch.bool:
            raise ValueError(
                f"fresh must have one True or False per row, ({numbers.size},); got "
                f"{tuple(fresh.shape)} of {fresh.dtype}."
            )
        K = len(self.mixture.domains)
        ordinal = self.completed * layout.accumulation + self._order.handed_out
        draw = Draw(
            domains=torch.from_numpy(numbers),
            shares=torch.from_numpy(own.astype(np.float32)),
            rows=torch.full((numbers.size,), -1),
            fresh=fresh,
            ordinal=ordinal,
            step=ordinal // layout.accumulation,
            layout=layout,
            domain_shares=np.full(K, np.nan),
            row_shares=np.bincount(numbers, minlength=K) / numbers.size,
            plan=plan,
            own_shares=own,
        )
        self._order.hand_out(draw)
        return draw

    def abandon_step(self) -> None:
        """Forget what was recorded of an unfinished step; the step is trained anew.

        Call it where an exception, such as a lack of memory, cut a step short, and set gradients to
        zero. Iterating a loader and loading a state call it themselves. Between steps it does
        nothing, except for draws of ``foreign`` that were not trained: it forgets them.
        """
        super().abandon_step()
        if isinstance(self._plan, PublishedShares):
            self._order.start_anew()

    def _published(self, what: str) -> PublishedShares:
        plan = self._plan
        if not isinstance(plan, PublishedShares):
            raise TypeError(
                f"{what} is for rows that somebody else's loader draws; this controller was given "
                "a Mixture, whose rows loader() draws. Give Controller(Domains(names, "
                "importance=...)) instead."
            )
        return plan

    def _numbers(self, domains: ArrayLike | Tensor, batch_size: int) -> NDArray[np.int64]:
        """Return (B,) the number of each row's domain."""
        names = self.mixture.domains
        if isinstance(domains, Tensor):
            given = domains.detach().cpu().numpy()
        else:
            given = np.asarray(domains)
        if given.ndim != 1 or given.size != batch_size:
            raise ValueError(
                f"domains must have one entry per row of a micro-batch, and it has {batch_size} "
                f"(expect()); got shape {given.shape}. Leave out an incomplete last batch "
                "(drop_last=True), for its rows would count more or less than others."
            )
        if given.dtype.kind in "UO":
            places = {name: place for place, name in enumerate(names)}
            for name in set(given.tolist()) - set(places):
                choice("domains", name, names)
            return np.array([places[name] for name in given.tolist()], dtype=np.int64)
        if given.dtype.kind not in "iu":
            raise TypeError(f"domains must be names or integers; got {given.dtype}.")
        numbers: NDArray[np.int64] = given.astype(np.int64)
        if numbers.min() < 0 or numbers.max() >= len(names):
            raise ValueError(
                f"domains must be numbers in [0, {len(names)}); got {numbers.min()} to "
                f"{numbers.max()}."
            )
        return numbers

    def _own_shares(
        self,
        domains: NDArray[np.int64],
        plan: PublishedShares,
        version: ArrayLike | Tensor | None,
        shares: Mapping[str, float] | ArrayLike | Tensor | None,
    ) -> FloatArray:
        """Return (B,) the share that each row was drawn with."""
        if version is None and shares is None:
            raise ObjectiveError(
                "version= or shares= must be given, for each row's loss is divided by the share it "
                "was drawn with. Let the loader put the version that on_publish() told it into "
                'each row or batch. If it cannot, shares="realised" divides by what is in the '
                "micro-batch, under which rare domains count too little."
            )
        if version is not None and shares is not None:
            raise ValueError("version and shares must not both be given; got both.")
        if version is not None:
            own = plan.of(_per_row("version", version, domains.size), domains)
        elif isinstance(shares, str):
            choice("shares", shares, [_REALISED])
            own = self._realised(domains, plan)
        elif isinstance(shares, Mapping):
            if set(shares) != set(self.mixture.domains):
                raise ValueError(
                    f"shares must name every domain, {', '.join(self.mixture.domains)}; got "
                    f"{', '.join(map(str, shares))}."
                )
            whole = vector("shares", [shares[name] for name in self.mixture.domains])
            if abs(float(whole.sum()) - 1.0) > 1e-6:
                raise ValueError(f"shares must sum to 1; got {whole.sum():g}.")
            own = whole[domains]
        else:
            given = shares.detach().cpu().numpy() if isinstance(shares, Tensor) else shares
            own = vector("shares", np.asarray(given), size=domains.size)
        wrong = (own <= 0.0) | (own > 1.0)
        if wrong.any():
            row = int(wrong.argmax())
            name = self.mixture.domains[domains[row]]
            raise ValueError(
                f"shares must be in (0, 1]; got {own[row]:g} for row {row}, of domain {name!r}. A "
                "row cannot come from a domain that is not drawn: check its version and its domain."
            )
        return own

    def _realised(self, domains: NDArray[np.int64], plan: PublishedShares) -> FloatArray:
        """Return (B,) each domain's part of the micro-batch, and warn of what that does."""
        names, asked = self.mixture.domains, plan.shares_at(self.completed)
        counted = 1.0 - (1.0 - asked) ** domains.size
        rarest = int(np.where(self.weights.objective > 0.0, counted, np.inf).argmin())
        self._warn(
            RealisedSharesWarning,
            'shares="realised" biases the objective: a domain that is not in a micro-batch does '
            f"not count in it. With shares as they are now, {names[rarest]!r} counts "
            f"{counted[rarest]:.1%} of its weight. Pass the version that rows were drawn with.",
        )
        counts = np.bincount(domains, minlength=len(names))
        own: FloatArray = counts[domains] / domains.size
        return own


def _per_row(name: str, value: ArrayLike | Tensor, rows: int) -> NDArray[np.int64]:
    """Return (B,) integers, of one number or one per row."""
    given = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if given.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an integer, or one per row; got {given.dtype}.")
    if given.shape not in ((), (1,), (rows,)):
        raise ValueError(
            f"{name} must be one number, or one per row ({rows},); got shape {given.shape}."
        )
    return np.broadcast_to(given.astype(np.int64), rows)
