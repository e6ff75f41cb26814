"""Distillation: a student that learns from the labels and from a teacher, with or without a token for the latter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrine.config.distill import DistillConfig
from vitrine.config.options import Config, PreprocessConfig
from vitrine.errors import UsageError, VitrineError
from vitrine.images.augment import grey, normalised, pixels_of
from vitrine.machine import device as machine
from vitrine.models.vit import VisionTransformer, use_attention
from vitrine.train.losses import losses
from vitrine.train.objective import Objective, Part
from vitrine.weights.bundle import Bundle, build
from vitrine.weights.opening import open_model

Answer = Callable[[Tensor], Tensor]
"""Pictures as the student is given them to the teacher's logits for its classes, without gradients."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """A model that is followed: `path` as it was given, `hash` of its weights, `said` on how it was understood.

    `order` is where the classes of the data stand among its own.
    """

    path: str
    bundle: Bundle
    hash: str
    order: tuple[int, ...]
    said: tuple[str, ...] = ()


def open_teacher(settings: DistillConfig) -> Teacher | None:
    """The teacher that `settings` names, or None where there is none. Raises what `open_model` does."""
    if settings.kind == "none":
        return None
    try:
        found = open_model(settings.teacher)
    except VitrineError as error:
        raise type(error)(f"--distill.teacher: {error}") from error
    bundle = found.bundle
    how = f"its probabilities at temperature {settings.temperature:g}" if settings.kind == "soft" else "its answers"
    said = (f"teacher: {settings.teacher}, {found.title}; {settings.alpha:g} of the loss follows {how}", *found.said)
    order = tuple(range(bundle.model.num_classes))
    return Teacher(path=settings.teacher, bundle=bundle, hash=hash_of(bundle), order=order, said=said)


def matched(teacher: Teacher, class_names: tuple[str, ...], *, several: bool = False) -> Teacher:
    """The teacher with its answers in the order of `class_names`. Raises `UsageError` unless it has these classes, and
    where a picture may have several of them, in the data or to the teacher: what is followed is a softmax."""
    if several:
        raise UsageError(
            f"--distill.teacher {teacher.path}: a picture of the data may have several classes, and a teacher is "
            "followed where it has one. Leave --distill.kind and --distill.teacher out."
        )
    if teacher.bundle.multi_label:
        raise UsageError(
            f"--distill.teacher {teacher.path}: it answers with several classes a picture, and the data has one. Give "
            "a teacher that was trained on one class a picture."
        )
    own = teacher.bundle.class_names if teacher.bundle.model.num_classes else ()
    if len(own) != len(class_names) or set(own) != set(class_names):
        raise UsageError(
            f"--distill.teacher {teacher.path}: knows {_some(own)}, but the data has {_some(class_names)}. "
            "Give a teacher of the data's classes, under the same names."
        )
    return replace(teacher, order=tuple(own.index(name) for name in class_names))


def _some(names: tuple[str, ...]) -> str:
    """The number of classes and the first of them, as an error tells them."""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} classes ({shown})" if names else "no classes (it has no head)"


def hash_of(bundle: Bundle) -> str:
    """SHA-256, in hexadecimal, over names and bytes of the weights: the same for the same model in another file."""
    found = hashlib.sha256()
    for name, tensor in sorted(bundle.tensors.items()):
        found.update(f"{name} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def answering(teacher: Teacher, config: Config, device: torch.device) -> Answer:
    """The teacher at work on `device`: frozen, in evaluation mode, under whatever autocast the student has.

    It is given the same augmented and mixed pictures as the student (DeiT), by `for_teacher`.
    """
    model = build(teacher.bundle, device).requires_grad_(False)
    dtype = machine.autocast_dtype(device, config.precision)
    use_attention(model, machine.attention_way(device, dtype, teacher.bundle.model.num_tokens))
    if config.compile == "on":
        model.compile()
    order = torch.tensor(teacher.order, device=device)

    @torch.no_grad()
    def answer(images: Tensor) -> Tensor:
        seen = for_teacher(images, config.preprocess, teacher.bundle.preprocess)
        return cast(Tensor, model(seen)).float()[:, order]

    return answer


def for_teacher(
    images: Float[Tensor, "B C H W"], own: PreprocessConfig, its: PreprocessConfig
) -> Float[Tensor, "B c h w"]:
    """Pictures normalised as `own` says, as `its` says: other mean and deviation, channels, height and width.

    Grey goes to three equal channels, three to their grey; another size is reached bilinearly with antialias.
    """
    if own.channels != its.channels or (own.mean, own.std) != (its.mean, its.std):
        pixels = pixels_of(images, own)
        if its.channels < own.channels:
            pixels = grey(pixels)
        images = normalised(pixels.expand(-1, its.channels, -1, -1), its)
    if tuple(images.shape[2:]) != its.size:
        images = F.interpolate(images, size=its.size, mode="bilinear", antialias=True, align_corners=False)
    return images


def soft_loss(student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"], temperature: float) -> Float[Tensor, " B"]:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of each picture, in nats (arXiv:2012.12877, equation 2).

    DeiT's code divides this by the number of classes too (`losses.py` divides by `numel()`).
    """
    wanted, found = (teacher / temperature).log_softmax(1), (student / temperature).log_softmax(1)
    return temperature**2 * (wanted.exp() * (wanted - found)).sum(1)


def hard_loss(student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """Cross-entropy of each picture with the class that the teacher calls it (arXiv:2012.12877, equation 3)."""
    return F.cross_entropy(student, teacher.argmax(1), reduction="none")


def two_answers(
    model: nn.Module, images: Float[Tensor, "B C H W"]
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"]]:
    """The logits that learn the labels and those that learn the teacher: of both heads where there is a distillation
    token (arXiv:2012.12877, section 4), else the same ones."""
    if isinstance(model, VisionTransformer) and model.config.distilled:
        tokens = model.forward_features(images)
        return model.head(model.pooled(tokens)), model.head_dist(tokens[:, 1])
    logits = model(images)
    return logits, logits


def distil(config: Config, answer: Answer, class_weights: Float[Tensor, " K"] | None = None) -> Objective:
    """(1 - alpha) of the loss on the labels and alpha of that on the teacher's `answer`.

    Right is the class of the largest target, where the mean of both heads names it, as it will in use.
    """
    settings, answers = config.distill, two_answers
    if config.compile == "on" and config.model.distilled:
        answers = torch.compile(two_answers)  # a compiled model has its `forward` compiled, which is not called here

    def objective(model: nn.Module, part: Part) -> tuple[Tensor, Tensor]:
        logits, followed = (found.float() for found in answers(model, part.images))
        on_labels = losses(
            logits, part.targets, config.loss, threshold=config.target_threshold, class_weights=class_weights
        )
        wanted = answer(part.images)
        soft = settings.kind == "soft"
        on_teacher = soft_loss(followed, wanted, settings.temperature) if soft else hard_loss(followed, wanted)
        right = ((logits + followed).argmax(1) == part.targets.argmax(1)).float()
        return (1 - settings.alpha) * on_labels + settings.alpha * on_teacher, right

    return objective
