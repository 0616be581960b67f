"""What a run is supplied with, and so measures."""

from __future__ import annotations

_FROM_DRAWS = frozenset({"count", "seen", "age"})
_FROM_LOSSES = frozenset({"loss_mean", "loss_var"})
_FROM_HELD_OUT = frozenset({"holdout_loss", "holdout_count"})
_FROM_PROBE = frozenset({"grad_var", "grad_sq", "grad_mean_sq", "grad_mean_pairs"})
_FROM_GRAM = frozenset({"grad_gram"})


class Supplied:
    """What this process was given, and what the processes agreed that any of them was.

    Args:
        gram: whether inner products between domains' mean gradients are kept.
        riding: whether held-out rows ride in batches.

    Attributes:
        losses: whether losses were given.
        noise: whether noise terms were.
        recorded: whether noise terms of rows that are evaluated apart from training were.
        agreed: what any process was given.
    """

    def __init__(self, *, gram: bool, riding: bool = False) -> None:
        self.losses = self.noise = self.recorded = False
        self.agreed = frozenset[str]()
        self._gram, self._riding = gram, riding

    def told(self, *, watched: bool) -> frozenset[str]:
        """Return what this process was given; other processes may have been given other things.

        Args:
            watched: whether a probe is on a model.
        """
        given = {"noise": self.noise, "losses": self.losses, "gradients": watched}
        return frozenset(name for name, is_given in given.items() if is_given)

    @property
    def measured(self) -> frozenset[str]:
        """The DomainStats fields that are measured."""
        found = _FROM_DRAWS
        if "losses" in self.agreed:
            found |= _FROM_LOSSES | (_FROM_HELD_OUT if self._riding else frozenset())
        if "gradients" in self.agreed:
            found |= _FROM_PROBE | (_FROM_GRAM if self._gram else frozenset())
        return found | {"noise"} if "noise" in self.agreed else found
