"""The options of saving: how often the state of a run is kept, and how many states stay."""

from __future__ import annotations

from dataclasses import dataclass

from vitrine.config.field import check_choices, option, require


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """When a run saves, and which of its states stay in the folder."""

    every_s: float = option(15.0, "time between saves, which take a twentieth of the time at most", "seconds")
    every_steps: int = option(0, "save at every so many steps instead; 0 for by time", "steps")
    keep_last: int = option(2, "newest states that stay; with more than one a damaged file costs one interval")
    keep_every_steps: int = option(0, "save at every so many steps and keep these states for good; 0 for none", "steps")

    def __post_init__(self) -> None:
        check_choices(self, "save.")
        for name in ("every_s", "every_steps", "keep_every_steps"):
            require(getattr(self, name) >= 0, f"save.{name}", getattr(self, name), "must be 0 or more")
        require(self.keep_last >= 1, "save.keep_last", self.keep_last, "must be at least 1")
