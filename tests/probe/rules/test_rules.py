"""Every rule against autograd, one sample at a time, in float64.

Also tests ``probe/rules/_convolution.py``, ``probe/rules/_embedding.py``,
``probe/rules/_linear.py``, ``probe/rules/_normalisation.py`` and ``probe/rules/_registry.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adaptmix.probe._coverage import ParameterMap
from adaptmix.probe.estimators import _sketch as sketch
from adaptmix.probe.rules import _registry as rules
from adaptmix.probe.rules._registry import Rule, find_rule, register_rule

# PyTorch's own remark on a convolution that is tested here on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

B, V = 4, 7


class Scale(nn.Module):
    """Root mean square normalisation as model libraries write it themselves."""

    def __init__(self, width: int, *, offset: float, centred: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))
        self.variance_epsilon = 0.1
        self.offset, self.centred = offset, centred

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.offset + self.weight) * x


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule that the probe uses for a layer by itself."""
    return next((held.rule for held in ParameterMap(layer).layers), None)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(3, 5), (3,)),
    "linear, tokens": (lambda: nn.Linear(3, 5), (6, 3)),
    "linear, grid": (lambda: nn.Linear(3, 5), (2, 4, 3)),
    "linear, no bias": (lambda: nn.Linear(3, 5, bias=False), (6, 3)),
    "layer norm": (lambda: nn.LayerNorm(5), (6, 5)),
    "layer norm, flat": (lambda: nn.LayerNorm(5, eps=0.1), (5,)),
    "layer norm, two dims": (lambda: nn.LayerNorm((3, 5)), (2, 6, 3, 5)),
    "layer norm, no bias": (lambda: nn.LayerNorm(5, bias=False), (6, 5)),
    "rms norm": (lambda: nn.RMSNorm(5), (6, 5)),
    "rms norm, eps": (lambda: nn.RMSNorm(5, eps=0.1), (5,)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (4, 9)),
    "conv1d, strided": (lambda: nn.Conv1d(4, 6, 3, 2, 2, 2, groups=2, bias=False), (4, 10)),
    "conv1d, same": (lambda: nn.Conv1d(4, 4, 4, padding="same", groups=4), (4, 9)),
    "conv1d, valid": (lambda: nn.Conv1d(4, 4, 4, padding="valid"), (4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), (4, 5, 6)),
    "conv2d, strided": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), 2), (4, 6, 8)),
    "conv2d, same": (
        lambda: nn.Conv2d(4, 6, (2, 5), padding="same", dilation=(3, 1)),
        (4, 6, 8),
    ),
    "conv2d, remainder": (lambda: nn.Conv2d(2, 2, 2, stride=3), (2, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), (4, 3, 4, 5)),
    "conv3d, strided": (
        lambda: nn.Conv3d(4, 6, (1, 2, 3), 2, (0, 1, 1), groups=2, bias=False),
        (4, 3, 4, 5),
    ),
    "group norm": (lambda: nn.GroupNorm(3, 6), (6, 4, 5)),
    "group norm, flat": (lambda: nn.GroupNorm(1, 6, eps=0.1), (6,)),
    "scale by another name": (lambda: Scale(5, offset=0.0), (6, 5)),
    "scale plus one": (lambda: Scale(5, offset=1.0), (6, 5)),
    "embedding": (lambda: nn.Embedding(V, 3), (6,)),
    "embedding, one index": (lambda: nn.Embedding(V, 3), ()),
    "embedding, grid": (lambda: nn.Embedding(V, 3, padding_idx=-2), (2, 6)),
}


def sample(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """An input and a gradient of the layer's output."""
    if isinstance(layer, nn.Embedding):
        x = torch.randint(V, (B, *shape))
    else:
        x = torch.randn(B, *shape, dtype=torch.float64)
    return x, torch.randn_like(layer(x).double())


@pytest.mark.parametrize("name", LAYERS)
def test_matches_autograd(name: str) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer = build().double()
    x, g = sample(layer, shape)
    rule = rule_of(layer)
    assert rule is not None
    got = rule(layer, x, g)
    names = [name for name, _ in layer.named_parameters()]
    assert sorted(got) == sorted(names)
    for j in range(B):
        want = torch.autograd.grad(layer(x[j : j + 1]), list(layer.parameters()), g[j : j + 1])
        for parameter, gradient in zip(names, want, strict=True):
            torch.testing.assert_close(got[parameter][j], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_its_sketch_is_that_of_the_whole_gradient(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Projecting input and output gradient is projecting the gradient, on both of its sides."""
    monkeypatch.setattr(sketch, "_NARROW", 2)
    monkeypatch.setattr(sketch, "_VECTOR", 2)
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer = build().double()
    x, g = sample(layer, shape)
    parameters = ParameterMap(layer)
    projections = sketch.Projections(parameters, seed=0)
    projections.redraw(0)
    batch = sketch.SketchBatch(parameters, 2, projections)
    ones = torch.ones(B, dtype=torch.float64)
    batch.expect(torch.arange(B) % 2, ones)
    (held,) = parameters.layers

    def in_backward(upstream: Tensor) -> None:
        batch.begin(upstream)
        batch.add(held, B, batch.keep(held, x), g)

    loss = torch.ones((), dtype=torch.float64, requires_grad=True) * 1.0
    loss.register_hook(in_backward)
    loss.backward()
    sums = batch.finish()
    assert sums is not None
    whole = held.rule(layer, x, g)
    named = {index: whole[name] for name, index in held.indices.items()}
    rows = torch.cat([projections.sketch(i, named[i]) for i in parameters.candidates], dim=1)
    want = torch.stack([rows[0::2].sum(0), rows[1::2].sum(0)])
    torch.testing.assert_close(sums.vectors, [want])
    squares = rows.square().sum(1)
    torch.testing.assert_close(sums.square, torch.stack([squares[0::2].sum(), squares[1::2].sum()]))
    assert [rows.shape[1]] == [sum(projections.widths)]


@pytest.mark.parametrize("name", LAYERS)
def test_frozen_parameters_cost_nothing(name: str) -> None:
    build, shape = LAYERS[name]
    layer = build().double()
    for parameter in layer.parameters():
        x, g = sample(layer, shape)
        layer.requires_grad_(False)
        parameter.requires_grad_(True)
        rule = rule_of(layer)
        assert rule is not None
        (only,) = rule(layer, x, g).values()
        assert only.shape == (B, *parameter.shape)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Embedding(V, 3, scale_grad_by_freq=True),
        nn.Embedding(V, 3, sparse=True),
        nn.Embedding(V, 3, max_norm=1.0),
        nn.Conv1d(3, 3, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        nn.Conv3d(3, 3, 3, padding=1, padding_mode="reflect"),
        Scale(4, offset=0.0, centred=True),
        nn.BatchNorm1d(3),
        nn.LSTM(3, 3),
    ],
    ids=lambda layer: str(layer),
)
def test_layers_without_a_rule_that_holds_have_none(layer: nn.Module) -> None:
    assert rule_of(layer) is None


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 4), (4,)),
        (nn.LayerNorm(4), (4,)),
        (nn.RMSNorm(4), (4,)),
        (nn.GroupNorm(2, 4), (4,)),
        (nn.Conv3d(4, 4, 1), (4, 4, 4, 4)),
        (nn.Conv1d(4, 4, 1), (4, 4)),
        (nn.Conv2d(4, 4, 1), (4, 4, 4)),
    ],
    ids=lambda value: str(value),
)
def test_inputs_without_a_sample_dim_have_no_gradient(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    rule = find_rule(layer)
    assert rule is not None
    assert rule(layer, torch.ones(shape), torch.ones(shape)) == {}


class Renamed(nn.Linear):
    """The same forward under another name."""


class Changed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


def test_subclasses_share_the_rule_unless_they_compute_something_else() -> None:
    assert find_rule(Renamed(2, 2)) is find_rule(nn.Linear(2, 2))
    assert find_rule(Changed(2, 2)) is None


@pytest.fixture
def rules_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "RULES", dict(rules.RULES))


@pytest.mark.usefixtures("rules_of_its_own")
def test_a_type_has_one_rule() -> None:
    """Under its name too: the rule that was registered last used to shadow the other."""
    rule = register_rule(Changed, lambda module: module.bias is None)(
        lambda _, x, g: {"weight": g * x}
    )
    assert find_rule(Changed(2, 2)) is None
    assert find_rule(Changed(2, 2, bias=False)) is rule
    for kind in (Changed, f"{Changed.__module__}.Changed"):
        with pytest.raises(ValueError, match=r"must have one rule; .*\.Changed has one already"):
            register_rule(kind)(rule)
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    with pytest.raises(ValueError, match=r"pytorch_utils\.Conv1D has one already"):
        register_rule(conv1d)(rule)
    assert find_rule(Changed(2, 2, bias=False)) is rule


@pytest.mark.usefixtures("rules_of_its_own")
def test_a_type_may_be_named_where_it_cannot_be_imported() -> None:
    name = f"{Changed.__module__}.Changed"
    assert find_rule(Changed(2, 2)) is None
    rule = register_rule(name)(lambda _, x, g: {"weight": g * x})
    assert find_rule(Changed(2, 2)) is rule
