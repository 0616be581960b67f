"""A state of other domains: what is known of those that stay is kept, by name."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptmix._checks import FloatArray
from adaptmix._text import listed
from adaptmix.errors import StateError
from adaptmix.state import _checkpoint as checkpoint

_log = logging.getLogger("adaptmix")
# What may differ where the mixture is another one; a policy begins anew with its own settings.
_OF_DOMAINS = {
    *("domains", "sizes", "holdout", "importance", "labels", "tokens_per_row", "max_epochs"),
    *("importance_schedule", "sampling_schedule", "policy", "streams"),
}
ELSEWHERE = "elsewhere"
"""Stands for the source of rows that somebody else's loader draws."""
_SAMPLED = ("sampled_tokens", "sampled_rows", "whole", "start")


def carried_over(state: Any, fresh: Mapping[str, Any], identity: Mapping[str, Any]) -> Any:
    """Return the sealed state of a run that goes on with another mixture, and log what changed.

    Domains of a known name keep their statistics. Those of as many rows as before, and as many
    held-out ones, keep their place among them; the others begin their rows anew, of which none is
    fresh. New domains have their importance as share, what is left of it is shared as before. Gone
    domains are left out.

    Args:
        state: of the other run, sealed.
        fresh: that of this run before anything, unsealed.
        identity: of this run.

    Raises:
        StateError: a damaged state, or one that differs in more than its domains.
    """
    saved = checkpoint.unseal(state)
    if identity["row_source"] == ELSEWHERE:
        raise StateError(
            "changed must be False with Domains, for rows in flight were drawn with shares of the "
            "saved domains; got True. Begin anew, with the saved run's weights in policies.Static."
        )
    same = {key: value for key, value in identity.items() if key not in _OF_DOMAINS}
    checkpoint.expect(saved, **same)
    change = Change(saved["domains"], identity["domains"])
    if not change.known.any():
        raise StateError(
            f"domains must have one of the saved run's in common; got {change}. Begin anew."
        )
    new = change.carry(saved, fresh) | dict(identity)
    prior = np.array(identity["importance"])
    plan, steering = new["plan"], new["steering"]
    # A sample of rows tells their lengths: one of this mixture, or the loader takes one.
    lengths, sampled = new["measurements"]["lengths"], fresh["measurements"]["lengths"]
    lengths |= {name: sampled[name] for name in _SAMPLED}
    plan["history_steps"] = saved["plan"]["history_steps"]
    plan["history_shares"] = change.shares(saved["plan"]["history_shares"], prior)
    steering["sampling"] = change.shares(saved["steering"]["sampling"], prior)
    steering["objective"] = _objective(change, saved, prior)
    steering["pins"]["loss"] = _loss_bounds(change, saved, fresh, prior)
    streams = [told.get("streams", []) for told in (saved, identity)]
    before, now = (np.isin(identity["domains"], names) for names in streams)
    moved = change.known & (before != now)
    for rows in ("sizes", "holdout"):
        differ = change.of(saved[rows]) != np.array(identity[rows])[change.known]
        # A stream goes on where it was, whatever is said of its length.
        moved[change.known] |= differ & ~((before & now)[change.known] & (rows == "sizes"))
    trained = moved & ((plan["drawn"] > 0) | plan["trained_before"])
    plan["trained_before"] |= trained
    plan["drawn"][moved] = 0
    if plan.get("streams"):
        anew = {identity["domains"][place] for place in np.flatnonzero(moved).tolist()}
        kept = json.loads(plan["streams"]).items()
        plan["streams"] = json.dumps({name: at for name, at in kept if name not in anew})
    _log.warning(
        "Going on with another mixture. Domains that are %s. Rows from the beginning, for there "
        "are more or fewer than before: %s. The policy begins anew.",
        change,
        change.listed(moved),
    )
    if (seen := trained & (np.array(identity["holdout"]) > 0)).any():
        _log.warning(
            "Held-out rows that the run may have been trained on: those of %s. Their losses and "
            "noise may come out too small.",
            change.listed(seen),
        )
    return checkpoint.seal(checkpoint.encode(new))


def refuse_change(state: Any, names: Sequence[str]) -> None:
    """Check that a saved state is of the same domains, if it tells.

    Raises:
        StateError: it is of others, which the message lists.
    """
    saved = state.get("domains") if isinstance(state, Mapping) else None
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        return  # damaged, as its checksum will say
    if set(saved) != set(names):
        raise StateError(
            f"domains must be those of the saved run; got domains that are {Change(saved, names)}. "
            "Go on with the same ones, or begin anew. In a loop of your own, "
            "Controller.load_state_dict(state, changed=True) goes on with others."
        )


def _objective(change: Change, saved: Mapping[str, Any], prior: FloatArray) -> FloatArray:
    """Return (K,) weights α: new domains have loss weight 1, the others theirs, rescaled."""
    counted, importance = saved["steering"]["objective"], np.array(saved["importance"])
    loss = np.divide(counted, importance, out=np.ones_like(counted), where=importance > 0.0)
    objective = prior.copy()
    objective[change.known] *= change.of(loss)
    total = objective.sum()
    return objective / total if total > 0.0 else prior


def _loss_bounds(
    change: Change, saved: Mapping[str, Any], fresh: Mapping[str, Any], prior: FloatArray
) -> FloatArray:
    """Return (2, K) bounds on loss weights: those that were pinned, and the widest elsewhere."""
    free, importance = fresh["steering"]["pins"]["loss"], np.array(saved["importance"])
    pinned = saved["steering"]["pins"]["loss"]
    widest = 1.0 / np.where(importance > 0.0, importance, 1.0)
    bounds: FloatArray = free.copy()
    for end, free_end in enumerate((np.zeros_like(widest), widest)):
        kept = change.known & (prior > 0.0)
        kept[change.known] &= change.of(pinned[end] != free_end)
        bounds[end, kept] = change.of(pinned[end])[kept[change.known]]
    return bounds


class Change:
    """Which domains of a saved run are there in this one, and where.

    Args:
        saved: names of the saved run's domains.
        names: of this run's.
    """

    def __init__(self, saved: Sequence[str], names: Sequence[str]) -> None:
        before = {name: place for place, name in enumerate(saved)}
        self.names = tuple(names)
        self.gone = tuple(name for name in saved if name not in set(names))
        self.new = tuple(name for name in names if name not in before)
        self.known: NDArray[np.bool_] = np.array([name in before for name in names])
        self._from = np.array([before[name] for name in names if name in before], dtype=np.int64)
        self._K = len(saved)

    def of(self, values: Any) -> NDArray[Any]:
        """Return the values of the domains that stay, in this run's order; (…, K) to (…, k)."""
        kept: NDArray[Any] = np.asarray(values)[..., self._from]
        return kept

    def carry(self, saved: Any, fresh: Any, *, both: bool = False) -> Any:
        """Return a state for this run: the saved one where domains stay, elsewhere a fresh one.

        Args:
            saved: of the other run: arrays whose last axis is that of domains, other values, and
                mappings of them.
            fresh: the state of this run before anything.
            both: whether the axis before the last one is that of domains, too.
        """
        if isinstance(saved, Mapping) and isinstance(fresh, Mapping):
            return {
                key: self.carry(saved[key], fresh[key], both=both or key == "gram")
                if key in saved
                else fresh[key]
                for key in fresh
            }
        if not isinstance(saved, np.ndarray) or not isinstance(fresh, np.ndarray):
            structured = (np.ndarray, Mapping)
            return (
                fresh if isinstance(saved, structured) or isinstance(fresh, structured) else saved
            )
        if saved.shape[-1:] != (self._K,) or fresh.shape[-1:] != (len(self.names),):
            return fresh if both else saved  # inner products are kept of so many domains alone
        if fresh.shape[:-1] != saved.shape[:-1] and not both:
            return saved  # of its own length, such as a history
        carried, kept = fresh.copy(), saved[..., self._from]
        if both and saved.ndim == 2:
            carried[np.ix_(self.known, self.known)] = kept[self._from]
        else:
            carried[..., self.known] = kept
        return carried

    def shares(self, saved: FloatArray, prior: FloatArray) -> FloatArray:
        """Return (…, K) shares: domains that are new, or had none and count now, their prior ones.

        The others have what is left, in proportion.
        """
        kept = np.zeros((*saved.shape[:-1], prior.size))
        kept[..., self.known] = self.of(saved)
        begins = ~self.known | ((kept == 0.0) & (prior > 0.0))
        shares: FloatArray = np.where(begins, prior, 0.0)
        kept[begins] = 0.0
        total = kept.sum(axis=-1, keepdims=True)
        left = np.where(begins, 0.0, prior).sum(axis=-1, keepdims=True)
        shares += kept * np.divide(left, total, out=np.zeros_like(total), where=total > 0.0)
        return shares

    def listed(self, which: NDArray[np.bool_]) -> str:
        """Return the names of some of this run's domains."""
        return _listed([self.names[place] for place in np.flatnonzero(which).tolist()])

    def __str__(self) -> str:
        return f"new: {_listed(self.new)}; gone: {_listed(self.gone)}"


def _listed(names: Sequence[str]) -> str:
    return listed(map(repr, names), number=len(names)) if names else "none"
