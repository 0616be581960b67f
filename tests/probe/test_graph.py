"""Every node of a graph is met once, and none above where the walk is to stop."""

from __future__ import annotations

import torch

from adaptmix.probe._graph import nodes_of


def test_nodes_are_met_once() -> None:
    x = torch.ones(2, requires_grad=True)
    middle = x * 2.0
    loss = (middle + middle.exp()).sum()
    assert middle.grad_fn is not None
    names = [node.name() for node in nodes_of([loss, middle])]
    kinds = ["AddBackward0", "ExpBackward0", "MulBackward0", "SumBackward0"]
    assert sorted(names) == sorted([*kinds, "torch::autograd::AccumulateGrad"])
    stopped = {node.name() for node in nodes_of([loss], stop={middle.grad_fn})}
    assert stopped == {"AddBackward0", "ExpBackward0", "SumBackward0"}


def test_what_has_no_graph_has_no_nodes() -> None:
    assert not list(nodes_of([torch.ones(2)]))
