"""The network inside whatever is trained: its tensors, its parameters' own names."""

from __future__ import annotations

from torch import Tensor, nn

from vitrine.train import lora, shards

_INSIDE = "network."


def plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the network alone, by its own names, adapters merged: what a bundle holds.

    That of a module with an attribute `network` is that one; any other is the network itself. Those of a model parted
    among ranks are on rank 0 alone, and all ranks call it together.
    """
    network = getattr(module, "network", module)
    return shards.whole(network) if shards.is_parted(network) else lora.without_factors(network)


def plain_names(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Every parameter of `module`, those of the network inside by their own names: layers and decay go by these."""
    inside = hasattr(module, "network")
    return [(name.removeprefix(_INSIDE) if inside else name, p) for name, p in module.named_parameters()]
