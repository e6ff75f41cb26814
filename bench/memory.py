"""The peak memory of one fine-tuning step, with blocks computed again on the way back and without.

    python bench/memory.py                                 # B/16 at 1,024 px, batch 1, float32
    python bench/memory.py --device cuda --bf16 --batch 16

Each way runs in a process of its own, whose peak is the high-water mark of resident memory on a CPU and torch's
max_memory_allocated on a GPU. What the process had before the model is told beside it. The last column is what the
formula says of the same step: four numbers a parameter (itself, gradient, two moments) and what `models.cost.num_kept`
counts for the batch. One JSON object on stdout, a table on stderr.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GIB = 2**30
WAYS = {"plain": False, "checkpointing": True}


def high_water() -> int:
    """Bytes of the most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One step of the way `given.way`, in this process."""
    import torch

    from vitrine.config.models import named
    from vitrine.config.options import Config, OptimConfig, PreprocessConfig
    from vitrine.machine import device as machine
    from vitrine.models.networks import network
    from vitrine.models.vit import use_attention
    from vitrine.train import modes, pace
    from vitrine.train.objective import classify
    from vitrine.train.optim import optimizer
    from vitrine.train.step import train_step

    device = torch.device(given.device)
    model = named(given.model, img_size=given.img_size, num_classes=given.classes)
    config = Config(
        model=model, preprocess=PreprocessConfig(size=model.size), optim=OptimConfig(name="adamw"), mode=given.mode,
        batch_size=given.batch, grad_checkpointing="on" if WAYS[given.way] else "off",
    )  # fmt: skip
    before = high_water()
    torch.manual_seed(0)
    net = network(model)
    modes.prepare(net, config)
    net.to(device).train()
    dtype = torch.bfloat16 if given.bf16 else None
    use_attention(net, machine.attention_way(device, dtype, model.num_tokens))
    optimiser, seconds, loss = optimizer(net, config.optim), 0.0, 0.0
    for _ in range(given.steps):
        began = time.perf_counter()
        result = train_step(
            net, optimiser, pace._batch(config), config, step=0, num_steps=10, dtype=dtype, objective=classify(config)
        )
        loss, seconds = float(result.loss), time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else high_water()
    return {"way": given.way, "peak_bytes": peak, "before_bytes": before, "step_s": seconds, "loss": loss}


def predicted(given: argparse.Namespace, checkpointing: bool) -> tuple[int, int]:
    """Bytes of a step by the formula, and pictures of a batch that would fit `--gib` by it."""
    from vitrine.config.models import named
    from vitrine.models.cost import num_parameters
    from vitrine.train.memory import kept_bytes

    model = named(given.model, img_size=given.img_size, num_classes=given.classes)
    fixed, each = 16 * num_parameters(model), kept_bytes(model, checkpointing=checkpointing)
    return fixed + given.batch * each, max(0, int((given.gib * GIB - fixed) / each))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--img-size", type=int, default=1024, help="pixels of a side")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1, help="pictures a step")
    parser.add_argument("--steps", type=int, default=1, help="the time told is that of the last")
    parser.add_argument("--mode", default="full", choices=["full", "head", "attention", "lora"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bf16", action="store_true", help="under autocast to bfloat16")
    parser.add_argument("--gib", type=float, default=24.0, help="memory that the largest batch is counted for")
    parser.add_argument("--ways", default="plain,checkpointing", help="comma-separated")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure each way in a process of its own, and show."""
    given = arguments()
    if given.way:
        print(json.dumps(measure(given)))
        return
    found = []
    for way in given.ways.split(","):
        words = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
        row = json.loads(done.stdout.splitlines()[-1])
        row["formula_bytes"], row["largest_batch"] = predicted(given, WAYS[way])
        found.append(row)
        print(
            f"{way:<14} peak {row['peak_bytes'] / GIB:6.2f} GiB, before {row['before_bytes'] / GIB:5.2f}, "
            f"formula {row['formula_bytes'] / GIB:6.2f}, {row['step_s']:7.1f} s a step, loss {row['loss']:.5f}; "
            f"{given.gib:g} GiB hold a batch of {row['largest_batch']}",
            file=sys.stderr,
        )
    print(json.dumps({"command": f"python bench/memory.py {' '.join(sys.argv[1:])}".strip(), "rows": found}, indent=2))


if __name__ == "__main__":
    main()
