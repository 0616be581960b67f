"""The probe's sums equal those of a loop over samples, in float64, for every model and setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from adaptmix.statistics import gradients
from adaptmix.statistics.gradients import GradientSums
from adaptmix.statistics.probe import GradientProbe

# PyTorch's own remark on the convolution that is tested here on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

K = 3
DOMAINS = torch.tensor([0, 1, 2, 0, 2, 2, 0])
B = len(DOMAINS)
FACTORS = torch.tensor([0.1, 3.0, 0.5, -2.0, 0.7, 1e-3, 40.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class Stack(nn.Module):
    """A stem, blocks that may be checkpointed or the same module several times, and a head."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head
        self.reentrant: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if self.reentrant is None or not torch.is_grad_enabled():
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        output: Tensor = self.head(x)
        return output


class Tokens(nn.Module):
    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.places = nn.Embedding(16, width)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape)
        output: Tensor = self.words(x) + self.places(places)
        return output


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = nn.RMSNorm(width), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width, bias=False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        output: Tensor = x + self.act(self.after(self.out(mixed)))
        return output


def block(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, width))


def mlp() -> Stack:
    return Stack(nn.Linear(5, 8), [block(8), block(8)], nn.Linear(8, 4, bias=False))


def repeated() -> Stack:
    shared = block(8)
    return Stack(nn.Linear(5, 8), [shared, block(8), shared], nn.Linear(8, 4))


def conv1d() -> Stack:
    middle = nn.Sequential(nn.Conv1d(6, 6, 4, padding="same", groups=3), nn.ReLU(inplace=True))
    head = nn.Sequential(nn.Flatten(), nn.LayerNorm(36), nn.Linear(36, 4))
    return Stack(nn.Conv1d(3, 6, 3, stride=2, padding=1), [middle], head)


def conv2d() -> Stack:
    middle = nn.Sequential(
        nn.Conv2d(6, 12, (3, 2), padding="same", groups=2, dilation=(1, 2)),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 3, 3, padding="valid", bias=False),
        nn.LayerNorm((3, 2, 2)),
    )
    head = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    return Stack(nn.Conv2d(2, 6, 3, stride=(2, 1), padding=(1, 0)), [middle], head)


def transformer() -> Stack:
    stem, head = Tokens(11, 8), nn.Linear(8, 11, bias=False)
    head.weight = stem.words.weight
    return Stack(stem, [Attention(8), Attention(8)], nn.Sequential(nn.LayerNorm(8), head))


Case = tuple[Callable[[], Stack], Callable[[], tuple[Tensor, Tensor]]]


def _vectors(*shape: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(B, *shape, dtype=torch.float64), torch.randint(4, (B,)))


CASES: dict[str, Case] = {
    "mlp": (mlp, _vectors(5)),
    "repeated": (repeated, _vectors(5)),
    "conv1d": (conv1d, _vectors(3, 11)),
    "conv2d": (conv2d, _vectors(2, 7, 6)),
    "transformer": (
        transformer,
        lambda: (torch.randint(11, (B, 6)), torch.randint(11, (B, 6))),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Stack, Tensor, Tensor]:
    model, data = CASES[request.param]
    torch.manual_seed(0)
    return model().double(), *data()


def losses(output: Tensor, targets: Tensor) -> Tensor:
    """(B,) mean cross-entropy of each sample."""
    each = functional.cross_entropy(output.flatten(0, -2), targets.flatten(), reduction="none")
    return each.reshape(len(targets), -1).mean(1)


def reference(
    model: nn.Module, inputs: Tensor, targets: Tensor, domains: Tensor = DOMAINS
) -> GradientSums:
    """The same sums, one sample after the other."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    zeros = torch.zeros(K, dtype=torch.float64)
    sums = GradientSums(
        zeros.clone(), zeros.clone(), [p.new_zeros(K, *p.shape) for p in parameters], zeros[0]
    )
    for j, domain in enumerate(domains.tolist()):
        loss = losses(model(inputs[j : j + 1]), targets[j : j + 1]).sum()
        for vector, gradient in zip(
            sums.vectors, torch.autograd.grad(loss, parameters), strict=True
        ):
            vector[domain] += gradient
            sums.square[domain] += gradient.double().square().sum()
        sums.count[domain] += 1
    return sums


def observe(
    probe: GradientProbe,
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    domains: Tensor = DOMAINS,
    factors: Tensor = FACTORS,
    parts: int = 1,
    after: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> GradientSums | None:
    """One observed step of ``parts`` micro-batches."""
    probe.arm(True)
    for part in torch.arange(len(domains)).chunk(parts):
        loss = (factors[part] * losses(model(inputs[part]), targets[part])).sum()
        probe.expect(domains[part], factors[part], loss)
        after(loss).backward()
    return probe.collect()


def attached(model: nn.Module) -> GradientProbe:
    probe = GradientProbe(model, K)
    probe.attach()
    return probe


def assert_same(got: GradientSums | None, want: GradientSums, rtol: float = 1e-10) -> None:
    assert got is not None
    for one, other in zip(got.tensors(), want.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol, check_dtype=False)


def test_matches_a_loop_over_samples(case: tuple[Stack, Tensor, Tensor]) -> None:
    model, inputs, targets = case
    probe = attached(model)
    got = observe(probe, model, inputs, targets)
    assert_same(got, reference(model, inputs, targets))
    assert probe.coverage.share == 1.0
    assert not probe.coverage.unseen


def test_gram_is_that_of_the_flat_vectors(case: tuple[Stack, Tensor, Tensor]) -> None:
    model, inputs, targets = case
    got = observe(attached(model), model, inputs, targets)
    assert got is not None
    flat = torch.cat([vector.flatten(1) for vector in got.vectors], dim=1)
    torch.testing.assert_close(got.gram(), flat @ flat.T)


@pytest.mark.parametrize("after", [lambda x: x * 1024.0, lambda x: x / 7.0, lambda x: -x])
def test_what_happens_to_the_loss_afterwards_is_divided_out(
    case: tuple[Stack, Tensor, Tensor], after: Callable[[Tensor], Tensor]
) -> None:
    model, inputs, targets = case
    got = observe(attached(model), model, inputs, targets, after=after)
    assert_same(got, reference(model, inputs, targets))


@pytest.mark.parametrize("parts", [2, 3, B])
def test_micro_batches_are_pooled(case: tuple[Stack, Tensor, Tensor], parts: int) -> None:
    model, inputs, targets = case
    got = observe(attached(model), model, inputs, targets, parts=parts)
    assert_same(got, reference(model, inputs, targets))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("parts", [1, 3])
def test_activation_checkpointing(
    case: tuple[Stack, Tensor, Tensor], reentrant: bool, parts: int
) -> None:
    model, inputs, targets = case
    want = reference(model, inputs, targets)
    model.reentrant = reentrant
    assert_same(observe(attached(model), model, inputs, targets, parts=parts), want)


@pytest.mark.parametrize("reentrant", [True, False, None])
def test_parameters_used_once_are_not_kept_per_sample(
    monkeypatch: pytest.MonkeyPatch, reentrant: bool | None
) -> None:
    model, data = mlp().double(), CASES["mlp"][1]()
    model.reentrant = reentrant
    sizes: list[int] = []
    reduce = gradients.MicroBatch._reduce

    def spy(self: gradients.MicroBatch, index: int, chunk: slice, rows: Tensor) -> None:
        sizes.append(len(rows))
        reduce(self, index, chunk, rows)

    monkeypatch.setattr(gradients, "_CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(gradients.MicroBatch, "_reduce", spy)
    observe(attached(model), model, *data)
    assert set(sizes) == {1}


def test_chunks_of_samples_change_nothing(
    case: tuple[Stack, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs, targets = case
    monkeypatch.setattr(gradients, "_CHUNK_ELEMENTS", 600)
    monkeypatch.setattr(gradients, "_GRAM_COLUMNS", 3)
    got = observe(attached(model), model, inputs, targets)
    assert_same(got, reference(model, inputs, targets))


def test_samples_without_weight_are_left_out_even_when_not_finite() -> None:
    model, (inputs, targets) = mlp().double(), CASES["mlp"][1]()
    kept = torch.tensor([0, 2, 3, 5, 6])
    factors = torch.zeros_like(FACTORS).index_copy(0, kept, FACTORS[kept])
    inputs[[1, 4]] = torch.inf
    probe = attached(model)
    probe.arm(True)
    loss = factors[kept] @ losses(model(inputs), targets)[kept]
    probe.expect(DOMAINS, factors, loss)
    loss.backward()
    want = reference(model, inputs[kept], targets[kept], DOMAINS[kept])
    assert_same(probe.collect(), want)


def test_a_sample_that_is_not_finite_costs_its_micro_batch_only(
    case: tuple[Stack, Tensor, Tensor],
) -> None:
    model, inputs, targets = case
    factors = FACTORS.clone()
    factors[5] = torch.nan
    got = observe(attached(model), model, inputs, targets, factors=factors, parts=4)
    first = slice(0, 4)
    want = reference(model, inputs[first], targets[first], DOMAINS[first])
    last = reference(model, inputs[6:], targets[6:], DOMAINS[6:])
    for total, part in zip(want.tensors(), last.tensors(), strict=True):
        total += part
    want.skipped = torch.tensor(2.0)
    assert_same(got, want)


class Overflow(nn.Module):
    """The identity, whose backward overflows for one sample."""

    def forward(self, x: Tensor) -> Tensor:
        factors = torch.ones(len(x), 1, dtype=x.dtype).index_fill(0, torch.tensor([2]), torch.inf)
        output = x.clone()
        output.register_hook(lambda g: g * factors)
        return output


def test_an_overflow_in_an_early_layer_leaves_the_whole_sample_out() -> None:
    model = Stack(nn.Linear(5, 8), [Overflow()], nn.Linear(8, 4)).double()
    inputs, targets = CASES["mlp"][1]()
    got = observe(attached(model), model, inputs, targets)
    assert got is not None
    assert got.skipped == B
    assert not any(tensor.any() for tensor in (got.count, got.square, *got.vectors))


def test_frozen_parameters_are_skipped(case: tuple[Stack, Tensor, Tensor]) -> None:
    model, inputs, targets = case
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 1)
    probe = attached(model)
    assert_same(observe(probe, model, inputs, targets), reference(model, inputs, targets))
    assert probe.coverage.share == 1.0


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_only_weights_or_only_biases_are_trained(
    case: tuple[Stack, Tensor, Tensor], kind: str
) -> None:
    model, inputs, targets = case
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(kind))
    assert_same(observe(attached(model), model, inputs, targets), reference(model, inputs, targets))


def test_low_precision_gradients_are_summed_in_float32() -> None:
    model, (inputs, targets) = transformer(), CASES["transformer"][1]()
    want = reference(model.double(), inputs, targets)
    model.bfloat16()
    got = observe(attached(model), model, inputs, targets, factors=FACTORS.bfloat16())
    assert got is not None
    assert {vector.dtype for vector in got.vectors} == {torch.float32}
    torch.testing.assert_close(got.square, want.square, rtol=0.1, atol=0.0)


@pytest.mark.parametrize("backward_inside", [True, False])
def test_autocast(backward_inside: bool) -> None:
    model, (inputs, targets) = transformer(), CASES["transformer"][1]()
    want = reference(model, inputs, targets)
    probe = attached(model)
    probe.arm(True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = (FACTORS.float() * losses(model(inputs), targets)).sum()
        probe.expect(DOMAINS, FACTORS.float(), loss)
        if backward_inside:
            (loss * 1024.0).backward()
    if not backward_inside:
        (loss * 1024.0).backward()
    got = probe.collect()
    assert got is not None
    assert {vector.dtype for vector in got.vectors} == {torch.float32}
    torch.testing.assert_close(got.square, want.square, rtol=0.05, atol=0.0)
