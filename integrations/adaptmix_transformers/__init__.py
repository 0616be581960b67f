"""adaptmix for the Hugging Face Trainer: ``callbacks=[AdaptMixCallback("source")]``."""

try:
    from adaptmix_transformers.callback import AdaptMixCallback
except ModuleNotFoundError as error:
    if error.name not in ("transformers", "accelerate"):
        raise
    raise ModuleNotFoundError(
        'adaptmix_transformers needs transformers: pip install "adaptmix[transformers]"',
        name=error.name,
    ) from error

__all__ = ["AdaptMixCallback"]
