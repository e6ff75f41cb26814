"""From tokens to one vector a picture, and the hidden layer of the pre-training head."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrine.config.architecture import ModelConfig, Pooling
from vitrine.models.positions import vectors


def pool(tokens: Float[Tensor, "B N D"], how: Pooling, num_prefix_tokens: int) -> Float[Tensor, "B D"]:
    """The class token, or the mean over the patch tokens.

    The two means differ in what the model did before: `norm_then_avg` (big_vision) has normalised the
    tokens already, `avg_then_norm` (timm's avg) normalises this mean afterwards.
    """
    return tokens[:, 0] if how == "token" else tokens[:, num_prefix_tokens:].mean(dim=1)


class PreLogits(nn.Module):
    """The hidden layer of the pre-training head (section 3.1: "a MLP with one hidden layer").

    The released code and weights have tanh here (`representation_act = "tanh"`); descriptions that carry
    over the encoder's MLP have GELU. It is dropped for fine-tuning.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.embed_dim, config.representation_size)
        self.act = torch.tanh if config.representation_act == "tanh" else F.gelu

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B R"]:
        """act(fc(x))."""
        return self.act(self.fc(x))


class AttentionPool(nn.Module):
    """One learned query that attends to the patches, and an MLP: the MAP head of "Scaling Vision Transformers".

    x = MHA(latent, tokens), y = x + MLP(LN(x)) (arXiv:2106.04560, section 3.2; big_vision's `MAPHead`): there is
    no residual around the attention and no norm before it. Parameter names are timm's.
    """

    def __init__(self, config: ModelConfig, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        D = config.embed_dim
        self.num_heads = config.num_heads
        self.latent = vectors(1, 1, D)
        self.q, self.kv, self.proj = nn.Linear(D, D), nn.Linear(D, 2 * D), nn.Linear(D, D)
        self.norm = nn.LayerNorm(D, eps=config.norm_eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(D, config.mlp_dim), "fc2": nn.Linear(config.mlp_dim, D)})
        self.act = act

    def heads(
        self, tokens: Float[Tensor, "B N D"]
    ) -> tuple[Float[Tensor, "B h 1 d"], Float[Tensor, "B h N d"], Float[Tensor, "B h N d"]]:
        """The latent's query, and keys and values of the tokens, of every head."""
        B, N, _ = tokens.shape
        q = self.q(self.latent).reshape(1, 1, self.num_heads, -1).transpose(1, 2).expand(B, -1, -1, -1)
        k, v = self.kv(tokens).reshape(B, N, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """The pooled vector of each picture."""
        x = F.scaled_dot_product_attention(*self.heads(tokens))
        x = self.proj(x.transpose(1, 2).flatten(1))
        return x + self.mlp["fc2"](self.act(self.mlp["fc1"](self.norm(x))))
