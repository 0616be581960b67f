"""Whether a weighted loss is differentiated once, and scaled on the way as stated."""

from __future__ import annotations

from torch import Tensor

from adaptmix.errors import ObjectiveError

_TOLERANCE = 1e-3  # of a gradient that passed through low precision


class BackwardProof:
    """Checks that each loss is differentiated once, with the scale that was stated."""

    def __init__(self) -> None:
        self._arrived: list[tuple[Tensor | float, list[Tensor]]] = []

    def watch(self, loss: Tensor, *, scale: Tensor | float = 1.0) -> None:
        """Watch a weighted () loss, before its backward pass.

        Args:
            loss: the stated one.
            scale: the factor that the trainer is asked to apply to it.
        """
        arrived: list[Tensor] = []
        loss.register_hook(arrived.append)
        self._arrived.append((scale, arrived))

    def refuse_division(self, accumulation: int) -> None:
        """Refuse losses that were divided by the accumulation a second time.

        Raises:
            ObjectiveError: all of them were.
        """
        got = [float(gradient) for _, arrived in self._arrived for gradient in arrived]
        if got and all(abs(value * accumulation - 1.0) < _TOLERANCE for value in got):
            raise ObjectiveError(
                f"The loss must not be divided by the accumulation of {accumulation}, for it is "
                f"already; got {got[0]:.4g} times the stated loss's gradient. Where "
                "Accelerator.backward divides, multiply by gradient_accumulation_steps first."
            )

    def check(self, scale: float) -> None:
        """Check the losses watched so far, after their backward passes.

        Args:
            scale: what a trainer is known to multiply losses by, as mixed precision does.

        Raises:
            ObjectiveError: a loss was not differentiated, or was scaled otherwise.
        """
        for told, arrived in self._arrived:
            got = [float(gradient) / (scale * float(told)) for gradient in arrived]
            if len(got) != 1 or abs(got[0] - 1.0) > _TOLERANCE:
                raise ObjectiveError(
                    "The weighted loss must be differentiated once, as it is; got "
                    f"{got or 'no backward pass'} times the stated loss's gradient. It is already "
                    "divided by batch size and accumulation: do not scale or replace it."
                )
