"""Models whose layers are spread over processes, which therefore have to see the same rows."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

_NAMES = ("tp", "tensor")  # of mesh dimensions, by convention


def refuse_tensor_parallel(model: nn.Module) -> None:
    """Refuse a model whose layers are spread over all processes, each with rows of its own.

    Parameters that FSDP shards are whole wherever they are used, so they are not meant, unless a
    dimension of their mesh is one of tensor parallelism.

    Raises:
        ValueError: it is spread.
    """
    if not dist.is_available():
        return
    from torch.distributed.fsdp import FSDPModule

    gathered = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, FSDPModule)
        for parameter in module.parameters()
    }
    for name, parameter in model.named_parameters():
        if _is_spread(parameter, gathered=id(parameter) in gathered):
            raise ValueError(
                f"process_group must be given for a model with tensor parallelism, as of {name!r}: "
                "ranks that share a layer have to see the same rows. Pass Controller("
                'process_group=mesh["dp"].get_group()), the ranks that train on different rows.'
            )


def _is_spread(parameter: Tensor, *, gathered: bool) -> bool:
    from torch.distributed.tensor import DTensor

    if not isinstance(parameter, DTensor):
        return False
    mesh = parameter.device_mesh
    names = mesh.mesh_dim_names or ("",) * mesh.ndim
    return any(
        not placement.is_replicate() and mesh.size(i) > 1 and (not gathered or names[i] in _NAMES)
        for i, placement in enumerate(parameter.placements)
    )
