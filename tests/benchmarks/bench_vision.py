"""What the probe sees of timm's and torchvision's models, against autograd one sample at a time.

Each model is built from its configuration, small and with random parameters, in float64 and in
evaluation mode, so that batch normalisation keeps samples apart. For each the table tells the share
of the gradient's squared norm that is seen, and the largest relative error of the estimator
"exact": of the sum of squared norms of per-sample gradients by domain, and of the mean gradients of
domains. The results are in tests/benchmarks/results/vision.md.

torchvision's builds belong to one build of torch each, so this runs in an environment of its own:
``pip install torch==2.14.1 torchvision==0.29.1 timm numpy scipy tensorboard``, then
``PYTHONPATH=. python -m tests.benchmarks.bench_vision``.
"""

from __future__ import annotations

import argparse
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptmix.probe._probe import GradientProbe

CLASSES, K = 5, 2
DOMAINS = torch.tensor([0, 1, 0])
FACTORS = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)


def of_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    """Return what builds one of timm's models."""

    def build() -> nn.Module:
        timm: Any = importlib.import_module("timm")
        model: nn.Module = timm.create_model(name, num_classes=CLASSES, **options)
        return model

    return build


def of_torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    """Return what builds one of torchvision's models."""

    def build() -> nn.Module:
        models: Any = importlib.import_module("torchvision.models")
        model: nn.Module = getattr(models, name)(num_classes=CLASSES, **options)
        return model

    return build


SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 32}
SQUARE = {"img_size": 32}

# (builds a model, size of its pictures)
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "timm resnet18": (of_timm("resnet18"), 32),
    "timm resnext": (of_timm("resnext26ts"), 32),
    "timm convnext_atto": (of_timm("convnext_atto", depths=(1, 1, 1, 1)), 32),
    "timm convnextv2_atto": (of_timm("convnextv2_atto", depths=(1, 1, 1, 1)), 32),
    "timm efficientnet_b0": (of_timm("efficientnet_b0"), 32),
    "timm mobilenetv3_small": (of_timm("mobilenetv3_small_050"), 32),
    "timm regnety_002": (of_timm("regnety_002"), 32),
    "timm densenet121": (of_timm("densenet121"), 32),
    "timm vit_tiny": (of_timm("vit_tiny_patch16_224", num_heads=2, **SMALL, **SQUARE), 32),
    "timm deit_tiny, distilled": (
        of_timm("deit_tiny_distilled_patch16_224", num_heads=2, **SMALL, **SQUARE),
        32,
    ),
    "timm beit": (of_timm("beit_base_patch16_224", num_heads=2, **SMALL, **SQUARE), 32),
    "timm cait": (of_timm("cait_xxs24_224", num_heads=2, **SMALL, **SQUARE), 32),
    "timm swin": (
        of_timm(
            "swin_tiny_patch4_window7_224",
            img_size=56,
            embed_dim=16,
            depths=(2, 2),
            num_heads=(2, 2),
        ),
        56,
    ),
    "timm mixer": (of_timm("mixer_s32_224", img_size=64), 64),
    "timm maxvit": (of_timm("maxvit_rmlp_pico_rw_256", img_size=64), 64),
    "torchvision resnet18": (of_torchvision("resnet18"), 32),
    "torchvision convnext_tiny": (of_torchvision("convnext_tiny"), 32),
    "torchvision efficientnet_b0": (of_torchvision("efficientnet_b0"), 32),
    "torchvision mobilenet_v3_small": (of_torchvision("mobilenet_v3_small"), 32),
    "torchvision regnet_y_400mf": (of_torchvision("regnet_y_400mf"), 32),
    "torchvision shufflenet_v2": (of_torchvision("shufflenet_v2_x0_5"), 32),
    "torchvision swin_t": (
        of_torchvision(
            "SwinTransformer",
            patch_size=[4, 4],
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 2],
            window_size=[4, 4],
        ),
        32,
    ),
    "torchvision vit": (
        of_torchvision(
            "VisionTransformer",
            image_size=32,
            patch_size=16,
            num_layers=2,
            num_heads=2,
            hidden_dim=32,
            mlp_dim=64,
        ),
        32,
    ),
}


def losses(model: nn.Module, pictures: Tensor, labels: Tensor) -> Tensor:
    """Return (B,) losses."""
    return F.cross_entropy(model(pictures), labels, reduction="none")


def measure(build: Callable[[], nn.Module], size: int) -> tuple[int, float, float, list[str]]:
    """Return parameters, the share seen, the largest error, and what is not seen."""
    torch.manual_seed(0)
    model = build().double().eval()
    for parameter in model.parameters():  # some begin at 0 and would hide errors
        nn.init.normal_(parameter, std=0.1) if not parameter.any() else None
    pictures = torch.randn(len(DOMAINS), 3, size, size, dtype=torch.float64)
    labels = torch.arange(len(DOMAINS)) % CLASSES
    probe = GradientProbe(model, K, estimator="exact", seed=3)
    probe.attach()
    probe.arm(True, step=0)
    each = losses(model, pictures, labels)
    loss = FACTORS @ each
    probe.expect(DOMAINS, FACTORS, loss, values=each)
    loss.backward()
    got = probe.collect()
    probe.detach()
    assert got is not None
    unseen = probe.coverage.unseen
    names = [name for name, p in model.named_parameters() if p.grad is not None]
    mass = {name: float(model.get_parameter(name).grad.square().sum()) for name in names}  # type: ignore[union-attr]
    seen = [name for name in names if name.rpartition(".")[0] not in unseen]
    share = sum(mass[name] for name in seen) / sum(mass.values())

    square = torch.zeros(K, dtype=torch.float64)
    mean = torch.zeros(K, sum(model.get_parameter(name).numel() for name in seen)).double()
    leaves = [model.get_parameter(name) for name in seen]
    for j, domain in enumerate(DOMAINS.tolist()):
        alone = losses(model, pictures[j : j + 1], labels[j : j + 1]).sum()
        parts = torch.autograd.grad(alone, leaves, materialize_grads=True)
        row = torch.cat([part.flatten() for part in parts])
        square[domain] += row.square().sum()
        mean[domain] += row
    error = float(((got.square - square).abs() / square).max())
    wanted = mean.square().sum(1)
    error = max(error, float(((got.norms() - wanted).abs() / wanted).max()))
    return sum(p.numel() for p in model.parameters()), share, error, sorted(unseen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of models' names; none is all")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("| model | parameters | share of the gradient seen | largest error |")
    print("|---|---|---|---|")
    for name, (build, size) in MODELS.items():
        if args.names and not any(part in name for part in args.names):
            continue
        number, share, error, unseen = measure(build, size)
        print(f"| {name} | {number} | {share:.4f} | {error:.1e} |", flush=True)
        if unseen:
            print("  not seen:", ", ".join(unseen), flush=True)


if __name__ == "__main__":
    main()
