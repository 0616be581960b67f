"""Which rows are trained on, and when: mixtures, the fixed-lag plan and its loaders."""

from adaptmix.data.attach import (
    as_mixture,
    column,
    loader_options,
    numbered_loader,
    prefetching,
)
from adaptmix.data.collation import NumberedRows
from adaptmix.data.draw import Draw
from adaptmix.data.layout import Layout
from adaptmix.data.lengths import Count, SampledLengths, sample_lengths
from adaptmix.data.loader import Loader
from adaptmix.data.mixture import Mixture
from adaptmix.data.plan import Plan
from adaptmix.data.randomness import own_randomness
from adaptmix.data.rows import tensors_of
from adaptmix.data.sampler import PlanSampler

__all__ = [
    "Count",
    "Draw",
    "Layout",
    "Loader",
    "Mixture",
    "NumberedRows",
    "Plan",
    "PlanSampler",
    "SampledLengths",
    "as_mixture",
    "column",
    "loader_options",
    "numbered_loader",
    "own_randomness",
    "prefetching",
    "sample_lengths",
    "tensors_of",
]
