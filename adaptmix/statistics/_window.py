"""What one update reads: sums over processes, on their way to the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adaptmix.probe.estimators._gradients import GradientSums
from adaptmix.processes._sums import HostCopy, sum_over_ranks
from adaptmix.state import _schema as schema
from adaptmix.statistics._lengths import RowLengths
from adaptmix.statistics._running import RunningStatistics
from adaptmix.statistics._sums import FIELDS

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Of an observed step beside products of gradients: counts, squares, two masses, skipped samples.
_OTHER_ROWS = 5


class Window:
    """The sums since the last update and, of an observed step, its gradients' sums.

    Starting a window adds them up over processes and sends them to the host; they are read a step
    later, so that the host never waits for the step it has just launched.

    Args:
        step: optimizer steps completed.
        sums: (fields, K) sums, when an update is due.
        gradients: per-domain gradient sums, when the step was observed.
        gram: whether their inner products are read, and not their norms alone.
        group: the processes; all of them when None.
    """

    def __init__(
        self,
        step: int,
        *,
        sums: Tensor | None = None,
        gradients: GradientSums | None = None,
        gram: bool = False,
        group: ProcessGroup | None = None,
    ) -> None:
        self.step = step
        self.due = sums is not None
        self.observed = gradients is not None
        parts = [] if sums is None else [sums]
        sum_over_ranks([*parts, *([] if gradients is None else gradients.tensors())], group)
        if gradients is not None:
            parts += [
                gradients.count.unsqueeze(0),
                gradients.square.unsqueeze(0),
                gradients.gram() if gram else gradients.norms().unsqueeze(0),
                *(
                    value.double().expand(1, len(gradients.count))
                    for value in (*gradients.mass, gradients.skipped)
                ),
            ]
        device = parts[0].device
        self._copy = HostCopy(torch.cat([part.to(device) for part in parts]))

    def add_to(self, running: RunningStatistics, lengths: RowLengths) -> None:
        """Wait for the sums and add them to the running estimates."""
        table = self._copy.result().numpy()
        if self.due:
            sums, table = table[: len(FIELDS)], table[len(FIELDS) :]
            named = dict(zip(FIELDS, sums, strict=True))
            lengths.add(named["tokens"], named["rows"])
            running.add_losses(self.step, sums)
        if self.observed:
            products = table[2:-3] if running.gram else table[2]
            running.add_mass(self.step, *table[-3:-1, 0].tolist())
            running.add_gradients(self.step, count=table[0], square=table[1], products=products)
            running.skipped += float(table[-1, 0])

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and what they are of."""
        return {
            "step": self.step,
            "due": self.due,
            "observed": self.observed,
            "table": self._copy.result().numpy(),
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], *, num_domains: int, gram: bool, name: str = "window"
    ) -> Window:
        """Rebuild a window whose sums are already those of all processes.

        Raises:
            StateError: a damaged state.
        """
        flags = {"due": schema.flag, "observed": schema.flag}
        fields = {"step": schema.integer(), **flags, "table": schema.array(None, num_domains)}
        saved = schema.read(state, fields, name=name)
        products = num_domains if gram else 1
        rows = len(FIELDS) * saved["due"] + (_OTHER_ROWS + products) * saved["observed"]
        schema.array(rows, num_domains)(f"{name}.table", saved["table"])
        window = cls.__new__(cls)
        window.step, window.due, window.observed = saved["step"], saved["due"], saved["observed"]
        window._copy = HostCopy(torch.from_numpy(saved["table"]))
        return window
