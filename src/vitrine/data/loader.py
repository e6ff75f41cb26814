"""From pictures to batches: for training by step, for evaluation in order.

What a training step gets is a function of (seed, step) and of nothing else: neither of the number of worker
processes nor of the step at which the iterator begins. So a continued run gets what it would have got.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import Tensor

from vitrine.config.options import AugmentConfig, DataConfig, PreprocessConfig
from vitrine.data.ahead import by_processes, by_threads, processes_share_memory
from vitrine.data.blocks import block_order, blocked, is_far
from vitrine.data.scan import reason
from vitrine.data.sources import Source
from vitrine.data.store import Store
from vitrine.errors import BadData, Unavailable, VitrineError
from vitrine.images.augment import draw_table, draws, order, random_crop
from vitrine.images.mixing import rows_of
from vitrine.images.preprocess import preprocess as to_model

BATCHES_AHEAD = 8
"""Batches that threads make ahead, where no processes do."""

STEPS_AHEAD = 24
"""Steps whose pictures a source that is far away is told of before they are asked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """One step's pictures.

    `weights` is 0 for a picture that could not be read (its pixels are 0) and 1 for all others; `index` is
    the number of each in its source; `draws` are its uniform random numbers in [0, 1). `labels` are as in `Source`:
    a class number for each picture, or a row of 0 and 1.
    """

    images: UInt8[Tensor, "B C H W"] | Float32[Tensor, "B C H W"]
    labels: Int64[Tensor, " B"] | UInt8[Tensor, "B K"]
    weights: Float32[Tensor, " B"]
    index: Int64[Tensor, " B"]
    draws: Float64[Tensor, "B 16"] | None = None
    rows: Int64[np.ndarray, " B"] | None = None
    """Where these are some rows of a batch only, which; and of how many pictures that is."""
    whole: int = 0


def steps_per_epoch(num: int, batch_size: int) -> int:
    """Steps in one pass over `num` pictures: an incomplete last batch is dropped, but one always stays."""
    return max(1, num // batch_size)


def training(
    store: Store,
    source: Source,
    indices: Int64[np.ndarray, " n"],
    *,
    size: tuple[int, int],
    batch_size: int,
    seed: int,
    augment: AugmentConfig,
    squash: bool = False,
    first_step: int,
    last_step: int,
    num_workers: int,
    on_bad: Callable[[str, str], None],
    share: tuple[int, int] = (0, 1),
) -> Generator[Batch, None, None]:
    """The batches of steps `first_step` to `last_step` - 1: uint8 pictures of `size` (height, width).

    Step s belongs to epoch s // `steps_per_epoch`, which has its own order of `indices`; with `augment.repeats` each
    comes that often in a row, and the epoch ends before the others (DeiT's `RASampler`). `squash`: crops have
    the picture's own aspect ratio, for a model that is given stretched pictures. `on_bad(id, reason)` is called
    once for each picture that cannot be read. With `share` (k, n) of n above 1 a batch has `rows_of` of it alone.

    With `num_workers` above 0, that many processes make the batches, unless each would need a copy of pictures in
    memory, as where processes are not forked (macOS, Windows, Python 3.14 and later): then none does. Without
    processes, threads make the batches ahead where pictures must be decoded. Raises `Unavailable` if a process
    is killed.
    """
    if not len(indices):
        raise BadData(f"{source.name}: there are no pictures to train on. Add some, or choose smaller shares.")
    steps = Steps(
        store=store,
        source=source,
        indices=indices,
        size=size,
        batch_size=batch_size,
        seed=seed,
        augment=augment,
        squash=squash,
        share=share,
    )
    told: set[int] = set()
    for one in _made(steps, range(first_step, last_step), num_workers):
        for i, why in one.bad.items():
            if i not in told:
                told.add(i)
                on_bad(source.ids[i], why)
        readable = np.array([int(i) not in one.bad for i in one.index], np.float32)
        yield Batch(
            images=torch.from_numpy(one.images),
            labels=torch.from_numpy(source.labels[one.index]),
            weights=torch.from_numpy(readable),
            index=torch.from_numpy(one.index),
            draws=torch.from_numpy(one.draws),
            rows=one.rows,
            whole=one.whole,
        )


def _made(steps: Steps, wanted: range, num_workers: int) -> Iterator[Made]:
    """The pictures of the wanted steps, by processes, by threads, or as they are asked for."""
    heavy = steps.store.in_memory or not steps.source.encoded
    # What comes over a network would come to each process anew; threads share what has come.
    if num_workers and wanted and not is_far(steps.source.packed) and (processes_share_memory() or not heavy):
        return by_processes(steps.make, wanted, num_workers)
    return map(steps.make, wanted) if steps.store.in_memory else by_threads(steps.make, wanted, BATCHES_AHEAD)


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """A step's pictures as arrays, which travel between processes; `bad` gives reasons by number of the picture."""

    images: UInt8[np.ndarray, "B C H W"]
    index: Int64[np.ndarray, " B"]
    draws: Float64[np.ndarray, "B 16"]
    bad: dict[int, str]
    rows: Int64[np.ndarray, " B"] | None
    whole: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Steps:
    """The training batches of a run by step."""

    store: Store
    source: Source
    indices: Int64[np.ndarray, " n"]
    size: tuple[int, int]
    batch_size: int
    seed: int
    augment: AugmentConfig
    squash: bool = False
    share: tuple[int, int] = (0, 1)
    # The order and, for pictures of one size, the random numbers of the epochs at hand.
    _epoch: dict[int, tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, "m 16"] | None]] = field(default_factory=dict)

    def make(self, step: int) -> Made:
        """The pictures of that step; those that cannot be read are 0."""
        epoch, place = divmod(step, steps_per_epoch(len(self.indices), self.batch_size))
        ranked, table = self._of_epoch(epoch)
        self._soon(ranked, place)
        places = np.arange(len(ranked))[place * self.batch_size : (place + 1) * self.batch_size]
        whole, own = len(places), None
        if self.share[1] > 1:
            own = rows_of(whole, *self.share)
            places = places[own]
        chosen = ranked[places]
        rows = chosen + places % self.augment.repeats * len(self.source)  # of the draws: each copy has its own
        if table is not None:
            images = np.ascontiguousarray(self.store.gather(chosen).transpose(0, 3, 1, 2))
            return Made(images=images, index=chosen, draws=table[rows], bad={}, rows=own, whole=whole)
        numbers = np.stack([draws(self.seed, epoch, int(row)) for row in rows])
        images, bad = self._one_by_one(chosen, numbers)
        return Made(images=images, index=chosen, draws=numbers, bad=bad, rows=own, whole=whole)

    def _of_epoch(self, epoch: int) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, "m 16"] | None]:
        found = self._epoch.get(epoch)
        if found is None:
            times = self.augment.repeats
            ranked = self._ranked(epoch).repeat(times)[: len(self.indices)]
            table = draw_table(self.seed, epoch, len(self.source) * times) if self._ready() else None
            found = self._epoch[epoch] = ranked, table
            # Threads may be at work on the epoch before and the one after.
            for old in [number for number in tuple(self._epoch) if abs(number - epoch) > 1]:
                self._epoch.pop(old, None)
        return found

    def _ranked(self, epoch: int) -> Int64[np.ndarray, " n"]:
        """The order of an epoch: a matter of the source, never of the memory that a machine has, so that a run that is
        continued elsewhere gets what it would have got."""
        packed = blocked(self.source.packed)
        if packed is not None:
            return block_order(self.seed, epoch, self.indices, packed.blocks, packed.span)
        return order(self.seed, epoch, self.indices)

    def _soon(self, ranked: Int64[np.ndarray, " n"], place: int) -> None:
        """Tell a source that is far away what steps to come will ask for."""
        packed = blocked(self.source.packed)
        if packed is not None and packed.far:
            begin = (place + 1) * self.batch_size
            packed.soon(map(int, ranked[begin : begin + STEPS_AHEAD * self.batch_size]))

    def _ready(self) -> bool:
        """Whether the stored pictures are what the model gets, with nothing to crop or resize."""
        kept = self.store.sizes[self.indices]
        whole = self.augment.crop_min_area == 1 and self.store.uniform()
        return whole and bool((kept == self.size).all())

    def _one_by_one(
        self, chosen: Int64[np.ndarray, " B"], numbers: Float64[np.ndarray, "B 16"]
    ) -> tuple[UInt8[np.ndarray, "B C H W"], dict[int, str]]:
        images = np.zeros((len(chosen), self.store.channels, *self.size), np.uint8)
        bad: dict[int, str] = {}
        for place, i in enumerate(map(int, chosen)):
            try:
                pixels = self.store.pixels(i)
            except Unavailable:
                raise  # the network, not the picture
            except VitrineError as error:
                bad[i] = reason(error, self.source, i)
            else:
                images[place] = random_crop(pixels, self.size, numbers[place], self.augment, squash=self.squash).numpy()
        return images, bad


def evaluation(
    source: Source,
    indices: Int64[np.ndarray, " n"],
    preprocess: PreprocessConfig,
    settings: DataConfig,
    *,
    batch_size: int,
    keep: dict[int, Tensor] | None = None,
    on_bad: Callable[[str, str], None],
) -> Iterator[tuple[Float32[Tensor, "B C H W"], Int64[Tensor, " B"] | UInt8[Tensor, "B K"]]]:
    """Every readable picture of `indices` exactly once, in their order, with its label (or row of them), in batches.

    Pictures are decoded under the limits of `settings` and preprocessed as for prediction, by threads that
    work ahead. One that cannot be read is left out and told to `on_bad(id, reason)`. Tensors found in `keep`
    by number are taken from there, and new ones put there.
    """
    source = source.within(settings)

    def get(i: int) -> Float32[Tensor, "C H W"] | str:
        if keep is not None and i in keep:
            return keep[i]
        try:
            return torch.from_numpy(to_model(source.picture(i), preprocess))
        except Unavailable:
            raise
        except VitrineError as error:
            return reason(error, source, i)

    images: list[Tensor] = []
    labelled: list[int] = []
    numbers = [int(i) for i in indices]
    for i, image in zip(numbers, by_threads(get, numbers, depth=2 * batch_size), strict=True):
        if isinstance(image, str):
            on_bad(source.ids[i], image)
            continue
        if keep is not None:
            keep[i] = image
        images.append(image)
        labelled.append(i)
        if len(images) == batch_size:
            yield torch.stack(images), torch.from_numpy(source.labels[labelled])
            images, labelled = [], []
    if images:
        yield torch.stack(images), torch.from_numpy(source.labels[labelled])
