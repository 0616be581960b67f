"""AdaptMix for Lightning: ``Trainer(..., callbacks=[AdaptMixCallback(labels)])``."""

try:
    from adaptmix_lightning._callback import AdaptMixCallback
except ModuleNotFoundError as error:
    if error.name != "lightning":
        raise
    raise ModuleNotFoundError(
        'adaptmix_lightning needs lightning: pip install "adaptmix[lightning]"', name=error.name
    ) from error

__all__ = ["AdaptMixCallback"]
