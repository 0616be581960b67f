"""AdaptMix for Lightning: ``Trainer(..., callbacks=[AdaptMixCallback(labels)])``."""

try:
    from adaptmix_lightning._callback import AdaptMixCallback
except ModuleNotFoundError as error:
    if error.name != "lightning":
        raise
    raise ModuleNotFoundError(
        "adaptmix_lightning needs lightning: pip install lightning, or "
        'pip install ".[lightning]" in a clone of AdaptMix.',
        name=error.name,
    ) from error

__all__ = ["AdaptMixCallback"]
