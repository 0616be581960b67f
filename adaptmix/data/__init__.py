"""Which rows are trained on, and when: mixtures, the fixed-lag plan and its loaders."""

from adaptmix.data._attach import (
    as_mixture,
    column,
    loader_options,
    numbered_loader,
    prefetching,
)
from adaptmix.data._budget import Budget
from adaptmix.data._collation import DrawnRows, NumberedRows
from adaptmix.data._draw import Draw
from adaptmix.data._layout import Layout
from adaptmix.data._lengths import Count, SampledLengths, sample_lengths
from adaptmix.data._loader import Loader
from adaptmix.data._mixture import Mixture
from adaptmix.data._order_proof import tensors_of
from adaptmix.data._packing import find_segments
from adaptmix.data._plan import Plan
from adaptmix.data._randomness import own_randomness
from adaptmix.data._repeats import Repeats
from adaptmix.data._sampler import PlanSampler
from adaptmix.data._segments import Segments

__all__ = [
    "Budget",
    "Count",
    "Draw",
    "DrawnRows",
    "Layout",
    "Loader",
    "Mixture",
    "NumberedRows",
    "Plan",
    "PlanSampler",
    "Repeats",
    "SampledLengths",
    "Segments",
    "as_mixture",
    "column",
    "find_segments",
    "loader_options",
    "numbered_loader",
    "own_randomness",
    "prefetching",
    "sample_lengths",
    "tensors_of",
]
