"""What of a tensor is on this rank: shares of weights, gradients and averages, as torch's DTensor keeps them.

Names and rows are always told as one process has them. A layer whose rows are several equal slices, as q, k and v in
one product, has them regrouped before it is parted among the ranks of a tensor mesh, so that each has its part of
every slice; such a layer has an attribute `row_slices`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor, nn

from vitrine.machine import ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

DATA, TENSOR = "data", "tensor"
"""The two directions of a mesh: ranks that see other pictures, ranks that share a layer."""


def parted(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether only a share of `tensor` may be here."""
    kinds = sys.modules.get("torch.distributed.tensor")  # a second to import: where nothing is parted it is not there
    return kinds is not None and isinstance(tensor, kinds.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The share of `tensor` that is here, in the same memory; all of it where it is not parted."""
    return tensor.to_local() if parted(tensor) else tensor


def is_parted(module: nn.Module) -> bool:
    """Whether any parameter of `module` is parted."""
    return any(parted(p) for p in module.parameters())


def layout(tensor: Tensor) -> str:
    """The mesh a tensor is parted on, in a word: what may be handled together has the same one."""
    return "+".join(tensor.device_mesh.mesh_dim_names or ()) if parted(tensor) else ""


def directions(tensor: Tensor) -> dict[str, tuple[Any, bool]]:
    """For each direction of a parted tensor's mesh: its placement there, and whether that parts it."""
    if parted(tensor):
        names = tensor.device_mesh.mesh_dim_names or ()
        return {n: (p, not p.is_replicate()) for n, p in zip(names, tensor.placements, strict=True)}
    return {}


def norms(tensors: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm (n,) of each whole tensor; `tensors` are the shares here, parted as `like`."""
    found = torch.stack(list(torch._foreach_norm(list(tensors))))
    ways = [directions(one) for one in like]
    if not any(ways):
        return found
    squares = found.square()
    for name in sorted({name for way in ways for name in way}):
        across = torch.tensor([way.get(name, (None, False))[1] for way in ways], device=squares.device)
        mesh = next(one.device_mesh for one in like if parted(one) and name in directions(one))
        every = squares * across
        dist.all_reduce(every, group=mesh.get_group(name))
        squares = torch.where(across, every, squares)
    return squares.sqrt()


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """The norm of the whole gradient, which is scaled in place to `limit` where it is longer, as
    `torch.nn.utils.clip_grad_norm_` does it."""
    learnt = [p for p in parameters if p.grad is not None]
    gradients = [local(p.grad) for p in learnt if p.grad is not None]
    norm = torch.linalg.vector_norm(norms(gradients, learnt))
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def regroup(layer: nn.Linear, slices: int, ranks_: int) -> None:
    """Order the rows of a layer of `slices` equal slices so that each of `ranks_` equal shares has a part of every one,
    in place."""
    layer.row_slices = slices  # type: ignore[assignment]
    order = _regrouped(layer.out_features, slices, ranks_)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[order])
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[order])


def _regrouped(rows: int, slices: int, ranks_: int) -> Int64[Tensor, " rows"]:
    """The plain number of each row after regrouping."""
    return torch.arange(rows).reshape(slices, ranks_, -1).transpose(0, 1).reshape(-1)


def places(tensor: Tensor, slices: int = 1) -> list[Int64[Tensor, " _"]]:
    """For the first two axes (or the one) of a parted tensor: which plain rows, and columns, are here."""
    found = [torch.arange(side) for side in tensor.shape[:2]]
    ways = directions(tensor)
    assert parted(tensor)
    if TENSOR in ways and ways[TENSOR][1]:
        axis, size = ways[TENSOR][0].dim, tensor.device_mesh[TENSOR].size()
        if axis == 0:
            found[0] = _regrouped(len(found[0]), slices, size)
        found[axis] = _chunk(found[axis], size, tensor.device_mesh.get_local_rank(TENSOR))
    if DATA in ways and ways[DATA][1]:
        size = tensor.device_mesh[DATA].size()
        found[0] = _chunk(found[0], size, tensor.device_mesh.get_local_rank(DATA))
    return found


def _chunk(numbers: Tensor, size: int, rank: int) -> Tensor:
    """The share of a rank, as torch.chunk cuts: the last ranks may have less, or nothing."""
    parts = numbers.chunk(size)
    return parts[rank] if rank < len(parts) else numbers[:0]


def taken(whole: Tensor, where: Sequence[Tensor]) -> Tensor:
    """The rows and columns of a whole tensor that `places` names."""
    found = whole[where[0]]
    return found[:, where[1]] if len(where) > 1 else found


def slices_of(module: nn.Module, name: str) -> int:
    """Of how many slices the rows of the tensor of that name are."""
    return int(getattr(module.get_submodule(name.rpartition(".")[0]), "row_slices", 1))


def whole(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of `module` as one process has them, on the host; on rank 0, and none elsewhere. All ranks call it
    together."""
    found = {}
    for name, tensor in module.state_dict().items():
        one = gathered(tensor, slices_of(module, name))
        if ranks.first():
            found[name] = one.cpu()
    return found


def gathered(tensor: Tensor, slices: int = 1) -> Tensor:
    """A tensor as one process has it. All ranks call it together."""
    if parted(tensor):
        every: Tensor = tensor.full_tensor().detach()
        ways = directions(tensor)
        if slices == 1 or TENSOR not in ways or not ways[TENSOR][1]:
            return every
        plain = torch.empty_like(every)
        plain[_regrouped(len(every), slices, tensor.device_mesh[TENSOR].size()).to(every.device)] = every
        return plain
    return tensor.detach()


@torch.no_grad()
def fill(module: nn.Module, tensors: Mapping[str, Tensor] | Callable[[str], Tensor]) -> None:
    """Give `module` the tensors of one process, each rank its share, in place."""
    get = tensors if callable(tensors) else tensors.__getitem__
    for name, tensor in module.state_dict().items():
        put(tensor, get(name), slices_of(module, name))


@torch.no_grad()
def put(into: Tensor, plain: Tensor, slices: int = 1) -> None:
    """Give a tensor its share of a whole one."""
    share = taken(plain, places(into, slices)) if parted(into) else plain
    local(into).copy_(share)
