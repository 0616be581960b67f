"""Static weights, as other trainers read them."""

from __future__ import annotations

import ast

import numpy as np
import pytest
import yaml

from adaptmix import Domains, Weights, policies
from adaptmix.monitoring._exports import (
    StaticWeights,
    adaptmix_lines,
    lines_to_paste,
    mixture_lines,
    steady,
)
from adaptmix.monitoring._groups import grouped
from adaptmix.monitoring._record import Series
from tests.monitoring import made

NAMES = ("web", "c++: code", "news")


def test_the_static_policy_has_the_weights_that_the_run_settled_on() -> None:
    (group,) = grouped([made.record(names=NAMES, weights=[0.6, 1.2, 1.2])])
    weights = steady(group)
    assert weights is not None
    call = ast.parse(adaptmix_lines(weights).removeprefix("policy="), mode="eval").body
    assert isinstance(call, ast.Call)
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    policy = policies.Static(given["sampling"], given["loss"])
    domains = Domains(NAMES, np.ones(3), np.full(3, 1 / 3))
    _, state = policy.init(domains, policies.Run())
    np.testing.assert_allclose(state["sampling"], [0.5, 0.3, 0.2], atol=1e-4)
    np.testing.assert_allclose(state["loss"], [0.6, 1.2, 1.2], atol=1e-4)


def test_proportions_of_other_trainers_keep_the_objective() -> None:
    (group,) = grouped([made.record(names=NAMES, weights=[0.6, 1.2, 1.2])])
    weights = steady(group)
    assert weights is not None
    lines = mixture_lines(weights)
    streams = yaml.safe_load(lines["LLM Foundry, Streaming"])["streams"]
    assert {name: entry["proportion"] for name, entry in streams.items()} == {
        "web": 0.2,
        "c++: code": 0.4,
        "news": 0.4,
    }
    assert yaml.safe_load(lines["NeMo, Megatron"]) == {
        "data_prefix": [0.2, "web", 0.4, "c++: code", 0.4, "news"]
    }
    assert yaml.safe_load(lines["LLaMA-Factory"])["interleave_probs"] == "0.2,0.4,0.4"
    assert lines["Hugging Face datasets"].endswith("probabilities=[0.2,0.4,0.4])")


@pytest.mark.parametrize("quantity", ["sampling_weight", "loss_weight"])
def test_weights_that_move_are_not_static(quantity: str) -> None:
    run = made.record()
    moving = Series(made.UPDATES, np.linspace(0.5, 1.0, made.UPDATES.size))
    run.by_domain[quantity]["web"] = moving  # type: ignore[index]
    assert steady(grouped([run])[0]) is None


def test_domains_that_only_help_have_shares_of_the_objective_alone() -> None:
    weights = Weights([0.4, 0.6], None, [1.0, 0.0], objective=[0.7, 0.3])
    text = lines_to_paste(StaticWeights.of(("target", "web"), weights), unit="sample")
    assert "interleave_probs: 0.7,0.3" in text and "policy=" not in text
