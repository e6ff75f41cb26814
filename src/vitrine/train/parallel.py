"""A model spread over the ranks of a run, so that nothing but the speed is another: who sees which pictures, what each
holds of the model, and when gradients meet.

The batch of a step is that of one process. A rank takes pairs of its rows, as mixing pairs them; losses are divided by
what counts in the whole batch, so that their sum over the ranks is the loss of one process. `ddp`: each rank holds all
of the model, and gradients are added up in buckets while the backward pass runs. `fsdp`: each rank holds a share of
every tensor, and a block is put together when its turn comes (arXiv:2304.11277; torch's `fully_shard`). `tensor`: ranks
share every layer, each with whole heads of q, k and v and a part of the MLP (arXiv:1909.08053, section 3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitrine.config.options import Config
from vitrine.errors import UsageError
from vitrine.images.mixing import rows_of
from vitrine.machine import ranks
from vitrine.models.vit import VisionTransformer
from vitrine.train import shards
from vitrine.train.objective import Objective, Part
from vitrine.train.shards import DATA, TENSOR

BYTES_OF_A_NUMBER = 20
"""Of training in float32: the weight, its gradient, AdamW's two moments, and the running average."""

SHARE = 0.5
"""Of the memory of a device: what all this may take for a rank to hold the whole model; the rest is for activations."""

Mode = Literal["alone", "ddp", "fsdp", "tensor"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """How a run is spread. Alone, and by default, everything is as in one process.

    `number` of `parts` is this rank among those that see other pictures; `group` are these, None for all ranks.
    """

    mode: Mode = "alone"
    number: int = 0
    parts: int = 1
    group: Any = None
    ddp: DistributedDataParallel | None = None

    @property
    def parted(self) -> bool:
        """Whether a rank holds less than the whole model."""
        return self.mode in ("fsdp", "tensor")

    def summed(self, tensor: Tensor) -> Tensor:
        """`tensor` added up over the ranks that see other pictures, in place."""
        return ranks.summed(tensor, self.group) if self.parts > 1 else tensor

    def pieces(self, wanted: int, batch_size: int) -> int:
        """In how many pieces every rank can cut its rows of a batch, at most `wanted`."""
        return min(wanted, *(len(rows_of(batch_size, number, self.parts)) for number in range(self.parts)))

    @contextlib.contextmanager
    def piece(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        """A forward and backward pass of a piece of the batch; gradients meet in the last one alone."""
        if self.mode == "fsdp":
            model.set_requires_gradient_sync(last)  # type: ignore[operator]
        apart: AbstractContextManager[Any] = contextlib.nullcontext()
        if self.ddp is not None and not last:
            apart = self.ddp.no_sync()
        with apart:
            yield

    def seeded(self, seed: int, step: int) -> None:
        """Dropout and stochastic depth drawn for this step and these pictures: by (seed, step, rank)."""
        if self.mode != "alone":
            words = np.random.SeedSequence([seed, step, self.number]).generate_state(2)
            torch.manual_seed(int(words[0]) << 32 | int(words[1]))

    def clip(self, model: nn.Module, limit: float) -> Tensor:
        """The norm of the whole gradient, which is scaled to `limit` where it is longer."""
        if self.parted:
            return shards.clip(model.parameters(), limit)
        on_mps = next(model.parameters()).device.type == "mps"
        return torch.nn.utils.clip_grad_norm_(model.parameters(), limit, foreach=not on_mps)

    def rested(self, model: nn.Module) -> None:
        """After a model was asked for answers: what it put together for them is parted again, lest it be kept."""
        if self.mode == "fsdp":
            model.reshard()  # type: ignore[operator]

    def meeting(self, model: nn.Module, objective: Objective) -> tuple[Spread, Objective]:
        """The spread and objective with which gradients meet: under ddp the objective goes through torch's wrapper."""
        if self.mode != "ddp":
            return self, objective
        work = DistributedDataParallel(Work(model, objective), gradient_as_bucket_view=True)

        def through(_: nn.Module, part: Part) -> tuple[Tensor, Tensor]:
            each, right = work(part.images, part.targets, part.draws)
            return each, right

        return replace(self, ddp=work), through


ALONE = Spread()


class Work(nn.Module):
    """A model and its objective as one module, so that what wraps a module sees a single forward pass."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, images: Tensor, targets: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each picture, and which answers are right."""
        return self._objective(self.model, Part(images=images, targets=targets, draws=draws))


def chosen(config: Config, num_parameters: int, memory_bytes: int) -> tuple[Mode, str]:
    """How the ranks share the work, and a sentence for the user. `memory_bytes`: of the device that has the least."""
    world, own = ranks.here().world, config.parallel
    if world == 1:
        return "alone", ""
    parts = world // own.tensor
    if own.tensor > 1:
        others = f", and {parts} such groups shard what each holds (fsdp)" if parts > 1 else ""
        return ("fsdp" if parts > 1 else "tensor"), f"{world} ranks: {own.tensor} share every layer{others}"
    needed = num_parameters * BYTES_OF_A_NUMBER
    mode = own.mode
    if mode == "auto":
        mode = "ddp" if needed <= SHARE * memory_bytes or config.mode != "full" else "fsdp"
    what = "each holds the whole model (ddp)" if mode == "ddp" else "each holds a share of the model (fsdp)"
    why = "" if own.mode != "auto" else f": training it takes {needed / 2**30:.1f} of {memory_bytes / 2**30:.1f} GiB"
    return mode, f"{world} ranks, {config.batch_size} pictures a step in all; {what}{why}"


def check(config: Config, world: int, batch_size: int) -> None:
    """Raise `UsageError` for what cannot be spread over `world` ranks so; `batch_size` is that of a step."""
    own, model = config.parallel, config.model
    if world == 1:
        return  # a run that several ranks began may go on in one process
    if own.tensor > 1:
        if world % own.tensor:
            raise UsageError(f"--parallel.tensor {own.tensor}: {world} ranks cannot be grouped so. Give a divisor.")
        if world > own.tensor and own.mode == "ddp":
            raise UsageError("--parallel.mode ddp: groups that share layers shard what each holds. Use fsdp or auto.")
        _require_divisible(config)
    if own.tensor > 1 or own.mode == "fsdp":
        way = f"--parallel.tensor {own.tensor}" if own.tensor > 1 else "--parallel.mode fsdp"
        if config.mode != "full":
            raise UsageError(f"{way}: not where a part of the model learns (--mode {config.mode}). Use ddp.")
        if config.optim.name == "muon":
            raise UsageError(f"{way}: muon works on whole matrices. Use ddp, or --optim.name adamw or lamb.")
        if model.family == "resnet":
            raise UsageError(f"{way}: is for a ViT or a hybrid. Use ddp.")
        if config.compile == "on":
            raise UsageError(f"{way}: not together with --compile on. Use --compile off, or ddp.")
    parts = world // own.tensor
    if (batch_size + 1) // 2 < parts:
        raise UsageError(
            f"--batch-size {batch_size}: a step's pictures go in pairs to {parts} ranks. Give {2 * parts} or more."
        )


def _require_divisible(config: Config) -> None:
    model, size = config.model, config.parallel.tensor
    if model.family == "resnet" or model.pos_embed.startswith("rel") or model.qk_norm:
        raise UsageError(
            f"--parallel.tensor {size}: is for a ViT without relative positions and qk_norm. Use --parallel.mode fsdp."
        )
    for what, number in (("num_heads", model.num_heads), ("mlp_dim", model.mlp_dim)):
        if number % size:
            raise UsageError(f"--parallel.tensor {size}: {what} = {number} cannot be shared so. Give a divisor.")


def spread(
    mode: Mode, modules: list[nn.Module], config: Config, device: torch.device, dtype: torch.dtype | None
) -> Spread:
    """The spread of that mode; `modules`, the model and its average, are parted in place where it says so."""
    place, size = ranks.here(), config.parallel.tensor
    if mode == "alone":
        return ALONE
    if mode == "ddp":
        return Spread(mode=mode, number=place.rank, parts=place.world)
    from torch.distributed.device_mesh import init_device_mesh

    if size == 1:
        mesh = init_device_mesh(device.type, (place.world,), mesh_dim_names=(DATA,))
    else:
        mesh = init_device_mesh(device.type, (place.world // size, size), mesh_dim_names=(DATA, TENSOR))
        for module in modules:
            share_layers(module, mesh[TENSOR])
    if mode == "fsdp":
        for module in modules:
            shard(module, mesh[DATA], dtype)
    return Spread(mode=mode, number=place.rank // size, parts=place.world // size, group=mesh.get_group(DATA))


def share_layers(module: nn.Module, mesh: Any) -> None:
    """Part every block's heads and MLP among the ranks of `mesh`, in place."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    network = getattr(module, "network", module)
    assert isinstance(network, VisionTransformer)
    for block in network.blocks:
        shards.regroup(block.attn.qkv, 3, mesh.size())
        shards.regroup(block.mlp.fc1, 2 if network.config.mlp_layer == "swiglu" else 1, mesh.size())
        block.attn.num_heads //= mesh.size()
        plan = {
            "attn.qkv": ColwiseParallel(), "attn.proj": RowwiseParallel(),
            "mlp.fc1": ColwiseParallel(), "mlp.fc2": RowwiseParallel(),
        }  # fmt: skip
        parallelize_module(block, mesh, plan)


def shard(module: nn.Module, mesh: Any, dtype: torch.dtype | None) -> None:
    """Shard every block by itself, and all the rest together, over the ranks of `mesh`, in place.

    Under autocast the matrices of blocks travel in its type, in which products take them anyway, and norms by
    themselves in float32, in which they are computed; gradients meet in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    network = cast(VisionTransformer, getattr(module, "network", module))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in network.blocks:
        if dtype is not None:
            fully_shard(block.mlp, mesh=mesh, mp_policy=policy)
            if not network.config.qk_norm and block.attn.rel_pos is None:
                fully_shard(block.attn, mesh=mesh, mp_policy=policy)
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    if module is network:
        for name in ("forward_features", "forward_head"):
            register_fsdp_forward_method(module, name)


def memory_of_all(memory_bytes: int, device: torch.device, tensor: int) -> int:
    """What a batch may fill: as many times what the least device has as there are ranks with pictures of their own, of
    which `tensor` share them. The ranks of a machine share its memory where they have no devices of their own."""
    place = ranks.here()
    least = min(ranks.each(memory_bytes // (place.locals_ if device.type == "cpu" else 1)))
    return int(least) * max(1, place.world // tensor)


def of_one(config: Config, num_train: int) -> Config:
    """`config` with the batch that one rank sees of a step, which has `num_train` pictures at most."""
    parts = max(1, ranks.here().world // config.parallel.tensor)
    if parts == 1:
        return config
    share = max(1, -(-min(config.batch_size, num_train) // parts))
    return replace(config, batch_size=share, accumulate=min(config.accumulate, share))
