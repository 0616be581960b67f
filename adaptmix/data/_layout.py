"""How a step's global batch is cut into micro-batches of processes."""

from __future__ import annotations

from dataclasses import dataclass

from adaptmix._checks import integer
from adaptmix.errors import LagError

# Enough for eight workers with two batches each.
DEFAULT_LAG = 16


@dataclass(frozen=True)
class Layout:
    """How a step's global batch is cut into micro-batches of processes.

    Args:
        batch_size: rows of a micro-batch on one process.
        accumulation: micro-batches of an optimizer step.
        rank: this process, in [0, world_size).
        world_size: number of processes.
    """

    batch_size: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        integer("batch_size", self.batch_size, minimum=1)
        integer("accumulation", self.accumulation, minimum=1)

    @property
    def process_rows(self) -> int:
        """Rows of a step on one process."""
        return self.batch_size * self.accumulation

    @property
    def step_rows(self) -> int:
        """Rows of a step on all processes."""
        return self.process_rows * self.world_size

    def epoch_steps(self, rows: int) -> int:
        """Return the optimizer steps of one pass over so many rows; the last is of full size."""
        return -(-rows // self.step_rows)

    def steps_ahead(self, num_workers: int, prefetch_factor: int) -> int:
        """Return how many steps a loader draws beyond the one that is trained.

        Workers hold ``num_workers * prefetch_factor`` micro-batches beyond the one handed out, and
        a trainer may ask for all micro-batches of a step before it trains the first.
        """
        return (self.accumulation - 1 + num_workers * prefetch_factor) // self.accumulation

    def default_lag(self, num_workers: int, prefetch_factor: int) -> int:
        """Return a lag that covers such a loader, and is no less than the usual one."""
        return max(DEFAULT_LAG, self.steps_ahead(num_workers, prefetch_factor))

    def check_lag(self, lag: int, *, num_workers: int, prefetch_factor: int) -> None:
        """Refuse a loader that draws further ahead than shares are known.

        Raises:
            LagError: it does.
        """
        ahead = self.steps_ahead(num_workers, prefetch_factor)
        if ahead > lag:
            raise LagError(
                f"lag must be at least {ahead} with num_workers={num_workers}, prefetch_factor="
                f"{prefetch_factor} and accumulation={self.accumulation}; got {lag}. "
                f"Use lag={ahead}, or fewer workers."
            )
