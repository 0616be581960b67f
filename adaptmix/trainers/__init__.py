"""The kit that integrations stand on: with ``adaptmix`` itself, all that a new trainer needs.

Settings and domains:

- ``Settings``: the arguments that callbacks have in common, checked where they are written
- ``as_mixture``: a dataset and a column, labels or parts become a ``Mixture``
- ``count_labels``, ``Labels``, ``IGNORED``: the unit and the tokens per row, from a sample of rows

Which rows are drawn:

- ``Layout``: how a step's global batch is cut into micro-batches of processes
- ``make_sampler``, ``PlanSampler``: a batch sampler with as many steps as the trainer takes
- ``numbered_loader``, ``loader_options``: a ``DataLoader`` in another's place, whose batches carry
  their number; ``PlanSampler.take`` returns the draw of a number
- ``DrawnRows``, ``NumberedRows``: the rows of a micro-batch, and a dataset of them, for a loader
  that takes several micro-batches at once
- ``Repeats``: steps that train the rows of earlier ones again, for ``PlanSampler.plan.repeats``
- ``Loader``: batches that come with their draw
- ``find_segments``: where a collator packed rows into fewer

How rows are weighted:

- ``find_loss_inputs``, ``LossInputs``: where a loss meets the model; its ``scale`` weights rows
- ``over_rows``: values of rows in the shape of a tensor of rows, or of packed positions
- ``WeightedHead``, ``scale_rows``: the same at the output of a named module

What is proved, in the first step and in measured ones:

- ``loss_gradients``, ``couplings``, ``halves``: the loss is a sum of one term per row
- ``uneven_targets``: a mean over targets counts every row alike
- ``refusing_moved_rows``, ``tensors_of``: rows enter the model in the order of the batch
- ``BackwardProof``: the loss is differentiated once, as it is
- ``now_and_then``: when something that may begin in mid-run is looked at again
- ``Refusals``: what one process refuses stops all of them
- ``leaving_no_trace``, ``random_state``: passes beside training, and what they drew

What is measured:

- ``Watch``, ``Coverage``: the handle on the gradient probe, and what it sees
- ``register_head``, ``FusedHead``, ``Matrix``, ``Side``: per-sample gradients of a head that a
  trainer fuses with its loss

What is kept and shown:

- ``Replacements``, ``own_randomness``: methods and random states that are given back
- ``save_state``, ``load_state``: a controller's state in a file
- ``TrainerBoard``: charts and texts in a trainer's TensorBoard logger
- ``PREFIX``, ``safe_names``: tags of scalars that every logger takes
- ``tolerant``, ``WarnOnce``: what cannot be logged is a warning, given once
- ``gather``, ``sum_over_ranks``: values of all processes

The rest of a run goes through ``Controller``: ``multipliers`` and ``observe`` for a loss that the
trainer computes, ``loss`` for one that is unreduced, ``step`` after each optimizer step, and
``state_dict``.
"""

from adaptmix._backward import BackwardProof
from adaptmix._row_proof import now_and_then
from adaptmix._warn_once import WarnOnce
from adaptmix.data import (
    DrawnRows,
    Layout,
    Loader,
    NumberedRows,
    PlanSampler,
    Repeats,
    as_mixture,
    find_segments,
    loader_options,
    numbered_loader,
    own_randomness,
    tensors_of,
)
from adaptmix.monitoring._names import safe_names
from adaptmix.monitoring._tensorboard import PREFIX, tolerant
from adaptmix.monitoring._trainer_board import TrainerBoard
from adaptmix.probe import Coverage
from adaptmix.probe._entry import refusing_moved_rows
from adaptmix.probe.rules._linear import Matrix
from adaptmix.probe.rules._registry import FusedHead, Side, register_head
from adaptmix.processes._sums import gather, sum_over_ranks
from adaptmix.state._checkpoint import load as load_state
from adaptmix.state._checkpoint import save as save_state
from adaptmix.statistics import Watch
from adaptmix.trainers._additivity import couplings, loss_gradients
from adaptmix.trainers._head import WeightedHead, scale_rows
from adaptmix.trainers._inputs import LossInputs, find_loss_inputs, over_rows
from adaptmix.trainers._labels import IGNORED, Labels, count_labels
from adaptmix.trainers._pieces import halves
from adaptmix.trainers._refusals import Refusals
from adaptmix.trainers._replacements import Replacements
from adaptmix.trainers._settings import Settings
from adaptmix.trainers._steps import make_sampler
from adaptmix.trainers._targets import uneven_targets
from adaptmix.trainers._traceless import leaving_no_trace, random_state

__all__ = [
    "IGNORED",
    "PREFIX",
    "BackwardProof",
    "Coverage",
    "DrawnRows",
    "FusedHead",
    "Labels",
    "Layout",
    "Loader",
    "LossInputs",
    "Matrix",
    "NumberedRows",
    "PlanSampler",
    "Refusals",
    "Repeats",
    "Replacements",
    "Settings",
    "Side",
    "TrainerBoard",
    "WarnOnce",
    "Watch",
    "WeightedHead",
    "as_mixture",
    "count_labels",
    "couplings",
    "find_loss_inputs",
    "find_segments",
    "gather",
    "halves",
    "leaving_no_trace",
    "load_state",
    "loader_options",
    "loss_gradients",
    "make_sampler",
    "now_and_then",
    "numbered_loader",
    "over_rows",
    "own_randomness",
    "random_state",
    "refusing_moved_rows",
    "register_head",
    "safe_names",
    "save_state",
    "scale_rows",
    "sum_over_ranks",
    "tensors_of",
    "tolerant",
    "uneven_targets",
]
