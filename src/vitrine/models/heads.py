"""From tokens to one vector a picture, and the hidden layer of the pre-training head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrine.config.options import ModelConfig, Pooling


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
