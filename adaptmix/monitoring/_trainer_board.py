"""The record of a run in the TensorBoard logger that a trainer has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from adaptmix.monitoring._names import safe_names
from adaptmix.monitoring._quantities import CHARTED, CHARTED_OVERALL, weight_tags
from adaptmix.monitoring._tensorboard import (
    HELDOUT,
    PREFIX,
    DomainRuns,
    RecordTexts,
    write_unseen,
)
from adaptmix.monitoring._texts import Caution
from adaptmix.probe._coverage import Coverage


class TrainerBoard:
    """Writes what explains the scalars that a trainer logs, and domains as runs of their own.

    A trainer logs one run, and TensorBoard has one colour for a run. So the scalars of each domain
    are written once more, as ``adaptmix/<quantity>`` in a folder of its own beside the trainer's
    events, and the page Custom Scalars has a chart for each quantity. Over 50 domains have no
    folders; their charts show the trainer's own scalars.

    Args:
        writer: the trainer's SummaryWriter, or what writes like one.
        names: K domain names.
        step: optimizer steps completed so far; domains' events of an earlier run are void from
            here on.
        prefix: what the trainer puts before the tags of scalars.
        heldout: what stands before a domain's name in the trainer's tags of held-out losses; None
            when it logs none.
        observing: whether weights are only proposed.
        coverage: what the gradient probe sees; None without one.
    """

    def __init__(
        self,
        writer: Any,
        names: Sequence[str],
        *,
        step: int,
        prefix: str = "",
        heldout: str | None = None,
        observing: bool = False,
        coverage: Coverage | None = None,
    ) -> None:
        self._texts = RecordTexts(writer, prefix=prefix)
        self._labels = dict(zip(names, safe_names(names), strict=True))
        folder = getattr(writer, "log_dir", None)
        # A process that does not log has a writer without a folder.
        labels = self._labels.values() if isinstance(folder, (str, PathLike)) else ()
        self._runs = DomainRuns(str(folder), tuple(labels), step=step)
        root = f"{prefix}{PREFIX}"
        charts = {
            quantity: [PREFIX + quantity]
            if self._runs.there
            else [f"{root}{quantity}/{label}" for label in self._labels.values()]
            for quantity in (*weight_tags(observing=observing), *CHARTED)
        }
        if heldout is not None:
            charts[HELDOUT] = (
                [PREFIX + HELDOUT] if self._runs.there else [f"{heldout}{name}" for name in names]
            )
        charts |= {tag: [root + tag] for tag in CHARTED_OVERALL}
        # TensorBoard takes the tags of a chart as regular expressions.
        layout = {
            title: ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]
            for title, tags in charts.items()
        }
        writer.add_custom_scalars({"adaptmix": layout})
        write_unseen(writer, f"{prefix}{PREFIX}", coverage)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the scalars of domains, of what ``Controller.scalars`` returns.

        Args:
            step: optimizer steps completed.
            values: by ``<quantity>/<domain>``; others are the trainer's to log.
        """
        self._runs.write(step, values)
        self._runs.flush()

    def write_evaluation(self, step: int, losses: Mapping[str, float]) -> None:
        """Write held-out losses, by the name of a domain."""
        values = {f"{HELDOUT}/{self._labels[name]}": loss for name, loss in losses.items()}
        self.write(step, values)

    def write_texts(
        self, step: int, configuration: Mapping[str, Any], warnings: Sequence[Caution]
    ) -> None:
        """Write configuration and warnings, as far as they are new."""
        self._texts.write(step, configuration, warnings)
