"""A Vision Transformer written out number by number in float64: what every kind of positions is measured against.

It reads the parameters of a model by name and shares no code with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

Role = tuple[Any, ...]
"""("cls",), ("dist",), ("reg", number) or ("patch", row, column)."""


class Literal:
    """The tokens after the last block and the final norm, of one picture, in plain loops."""

    def __init__(self, model: nn.Module) -> None:
        self.config: Any = model.config
        self.state = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def tokens(self, image: Tensor) -> np.ndarray:
        config, x = self.config, image.double().numpy()
        p = config.patch_size
        self.grid = x.shape[1] // p, x.shape[2] // p
        self.roles: list[Role] = [("cls",)] * config.class_token + [("dist",)] * config.distilled
        self.roles += [("reg", number) for number in range(config.reg_tokens)]
        self.roles += [("patch", row, column) for row in range(self.grid[0]) for column in range(self.grid[1])]
        z = [self.start(role, x, p) for role in self.roles]
        if config.pos_at == "input":
            z = [token + self.added(role, 0) for token, role in zip(z, self.roles, strict=True)]
        for layer in range(config.depth):
            if config.pos_at != "input":
                own = layer if config.pos_at == "layers" else 0
                z = [token + self.added(role, own) for token, role in zip(z, self.roles, strict=True)]
            attended = self.attention(layer, [self.norm(f"blocks.{layer}.norm1", token) for token in z])
            z = [token + more for token, more in zip(z, attended, strict=True)]
            z = [token + self.mlp(layer, self.norm(f"blocks.{layer}.norm2", token)) for token in z]
        return np.array([self.norm("norm", token) for token in z])

    def start(self, role: Role, image: np.ndarray, p: int) -> np.ndarray:
        match role:
            case ("cls",):
                return self.state["cls_token"][0, 0]
            case ("dist",):
                return self.state["dist_token"][0, 0]
            case ("reg", number):
                return self.state["reg_token"][0, number]
        _, row, column = role
        patch = image[:, row * p : row * p + p, column * p : column * p + p]
        return self.linear("patch_embed.proj", patch.reshape(-1))

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        weight = self.state[f"{name}.weight"]
        return weight.reshape(len(weight), -1) @ x + self.state[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean()
        deviation = math.sqrt((centred**2).mean() + self.config.norm_eps)
        return centred / deviation * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def mlp(self, layer: int, x: np.ndarray) -> np.ndarray:
        hidden = self.linear(f"blocks.{layer}.mlp.fc1", x)
        gelu = np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in hidden])
        return self.linear(f"blocks.{layer}.mlp.fc2", gelu)

    # Positions that are added

    def place(self, role: Role) -> int | None:
        """The place of a token among those that have one, None if it has none."""
        named = [] if self.config.no_embed_class else [r for r in self.roles if r[0] in ("cls", "dist")]
        placed = named + [r for r in self.roles if r[0] == "patch"]
        return placed.index(role) if role in placed else None

    def added(self, role: Role, layer: int) -> np.ndarray:
        D, kind, place = self.config.embed_dim, self.config.pos_embed, self.place(role)
        nothing = np.zeros(D)
        if place is None:
            return nothing
        if kind == "learn":
            return self.state["pos_embed"][layer, place]
        if kind == "sincos1d":
            made = nothing.copy()
            for i in range(D // 2):
                made[2 * i] = math.sin(place / 10000 ** (2 * i / D))
                made[2 * i + 1] = math.cos(place / 10000 ** (2 * i / D))
            return made
        if kind == "learn2d":
            if role[0] != "patch":
                return self.state["pos_embed.named"][layer, place]
            return np.concatenate(
                [self.state["pos_embed.x"][layer, role[2]], self.state["pos_embed.y"][layer, role[1]]]
            )
        if kind in ("sincos2d", "sincos2d_mae") and role[0] == "patch":
            steps = D // 4 - (kind == "sincos2d")
            made = []
            for side in (role[2], role[1]):
                angles = [side * 10000 ** (-i / steps) for i in range(D // 4)]
                made += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            return np.array(made)
        return nothing

    # Positions inside the attention

    def attention(self, layer: int, z: Sequence[np.ndarray]) -> list[np.ndarray]:
        h, d, N = self.config.num_heads, self.config.width_of_head, len(z)
        q, k, v = np.split(np.array([self.linear(f"blocks.{layer}.attn.qkv", x) for x in z]).reshape(N, 3, h, d), 3, 1)
        mixed = np.zeros((N, h, d))
        for head in range(h):
            for i in range(N):
                logits = []
                for j in range(N):
                    query, key = (self.turned(x[t, 0, head], t) for x, t in ((q, i), (k, j)))
                    logits.append(query @ key / math.sqrt(d) + self.more_logit(layer, head, q[i, 0, head], i, j))
                exponents = [math.exp(logit - max(logits)) for logit in logits]
                for j in range(N):
                    share = exponents[j] / sum(exponents)
                    mixed[i, head] += share * (v[j, 0, head] + self.more_value(layer, i, j))
        return [self.linear(f"blocks.{layer}.attn.proj", mixed[i].reshape(-1)) for i in range(N)]

    def turned(self, x: np.ndarray, token: int) -> np.ndarray:
        role, d = self.roles[token], len(x)
        if self.config.pos_embed != "rope2d" or role[0] != "patch":
            return x
        centre = [2 * (role[1 + axis] + 0.5) / self.grid[axis] - 1 for axis in (0, 1)]
        made = np.zeros(d)
        for m in range(d // 2):
            axis, number = divmod(m, d // 4)
            angle = 2 * math.pi * centre[axis] / self.config.rope_theta ** (4 * number / d)
            first, second = x[m], x[m + d // 2]
            made[m] = first * math.cos(angle) - second * math.sin(angle)
            made[m + d // 2] = second * math.cos(angle) + first * math.sin(angle)
        return made

    def row(self, i: int, j: int, offsets: int, offset: int) -> int | None:
        """The row of a relative table for query i and key j; None where nothing is added."""
        from_prefix, to_prefix = self.roles[i][0] != "patch", self.roles[j][0] != "patch"
        if not from_prefix and not to_prefix:
            return offset
        if self.config.no_embed_class:
            return None
        return offsets + (2 if from_prefix and to_prefix else 0 if from_prefix else 1)

    def named(self, layer: int, name: str) -> np.ndarray:
        own = self.config.pos_at == "layers"
        return self.state[f"blocks.{layer}.attn.rel_pos.{name}" if own else f"shared_rel_pos.{name}"]

    def number(self, token: int) -> int:
        """Row by row, among the patches."""
        return self.roles[token][1] * self.grid[1] + self.roles[token][2] if self.roles[token][0] == "patch" else 0

    def clipped(self, i: int, j: int) -> int:
        k = self.config.pos_clip
        return max(-k, min(k, self.number(j) - self.number(i))) + k

    def more_logit(self, layer: int, head: int, query: np.ndarray, i: int, j: int) -> float:
        kind, d = self.config.pos_embed, len(query)
        rows, columns = self.grid
        if kind == "rel_bias2d":
            both = self.roles[i][0] == self.roles[j][0] == "patch"
            down, across = (self.roles[i][a] - self.roles[j][a] if both else 0 for a in (1, 2))
            wide = 2 * columns - 1
            row = self.row(i, j, (2 * rows - 1) * wide, (down + rows - 1) * wide + across + columns - 1)
            return 0.0 if row is None else self.named(layer, "relative_position_bias_table")[row, head]
        if kind == "rel1d":
            patches = rows * columns
            row = self.row(i, j, 2 * patches - 1, self.number(i) - self.number(j) + patches - 1)
            return 0.0 if row is None else query @ self.named(layer, "keys")[row].reshape(-1, d)[head] / math.sqrt(d)
        if kind == "rel_shaw":
            row = self.row(i, j, 2 * self.config.pos_clip + 1, self.clipped(i, j))
            return 0.0 if row is None else query @ self.named(layer, "keys")[row] / math.sqrt(d)
        return 0.0

    def more_value(self, layer: int, i: int, j: int) -> np.ndarray | float:
        if self.config.pos_embed != "rel_shaw":
            return 0.0
        row = self.row(i, j, 2 * self.config.pos_clip + 1, self.clipped(i, j))
        return 0.0 if row is None else self.named(layer, "values")[row]
