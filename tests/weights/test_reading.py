from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.weights.strangers import entry, safetensors, tensors
from vitrine.errors import BadData, DiskError, NotFound, UsageError
from vitrine.weights import quarantine, unpack
from vitrine.weights.reading import choose, read_raw


def same(found: Any, wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_safetensors_under_any_name(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a.pth", metadata={"format": "pt"})
    raw = read_raw(tmp_path / "a.pth", {"num_heads": 3})
    assert (raw.kind, raw.path, raw.metadata, raw.given) == (
        "safetensors", str(tmp_path / "a.pth"), {"format": "pt"}, {"num_heads": 3},
    )  # fmt: skip
    same(raw.tensors, tensors())


def test_safetensors_are_mapped_and_writing_to_them_reaches_no_file(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1 << 20)}, tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    tensor = read_raw(tmp_path / "a").tensors["w"]
    tensor += 1
    assert (tmp_path / "a").read_bytes() == before
    (tmp_path / "a").unlink()
    assert float(tensor.sum()) == 1 << 20


def test_safetensors_with_tensors_at_odd_places(tmp_path: Path) -> None:
    values = np.arange(3, dtype=np.float32)
    entries = {"odd": entry(0, 1, [1], "U8"), "w": entry(1, 13)}
    (tmp_path / "a").write_bytes(safetensors(entries, b"\x05" + values.tobytes()))
    raw = read_raw(tmp_path / "a")
    same(raw.tensors, {"odd": torch.tensor([5], dtype=torch.uint8), "w": torch.from_numpy(values)})


def test_a_link_is_followed(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a")
    (tmp_path / "b").symlink_to("a")
    same(read_raw(tmp_path / "b").tensors, tensors())


def test_npz(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "Transformer/x/kernel": rng.normal(size=(3, 4)).astype(np.float32),
        "turned": np.asfortranarray(rng.normal(size=(3, 4))),
        "big": rng.integers(0, 9, (2, 3)).astype(">i4"),
        "half": rng.normal(size=5).astype(np.float16),
        "u2": np.array([65535], np.uint16),
        "u4": np.array([2**32 - 1], np.uint32),
        "flag": np.array(True),
        "empty": np.zeros((0, 3), np.float32),
    }
    wanted = {name: torch.from_numpy(np.array(array, array.dtype.newbyteorder("="))) for name, array in arrays.items()
              if name[0] != "u"}  # fmt: skip
    wanted |= {"u2": torch.tensor([65535], dtype=torch.int32), "u4": torch.tensor([2**32 - 1])}
    wanted["bf16"] = torch.randn(4, 2).bfloat16()
    arrays["bf16"] = wanted["bf16"].view(torch.int16).numpy().view("V2")
    for name, write in (("plain", np.savez), ("packed", np.savez_compressed)):
        write(tmp_path / name, author=np.array("me"), **arrays)  # type: ignore[arg-type]
        raw = read_raw(tmp_path / f"{name}.npz")
        assert (raw.kind, raw.metadata, raw.said) == ("npz", {"author": "me"}, ())
        same(raw.tensors, wanted)


def test_mistake_6_two_raw_bytes_are_jaxs_bfloat16(tmp_path: Path) -> None:
    wanted = torch.randn(4, 2).bfloat16()
    np.savez(tmp_path / "a", kernel=wanted.view(torch.int16).numpy().view("V2"))
    same(read_raw(tmp_path / "a.npz").tensors, {"kernel": wanted})


def test_a_part_is_asked_only_of_a_file_that_has_parts(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "a")
    np.savez(tmp_path / "b", w=np.ones(1, np.float32))
    for name in ("a", "b.npz"):
        with pytest.raises(UsageError, match=rf"--entry model: .*{name} has no parts.* Leave --entry out"):
            read_raw(tmp_path / name, entry="model")


def test_a_web_page_is_told_in_any_spelling(tmp_path: Path) -> None:
    for start in ("<!DOCTYPE html>", "\n  <!doctype html>", "<HTML>"):
        (tmp_path / "a.pth").write_text(f"{start}<title>Not found</title>")
        with pytest.raises(BadData, match="it is a web page"):
            read_raw(tmp_path / "a.pth")


def test_a_folder_of_folders_is_named_with_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(NotFound, match=r"It has snapshots/; wanted is"):
        read_raw(tmp_path)


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(NotFound, match="the link leads in a circle"):
        read_raw(tmp_path / "loop")


def save_torch(value: Any, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_training_file_of_torch(tmp_path: Path, zipped: bool) -> None:
    made = {
        "epoch": 3,
        "args": argparse.Namespace(model="vit", lr=0.1),
        "model": OrderedDict((f"module.{name}", tensor) for name, tensor in tensors().items()),
        "model_ema": {name: tensor + 1 for name, tensor in tensors().items()},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
    }
    path = save_torch(made, tmp_path / "a.safetensors", _use_new_zipfile_serialization=zipped)
    raw = read_raw(path)
    assert (raw.kind, raw.wrapper) == ("torch", "model")
    assert raw.said == (
        "weights: the entry 'model' of the file; it also has model_ema",
        "names: 'module.' taken from the beginning of each",
    )
    same(raw.tensors, tensors())


def test_the_average_where_it_is_asked_for(tmp_path: Path) -> None:
    path = save_torch({"model": {"w": torch.ones(2)}, "model_ema": {"w": torch.zeros(2)}}, tmp_path / "a")
    raw = read_raw(path, entry="model_ema")
    assert (raw.wrapper, raw.said) == ("model_ema", ())
    assert not raw.tensors["w"].any()


W = {"w": torch.ones(2)}
V = {"w": torch.zeros(2), "n": 3}


@pytest.mark.parametrize(
    ("made", "entry", "wrapper"),
    [
        (W, "", ""),
        ({"state_dict": W}, "", "state_dict"),
        ({"state_dict": W, "state_dict_ema": V}, "", "state_dict"),
        ({"teacher": W, "student": V}, "", "teacher"),
        ({"student": V, "model": {"state_dict": W}, "optimizer": {"model": V}}, "", "model.state_dict"),
        ({"encoder": W, "epoch": 3}, "", "encoder"),
        ({"model": V, "model_ema": W}, "model_ema", "model_ema"),
        ({"model": V, "model_ema": {"module": W}}, "model_ema.module", "model_ema.module"),
        ({"loss": 0.5, "ema": W, "module": V}, "ema", "ema"),
    ],
)
def test_what_is_taken_of_a_training_file(made: Any, entry: str, wrapper: str) -> None:
    found, name, others = unpack.unwrapped(made, entry)
    assert name == wrapper
    assert torch.equal(found["w"], torch.ones(2))
    assert wrapper not in others


@pytest.mark.parametrize(
    ("made", "entry", "said"),
    [
        ([1, 2], "", "a list, and no table"),
        (torch.ones(2), "", "a Tensor, and no table"),
        ({"epoch": 3, "lr": 0.1}, "", "a dict of 'epoch', 'lr', and no table"),
        ({}, "", "a dict of , and no table|a dict"),
        ({"a": W, "b": V}, "", "several tables of tensors, 'a', 'b'"),
        ({"model": W}, "ema", "no entry 'ema' with tensors. It has: 'model'"),
        ({1: W}, "", "no table"),
    ],
)
def test_what_holds_no_table_of_tensors_is_refused(made: Any, entry: str, said: str) -> None:
    with pytest.raises(unpack.RefusedError, match=said):
        unpack.unwrapped(made, entry)


def test_a_whole_module_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = save_torch(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(Exception, match=r"\.Linear") as caught:
        unpack.from_torch(path, "", 1 << 30)
    said = unpack.reason(caught.value)
    assert said.startswith("it holds an object of torch.nn.modules.linear.Linear, which only running code")
    assert "Save the model's state_dict" in said


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, 3).half()
        self.sizes = [1, 2]
        self.register_buffer("n", torch.tensor(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + self.n


def test_a_torchscript_program_gives_its_weights_and_runs_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that torch.jit is old; files of it remain
        module = torch.nn.Sequential(Inner(), torch.nn.LayerNorm(3))
        torch.jit.script(module).save(str(tmp_path / "a.pt"))
    same(read_raw(tmp_path / "a.pt").tensors, module.state_dict())


def test_torch_types_that_are_not_read(tmp_path: Path) -> None:
    path = save_torch({"w": torch.ones(2), "z": torch.ones(2, dtype=torch.complex64)}, tmp_path / "a.pt")
    with pytest.raises(unpack.RefusedError, match="z is of type complex64"):
        unpack.from_torch(path, "", 1 << 30)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\x80\x04K\x01.", "a stream of Python objects"),
        (b"nothing known at all", "not a safetensors file, nor numpy's"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(BadData, match=said):
        read_raw(tmp_path / "a.pt")


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as transformers writes it."""
    save_file(tensors(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "id2label": {"0": "é"}}))
    (tmp_path / "preprocessor_config.json").write_text('{"do_resize": true}')
    return tmp_path


def test_a_folder_with_its_facts(folder: Path) -> None:
    for path in (folder, folder / "model.safetensors", str(folder)):
        raw = read_raw(path)
        assert raw.config == {"model_type": "vit", "id2label": {"0": "é"}}
        assert raw.preprocessor == {"do_resize": True}
        assert raw.path == str(path)
        same(raw.tensors, tensors())


def test_a_file_of_another_name_has_no_facts_of_its_neighbours(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    assert read_raw(folder / "other.safetensors").config == {}


def test_a_folder_of_open_clip(folder: Path) -> None:
    (folder / "open_clip_config.json").write_text('{"model_cfg": {}}')
    assert read_raw(folder).config["model_type"] == "vit"
    (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    assert read_raw(folder).config == {"model_cfg": {}}
    (folder / "config.json").unlink()
    assert read_raw(folder).config == {"model_cfg": {}}


def test_a_model_in_shards(folder: Path) -> None:
    parts = [dict(list(tensors().items())[::2]), dict(list(tensors().items())[1::2])]
    (folder / "model.safetensors").unlink()
    table: dict[str, str] = {}
    for i, part in enumerate(parts):
        save_file(part, folder / f"model-{i}.safetensors")
        table |= dict.fromkeys(part, f"model-{i}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))
    raw = read_raw(folder)
    same(raw.tensors, tensors())
    assert raw.config["model_type"] == "vit"
    index.write_text(json.dumps({"weight_map": {**table, "w": "model-1.safetensors"}}))
    with pytest.raises(BadData, match="does not hold the tensors"):
        read_raw(folder)
    index.write_text(json.dumps({"weight_map": table}))
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(NotFound, match="model-1"):
        read_raw(folder)
    index.write_text('{"weight_map": [1]}')
    with pytest.raises(BadData, match="no weight_map"):
        read_raw(folder)


def test_which_file_of_a_folder_is_read() -> None:
    assert choose(["pytorch_model.bin", "model.safetensors", "x.npz"], "f") == "model.safetensors"
    assert choose(["README.md", "B_16.npz"], "f") == "B_16.npz"
    assert choose([".hidden.pt", "a.pth"], "f") == "a.pth"
    with pytest.raises(UsageError, match=r"several files hold weights: a\.npz, b\.pt\. Name one"):
        choose(["a.npz", "b.pt"], "f")
    with pytest.raises(NotFound, match=r"there are no weights here. It has README\.md"):
        choose(["README.md"], "f")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_file_that_may_not_be_read(folder: Path) -> None:
    (folder / "model.safetensors").chmod(0)
    with pytest.raises(Exception, match="may not be read"):
        read_raw(folder)


def test_the_published_files_of_others_are_read() -> None:
    place = Path("/work/shared/data/weights")
    if not place.is_dir():
        pytest.skip("these files lie beside the tree")
    npz = read_raw(place / "derived_timm_layout/vit_cifar10_p4_d64_l4_h8.npz").tensors
    same(read_raw(place / "derived_timm_layout/vit_cifar10_p4_d64_l4_h8.safetensors").tensors, dict(npz))
    assert len(read_raw(place / "ustb_vit_mnist/model.pth").tensors) == 44


def test_a_header_whose_length_begins_as_a_stream_of_objects_does(tmp_path: Path) -> None:
    """The first byte of a safetensors file is the low one of a length: 0x80 is as good as any other."""
    w = torch.arange(3.0)
    for pad in range(0, 256, 8):
        save_file({"w": w}, tmp_path / "a", metadata={"pad": "x" * pad})
        if (tmp_path / "a").read_bytes()[0] == 0x80:
            break
    assert (tmp_path / "a").read_bytes()[0] == 0x80
    same(read_raw(tmp_path / "a").tensors, {"w": w})


def test_no_room_to_unpack_is_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert unpack.refusal(full)["full"] and not unpack.refusal(OSError(errno.EIO, "Input/output error"))["full"]
    np.savez(tmp_path / "a", w=np.ones(1, np.float32))
    monkeypatch.setattr(quarantine, "_ask", lambda *_: unpack.refusal(full))
    with pytest.raises(DiskError, match=r"no space left .*a\.npz.* TMPDIR"):
        read_raw(tmp_path / "a.npz")
