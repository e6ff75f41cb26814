"""A student that follows a teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.made import MODEL, bundle, small, trained
from tests.models.toys import randomise
from vitrine.config.distill import DistillConfig
from vitrine.config.options import Config, PreprocessConfig
from vitrine.config.text import from_dict
from vitrine.errors import BadConfig, BadData, NotFound, Stopped, UsageError
from vitrine.models.networks import network
from vitrine.train.distill import answering, distil, for_teacher, hard_loss, hash_of, matched, open_teacher, soft_loss
from vitrine.train.losses import soft_targets
from vitrine.train.objective import Part
from vitrine.weights.bundle import build, open_bundle, save

STUDENT: dict[str, Any] = {**MODEL, "distilled": True}


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_soft_loss_is_equation_2(temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    found = soft_loss(student, teacher, temperature)
    for i in range(6):
        p, q = ((z[i] / temperature).exp() / (z[i] / temperature).exp().sum() for z in (teacher, student))
        wanted = temperature**2 * sum(float(p[k]) * float((p[k] / q[k]).log()) for k in range(4))
        assert float(found[i]) == pytest.approx(wanted, rel=1e-12)


def test_the_soft_loss_is_deits_but_for_the_number_of_classes() -> None:
    student, teacher, T = logits(0), logits(1), 3.0
    summed = F.kl_div((student / T).log_softmax(1), (teacher / T).log_softmax(1), reduction="sum", log_target=True)
    theirs = summed * (T * T) / student.numel()
    torch.testing.assert_close(soft_loss(student, teacher, T).mean() / 4, theirs, rtol=1e-12, atol=0)


def test_the_hard_loss_is_that_of_the_teachers_answer() -> None:
    student, teacher = logits(0), logits(1)
    wanted = [-float(student[i].log_softmax(0)[teacher[i].argmax()]) for i in range(6)]
    torch.testing.assert_close(hard_loss(student, teacher), torch.tensor(wanted, dtype=torch.float64))


def config(**options: Any) -> Config:
    model = small(distilled=options.pop("distilled", False))
    distill = DistillConfig(teacher="t", **options)
    return Config(model=model, preprocess=PreprocessConfig(size=(16, 16)), distill=distill)


def part(n: int = 5) -> Part:
    generator = torch.Generator().manual_seed(3)
    targets = soft_targets(torch.arange(n) % 3, 3, 0.1)
    return Part(
        images=torch.randn(n, 3, 16, 16, generator=generator), targets=targets, draws=torch.zeros(n, 16).double()
    )


def a_teacher(**overrides: Any) -> Any:
    teacher = open_teacher_of(bundle(7, **overrides))
    return answering(teacher, config(kind="hard"), torch.device("cpu"))


def open_teacher_of(made: Any) -> Any:
    from vitrine.train.distill import Teacher

    order = tuple(range(made.model.num_classes))
    return Teacher(path="t", bundle=made, hash=hash_of(made), order=order)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_with_a_token_each_head_has_a_loss_of_its_own(kind: Any) -> None:
    """Equation 3 of DeiT for hard at alpha 1/2: 1/2 CE(Z_s, y) + 1/2 CE(Z_s, y_t), Z_s of either head."""
    settings = config(kind=kind, distilled=True, alpha=0.5 if kind == "hard" else 0.1, temperature=3.0)
    student, answer, one = randomise(network(settings.model), 1).train(), a_teacher(), part()
    found, right = distil(settings, answer)(student, one)
    tokens = student.forward_features(one.images)
    first, second = student.head(tokens[:, 0]), student.head_dist(tokens[:, 1])
    labels, wanted = one.targets, answer(one.images)
    assert not torch.allclose(first, second)
    by_label = -(labels * first.log_softmax(1)).sum(1)
    if kind == "hard":
        literal = 0.5 * by_label + 0.5 * F.cross_entropy(second, wanted.argmax(1), reduction="none")
    else:
        p = (wanted / 3).softmax(1)
        literal = 0.9 * by_label + 0.1 * 9 * (p * (p.log() - (second / 3).log_softmax(1))).sum(1)
    torch.testing.assert_close(found, literal, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(right, (student.eval()(one.images).argmax(1) == labels.argmax(1)).float())


def test_without_a_token_one_head_has_both_losses() -> None:
    settings = config(kind="hard", alpha=0.25)
    student, answer, one = randomise(network(settings.model), 1), a_teacher(), part()
    logits = student(one.images)
    literal = -0.75 * (one.targets * logits.log_softmax(1)).sum(1) + 0.25 * hard_loss(logits, answer(one.images))
    torch.testing.assert_close(distil(settings, answer)(student, one)[0], literal, atol=1e-6, rtol=1e-5)


def test_no_gradient_reaches_the_teacher_and_it_never_drops_anything() -> None:
    made, one = bundle(7, drop_rate=0.5), part()
    answer = answering(open_teacher_of(made), config(kind="hard"), torch.device("cpu"))
    first = answer(one.images.requires_grad_())
    assert not first.requires_grad
    assert torch.equal(first, answer(one.images))
    torch.testing.assert_close(first, build(made)(one.images).detach())


@pytest.mark.parametrize("channels", [(3, 3), (1, 3), (3, 1)])
def test_the_teacher_is_given_its_own_mean_channels_and_size(channels: tuple[int, int]) -> None:
    own = PreprocessConfig(size=(16, 16), mean=(0.2, 0.4, 0.6)[: channels[0]], std=(0.3, 0.2, 0.1)[: channels[0]])
    its = PreprocessConfig(size=(8, 24), mean=(0.5, 0.45, 0.4)[: channels[1]], std=(0.25,) * channels[1])
    pixels = torch.rand(2, channels[0], 16, 16)
    column = [torch.tensor(v)[:, None, None] for v in (own.mean, own.std, its.mean, its.std)]
    seen = for_teacher((pixels - column[0]) / column[1], own, its)
    if channels == (1, 3):
        pixels = pixels.expand(-1, 3, -1, -1)
    elif channels == (3, 1):
        pixels = 0.299 * pixels[:, :1] + 0.587 * pixels[:, 1:2] + 0.114 * pixels[:, 2:]
    smaller = F.interpolate(pixels, size=(8, 24), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(seen, (smaller - column[2]) / column[3], atol=1e-5, rtol=1e-5)


def test_a_teacher_of_the_same_preprocessing_is_given_the_very_pictures() -> None:
    pictures, own = torch.randn(2, 3, 16, 16), PreprocessConfig(size=(16, 16))
    assert for_teacher(pictures, own, own) is pictures


def test_classes_are_matched_by_name() -> None:
    made, one = bundle(7, class_names=("c", "a", "b")), part()
    teacher = matched(open_teacher_of(made), ("a", "b", "c"))
    found = answering(teacher, config(kind="hard"), torch.device("cpu"))(one.images)
    torch.testing.assert_close(found, build(made)(one.images).detach()[:, [1, 2, 0]])


@pytest.mark.parametrize("own", [("a", "b", "x"), ("a", "b", "c", "d"), ()])
def test_other_classes_are_refused_naming_both(own: tuple[str, ...]) -> None:
    made = bundle(7, class_names=own or ("a",), num_classes=len(own))
    with pytest.raises(UsageError) as caught:
        matched(open_teacher_of(made), ("a", "b", "c"))
    said = f"{len(own)} classes ({', '.join(own)})" if own else "no classes"
    assert said in str(caught.value) and "3 classes (a, b, c)" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "hard"}, "distill.kind = 'hard': needs distill.teacher"),
        ({"teacher": "x"}, "distill.teacher = 'x': needs distill.kind"),
        ({"kind": "hard", "teacher": "x", "alpha": 1.5}, "distill.alpha = 1.5"),
        ({"kind": "soft", "teacher": "x", "temperature": 0.0}, "distill.temperature = 0.0"),
        ({"kind": "softly"}, "distill.kind = 'softly'"),
    ],
)
def test_what_cannot_hold_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig) as caught:
        from_dict(DistillConfig, options, "distill.")
    assert said in str(caught.value)


def test_a_teacher_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"--distill\.teacher: .*nowhere"):
        open_teacher(DistillConfig(kind="hard", teacher=str(tmp_path / "nowhere")))
    assert open_teacher(DistillConfig()) is None


def test_the_hash_is_of_the_weights() -> None:
    made = bundle(1)
    other = {name: tensor.clone() for name, tensor in made.tensors.items()}
    assert hash_of(made) == hash_of(replace(made, tensors=dict(reversed(other.items()))))
    other["head.bias"][0] += 1
    assert hash_of(made) != hash_of(replace(made, tensors=other))


def test_a_student_learns_from_a_teacher_and_the_teacher_stays_outside(run: Path, tmp_path: Path) -> None:
    distill = {"kind": "soft", "teacher": str(run), "temperature": 2.0}
    outcome = trained(tmp_path / "r", epochs=2, distill=distill, model=STUDENT)
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    found = open_bundle(tmp_path / "r")
    assert found.model.distilled and found.model.global_pool == "token" and found.model.class_token
    assert set(found.tensors) == set(network(found.model).state_dict())
    assert found.provenance.teacher == f"{run} (weights {hash_of(open_bundle(run))})"
    assert found.run["distill"] == {"alpha": 0.5, **distill}
    assert outcome.test is not None and found.tensors["head_dist.weight"].any() and found.tensors["head.weight"].any()


def test_a_stopped_student_ends_bit_for_bit_and_the_teacher_must_be_the_same(
    run: Path, tmp_path: Path, signal_at: Callable[..., None]
) -> None:
    teacher = tmp_path / "teacher.safetensors"
    save(open_bundle(run), teacher)
    model = {**STUDENT, "drop_rate": 0.1}
    options: dict[str, Any] = {
        "epochs": 2, "model": model, "distill": {"kind": "hard", "teacher": str(teacher)}, "augment": {"mixup": 0.3}
    }  # fmt: skip
    trained(tmp_path / "a", **options)
    signal_at(5)
    with pytest.raises(Stopped):
        trained(tmp_path / "b", **options)
    changed = open_bundle(run)
    save(replace(changed, tensors={**changed.tensors, "head.bias": changed.tensors["head.bias"] + 1}), teacher)
    with pytest.raises(BadData, match=r"teacher .* has changed since this run began"):
        trained(tmp_path / "b", **options)
    save(open_bundle(run), teacher)
    trained(tmp_path / "b", **options)
    first, second = (open_bundle(tmp_path / name).tensors for name in "ab")
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_compiling_reaches_the_two_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda what: compiled.append(what) or what)
    distil(replace(config(kind="hard", distilled=True), compile="on"), a_teacher())
    assert [what.__name__ for what in compiled] == ["two_answers"]
