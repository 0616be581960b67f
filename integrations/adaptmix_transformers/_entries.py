"""Where a Trainer begins to train or to evaluate; the callback works inside, and only there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from adaptmix_transformers._packs import pack_by_domain

if TYPE_CHECKING:
    from adaptmix_transformers._callback import AdaptMixCallback

_ENTRIES = ("train", "evaluate", "predict")


def wrap_entries(trainer: Trainer, running: Callable[[], AbstractContextManager[None]]) -> None:
    """Let a trainer train, evaluate and predict inside of ``running()``.

    These three stay wrapped, so that a trainer may train again; nothing else does.

    Args:
        trainer: of a callback.
        running: of the callback.
    """
    for name in _ENTRIES:
        own = getattr(trainer, name)

        def entered(*args: Any, own: Callable[..., Any] = own, **kwargs: Any) -> Any:
            with running():
                return own(*args, **kwargs)

        setattr(trainer, name, functools.wraps(own)(entered))


class AdaptMixMixin(Trainer if TYPE_CHECKING else object):  # type: ignore[misc]
    """Adapts the domains of a Trainer of one's own class, before whose base it is listed.

    ::

        class MyTrainer(AdaptMixMixin, Trainer):
            def compute_loss(self, model, inputs, *args, **kwargs): ...

        MyTrainer(model, args, train_dataset=ds, adaptmix=AdaptMixCallback("source")).train()

    It does what ``callbacks=[AdaptMixCallback("source")]`` does, and leaves nothing on the trainer:
    ``train``, ``evaluate`` and ``predict`` are methods of the class.

    Args:
        args: of the Trainer.
        adaptmix: the callback, which has all settings; None to train without AdaptMix.
        kwargs: of the Trainer.

    Raises:
        TypeError: ``adaptmix`` is no ``AdaptMixCallback``, or the class lists the mixin after the
            Trainer.
    """

    adaptmix: AdaptMixCallback | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the order of the bases."""
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(AdaptMixMixin):
            raise TypeError(
                "AdaptMixMixin must be listed before the Trainer; got it after. Write class "
                f"{cls.__name__}(AdaptMixMixin, Trainer)."
            )

    def __init__(self, *args: Any, adaptmix: AdaptMixCallback | None = None, **kwargs: Any) -> None:
        if adaptmix is not None:
            if not hasattr(adaptmix, "running"):
                raise TypeError(
                    f"adaptmix must be an AdaptMixCallback; got {type(adaptmix).__name__}. Pass "
                    'adaptmix=AdaptMixCallback("column").'
                )
            self.adaptmix = adaptmix
            kwargs["callbacks"] = [*(kwargs.get("callbacks") or ()), adaptmix]
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare a dataset as TRL's base does, and pack it domain by domain if it is packed."""
        own: Any = super()._prepare_dataset
        if self.adaptmix is None:
            return own(*args, **kwargs)
        return pack_by_domain(own, self.adaptmix._settings.domains, args, kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the base does, with the domains adapted."""
        if self.adaptmix is None:
            return super().train(*args, **kwargs)
        with self.adaptmix.running():
            return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the base does, with losses by domain."""
        if self.adaptmix is None:
            return super().evaluate(*args, **kwargs)
        with self.adaptmix.running():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict as the base does, with losses by domain."""
        if self.adaptmix is None:
            return super().predict(*args, **kwargs)
        with self.adaptmix.running():
            return super().predict(*args, **kwargs)
