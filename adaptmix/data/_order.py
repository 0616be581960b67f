"""Which micro-batch is trained next: what the loader handed out, and in which order it counts."""

from __future__ import annotations

from adaptmix.data._draw import Draw
from adaptmix.data._elsewhere import PublishedShares
from adaptmix.data._plan import Plan
from adaptmix.errors import BatchOrderError

_ANEW = (
    "After an error that was caught, set gradients to zero and start the loader anew (for batch in "
    "loader), which begins the unfinished step again."
)


class BatchOrder:
    """Knows the micro-batches that are out, and how many of the step in progress were recorded.

    A batch is out from when the loader hands it to the training loop until its losses are
    recorded. Losses without a draw are those of the one batch that is out; where several are, it
    cannot be known of which, so that the loop has to say it.

    Args:
        plan: draws the batches.

    Attributes:
        micro: micro-batches recorded of the step in progress.
        accumulation: micro-batches of a step, as of the last one recorded.
    """

    def __init__(self, plan: Plan | PublishedShares) -> None:
        self._plan = plan
        self._out: list[Draw] = []
        self.micro = 0
        self.accumulation = 1

    def hand_out(self, draw: Draw) -> None:
        """Take note that the training loop gets the batch of ``draw``, and not the draw."""
        self._out.append(draw)

    @property
    def handed_out(self) -> int:
        """Micro-batches of the step in progress, and of later ones, that are recorded or out."""
        return self.micro + len(self._out)

    def draw_of(self, draw: Draw | None) -> Draw:
        """Return the draw that losses are of: the one given, or that of the batch that is out.

        Args:
            draw: what the loop was given with the batch; None where it was given the batch alone.

        Raises:
            TypeError: something else than a draw.
            BatchOrderError: none given, and no batch is out, or more than one.
            ValueError: a draw of another controller.
        """
        if draw is None:
            return self._one_that_is_out()
        if not isinstance(draw, Draw):
            raise TypeError(
                f"draw must be what loader.with_draws() yielded; got {type(draw).__name__}."
            )
        if draw.plan is not self._plan:
            raise ValueError(
                "draw must be one of this controller's; got another controller's. Use the loader "
                "and the loss of the same controller."
            )
        return draw

    def _one_that_is_out(self) -> Draw:
        if len(self._out) == 1:
            return self._out[0]
        if self._out:
            numbers = ", ".join(str(draw.ordinal) for draw in self._out[:8])
            raise BatchOrderError(
                f"draw must be given where it is not clear which batch losses are of: "
                f"{len(self._out)} batches (numbers {numbers}) were handed out and none of them is "
                "trained, because the loop looks ahead or left a batch out. Iterate "
                "loader.with_draws(), which yields (batch, draw), and pass draw=. Every batch has "
                f"to be trained; to leave rows out, pass mask= or losses of 0. {_ANEW}"
            )
        raise BatchOrderError(
            "Losses must be of a batch that controller.loader() handed out; got none since the "
            "last one that was trained. Call loss() once for each batch: for several terms add up "
            "their unreduced losses first. With loader.with_draws(), pass draw=. "
            f"{_ANEW}"
        )

    def check(self, draw: Draw) -> None:
        """Check that a draw is the next to train.

        Raises:
            BatchOrderError: it is not.
        """
        accumulation = draw.layout.accumulation
        expected = self._plan.completed * accumulation + self.micro
        if draw.ordinal == expected and self.micro < accumulation:
            return
        if self.micro and self.accumulation != accumulation:
            raise BatchOrderError(
                f"draw must be of the loader that the step began with; got one with accumulation "
                f"{accumulation} after {self.micro} micro-batches of {self.accumulation}. Train "
                f"a step with the batches of one loader. {_ANEW}"
            )
        if self.micro == accumulation and draw.ordinal >= expected:
            once = f", once in {accumulation} micro-batches" if accumulation > 1 else ""
            raise BatchOrderError(
                f"controller.step() must be called after each optimizer.step(){once}; got the "
                f"batch of the next step (number {draw.ordinal}) without it. Call "
                f"controller.step(). {_ANEW}"
            )
        if draw.ordinal < expected:
            raise BatchOrderError(
                f"draw must be number {expected}, the next to train; got {draw.ordinal} again. "
                "Call loss() once for each batch: for several terms add up their unreduced losses "
                "first, and call step() once for each optimizer.step()."
            )
        raise BatchOrderError(
            f"draw must be number {expected}, the next to train; got {draw.ordinal}, so a batch "
            "was left out, and with it the part of the objective it was drawn for. Call loss() for "
            "every batch in order, with the draw that came with it; to leave rows out, pass "
            "mask= or losses of 0. Rows are this process's already: keep a loader out of "
            "Accelerator.prepare, and use setup_dataloaders(..., use_distributed_sampler=False) "
            f"in Fabric. {_ANEW}"
        )

    def record(self, draw: Draw) -> None:
        """Count a micro-batch whose losses are recorded."""
        self._out = [other for other in self._out if other is not draw]
        self.micro, self.accumulation = self.micro + 1, draw.layout.accumulation

    def check_complete(self) -> None:
        """Check that all micro-batches of the step in progress are recorded.

        Raises:
            BatchOrderError: some are missing.
        """
        if self.micro != self.accumulation:
            calls = "a call of loss()"
            if self.accumulation > 1:
                calls = f"{self.accumulation} calls of loss(), one per micro-batch"
            raise BatchOrderError(
                f"step() must follow {calls}; got {self.micro}. Call controller.loss(...) first, "
                "and step() once per optimizer.step()."
            )

    def next_step(self) -> None:
        """Begin the next step."""
        self.micro = 0

    def abandon_step(self) -> None:
        """Forget the micro-batches of an unfinished step; between steps it does nothing."""
        if self.micro:
            self.start_anew()

    def start_anew(self) -> None:
        """Forget the unfinished step and every batch that is out: a loader begins, or a state."""
        self.micro = 0
        self._out.clear()
