"""A base for Trainers of one's own class, in place of a callback that wraps their methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import Trainer

from adaptmix_transformers._callback import AdaptMixCallback
from adaptmix_transformers._packs import pack_by_domain


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
            if not isinstance(adaptmix, AdaptMixCallback):
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
