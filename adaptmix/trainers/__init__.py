"""The kit that integrations stand on: with ``adaptmix`` itself, all that a new trainer needs.

===========================  =====================================================================
part                         what it is for
===========================  =====================================================================
``Settings``                 the arguments that callbacks have in common, checked when written
``as_mixture``,              from a dataset and a column, labels or parts to the domains; what the
``count_labels``             labels of a sample of rows tell
``Layout``,                  which rows: a batch sampler with as many steps as the trainer takes
``make_sampler``,
``PlanSampler``
``numbered_loader``,         batches that carry their number, or that come with their draw, in the
``Loader``                   place of a user's ``DataLoader``
``find_loss_inputs``,        where a loss meets the model: its rows' gradients are multiplied there
``LossInputs``
``WeightedHead``,            the same at the output of a named module
``scale_rows``
``loss_gradients``,             the proof that a loss is a sum of one term per row, by gradients
``couplings``,
``uneven_targets``
``find_segments``            where a collator packed rows into fewer
``refusing_moved_rows``      the proof that rows enter the model in the order of the batch
``BackwardProof``            the proof that the loss is differentiated once, as it is
``Replacements``,            a trainer's methods and random states, which are given back
``own_randomness``
``TrainerBoard``,            charts and texts in a trainer's TensorBoard logger; what cannot be
``tolerant``                 logged is a warning
``save_state``,              states in a trainer's checkpoint folder
``load_state``
``register_head``            per-sample gradients of heads that a trainer fuses with its loss
===========================  =====================================================================

The rest of a run goes through ``Controller``: ``multipliers`` and ``observe`` for a loss that the
trainer computes, ``loss`` for one that is unreduced, ``step`` after each optimizer step, and
``state_dict``.
"""

from adaptmix._backward import BackwardProof
from adaptmix._warn_once import WarnOnce
from adaptmix.data import (
    Layout,
    Loader,
    PlanSampler,
    as_mixture,
    find_segments,
    loader_options,
    numbered_loader,
    own_randomness,
    spread_rows,
    tensors_of,
)
from adaptmix.monitoring._names import safe_names
from adaptmix.monitoring._tensorboard import PREFIX, tolerant
from adaptmix.monitoring._trainer_board import TrainerBoard
from adaptmix.probe import Coverage
from adaptmix.probe.rules._linear import Matrix
from adaptmix.probe.rules._registry import FusedHead, Side, register_head
from adaptmix.processes._sums import gather, sum_over_ranks
from adaptmix.state._checkpoint import load as load_state
from adaptmix.state._checkpoint import save as save_state
from adaptmix.statistics import Watch
from adaptmix.trainers._additivity import couplings, loss_gradients
from adaptmix.trainers._entry import refusing_moved_rows
from adaptmix.trainers._head import WeightedHead, scale_rows
from adaptmix.trainers._inputs import LossInputs, find_loss_inputs, over_rows
from adaptmix.trainers._labels import IGNORED, Labels, count_labels
from adaptmix.trainers._pieces import halves
from adaptmix.trainers._replacements import Replacements
from adaptmix.trainers._settings import Settings
from adaptmix.trainers._steps import make_sampler
from adaptmix.trainers._targets import uneven_targets

__all__ = [
    "IGNORED",
    "PREFIX",
    "BackwardProof",
    "Coverage",
    "FusedHead",
    "Labels",
    "Layout",
    "Loader",
    "LossInputs",
    "Matrix",
    "PlanSampler",
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
    "load_state",
    "loader_options",
    "loss_gradients",
    "make_sampler",
    "numbered_loader",
    "over_rows",
    "own_randomness",
    "refusing_moved_rows",
    "register_head",
    "safe_names",
    "save_state",
    "scale_rows",
    "spread_rows",
    "sum_over_ranks",
    "tensors_of",
    "tolerant",
    "uneven_targets",
]
