"""Twenty seeded training steps of a toy model, the figures of `tests/golden/twenty_steps.json`.

python -m tests.models.twenty_steps > tests/golden/twenty_steps.json
"""

from __future__ import annotations

import json
import platform
import sys

import torch
import torch.nn.functional as F

from tests.models.toys import pictures, toy_config
from vitrine.models.vit import VisionTransformer

COMMAND = "python -m tests.models.twenty_steps > tests/golden/twenty_steps.json"


def train(model: VisionTransformer, images: torch.Tensor, labels: torch.Tensor, num_steps: int) -> list[float]:
    """The loss before each of `num_steps` AdamW updates."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    losses = []
    for _ in range(num_steps):
        loss = F.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def losses() -> list[float]:
    """The twenty losses. All randomness is drawn on the CPU from seed 0."""
    torch.manual_seed(0)
    model = VisionTransformer(toy_config()).train()
    return train(model, pictures(8, 3, 32, 32), torch.arange(8) % 5, 20)


if __name__ == "__main__":
    record = {
        "command": COMMAND,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "losses": [round(loss, 7) for loss in losses()],
    }
    json.dump(record, sys.stdout, indent=2)
    print()
