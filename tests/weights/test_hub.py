from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("huggingface_hub")

from huggingface_hub import constants

from tests.weights.stand_in_hub import Hub, point_to, serving
from vitrine.errors import NotFound, Unavailable, UsageError
from vitrine.weights import hub

VIT = {"model.safetensors": b"weights", "config.json": b"{}", "README.md": b"long", "pytorch_model.bin": b"other"}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf://google/vit-base-patch16-224", ("google/vit-base-patch16-224", None, None)),
        ("hf-hub:timm/vit_small_patch16_224.augreg_in21k", ("timm/vit_small_patch16_224.augreg_in21k", None, None)),
        ("hf://a/b@v1.0", ("a/b", "v1.0", None)),
        ("hf://a/b@refs%2Fpr%2F1", ("a/b", "refs/pr/1", None)),
        ("hf://a/b/x/y.npz", ("a/b", None, "x/y.npz")),
        ("hf://a/b@main/x.npz", ("a/b", "main", "x.npz")),
    ],
)
def test_ids(name: str, parts: tuple[str, Any, Any]) -> None:
    assert hub.is_id(name)
    assert hub.parse(name) == parts


@pytest.mark.parametrize(
    "name", ["hf://", "hf://vit", "hf://a/b/../c", "hf://a b/c", "hf://a/b@", "hf-hub:x", "hf://a/b?x"]
)
def test_what_is_no_id_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no hub id"):
        hub.parse(name)


@pytest.mark.parametrize("path", ["model.safetensors", "hf/x", "/hf:/x", Path("hf://a/b")])
def test_paths_are_no_ids(path: str | Path) -> None:
    assert not hub.is_id(path)


def test_only_what_is_needed_is_fetched_and_the_revision_is_said(there: Hub) -> None:
    commit = there.add("google/vit", VIT)
    folder, said = hub.fetch("hf://google/vit")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert said == (f"hub: google/vit at revision {commit}; hf://google/vit@{commit} names it for ever",)


def test_nothing_is_fetched_twice(there: Hub) -> None:
    there.add("google/vit", VIT)
    hub.fetch("hf://google/vit")
    there.asked.clear()
    hub.fetch("hf://google/vit")
    assert not any("/resolve/" in line for line in there.asked), there.asked


def test_a_revision(there: Hub) -> None:
    old = there.add("google/vit", VIT)
    new = there.push("google/vit", {**VIT, "model.safetensors": b"newer"})
    assert (hub.fetch("hf://google/vit")[0] / "model.safetensors").read_bytes() == b"newer"
    folder, said = hub.fetch(f"hf-hub:google/vit@{old}")
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert f"at revision {old};" in said[0]
    there.push("google/vit", {**VIT, "model.safetensors": b"branch"}, branch="v2")
    folder, said = hub.fetch("hf://google/vit@v2")
    assert (folder / "model.safetensors").read_bytes() == b"branch"
    assert "(v2);" in said[0]
    assert new != old
    there.push("google/vit", {"B_16.npz": b"other"}, branch="v3")  # what is there may differ too
    assert [path.name for path in hub.fetch("hf://google/vit@v3")[0].iterdir()] == ["B_16.npz"]


@pytest.mark.parametrize(
    ("files", "fetched"),
    [
        (["B_16.npz", "README.md"], ["B_16.npz"]),
        (["pytorch_model.bin", "config.json", "preprocessor_config.json"],
         ["config.json", "preprocessor_config.json", "pytorch_model.bin"]),
        (["open_clip_model.safetensors", "open_clip_config.json", "open_clip_pytorch_model.bin"],
         ["open_clip_config.json", "open_clip_model.safetensors"]),
        (["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
          "x.bin"],
         ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]),
        (["a/model.safetensors", "model[1].safetensors"], ["model[1].safetensors"]),
    ],
)  # fmt: skip
def test_which_files_are_fetched(there: Hub, files: list[str], fetched: list[str]) -> None:
    there.add("o/m", {name: name.encode() for name in files})
    folder, _ = hub.fetch("hf://o/m")
    assert sorted(path.name for path in folder.iterdir()) == fetched


def test_a_file_by_name(there: Hub) -> None:
    there.add("o/m", {"a/x.npz": b"1", "y.npz": b"2", "config.json": b"{}"})
    assert hub.fetch("hf://o/m/a/x.npz")[0].read_bytes() == b"1"
    assert hub.fetch("hf://o/m@main/y.npz")[0].read_bytes() == b"2"
    with pytest.raises(NotFound, match=r"has no such file\. It has a/x\.npz, config\.json, y\.npz"):
        hub.fetch("hf://o/m/z.npz")


def test_mistake_6_a_plus_in_a_name_is_a_plus(there: Hub) -> None:
    """Google's hybrids are called so; in an address a bare plus may mean a space."""
    there.add("o/m", {"R50+ViT-B_16.npz": b"hybrid"})
    folder, _ = hub.fetch("hf://o/m/R50+ViT-B_16.npz")
    assert folder.name == "R50+ViT-B_16.npz"
    assert folder.read_bytes() == b"hybrid"
    assert all("R50%2BViT" in line for line in there.asked if "/resolve/" in line)


def test_what_holds_no_weights_or_several(there: Hub) -> None:
    there.add("o/none", {"README.md": b""})
    there.add("o/many", {"a.npz": b"", "b.npz": b""})
    with pytest.raises(NotFound, match=r"hf://o/none: there are no weights here"):
        hub.fetch("hf://o/none")
    with pytest.raises(UsageError, match=r"hf://o/many: several files hold weights: a\.npz, b\.npz"):
        hub.fetch("hf://o/many")


def test_a_broken_transfer_goes_on_where_it_broke(there: Hub) -> None:
    whole = os.urandom(1 << 20) * 12
    there.add("o/m", {"model.safetensors": whole})
    there.breaks[:] = [11 << 20]
    folder, _ = hub.fetch("hf://o/m")
    assert (folder / "model.safetensors").read_bytes() == whole
    assert there.ranges == ["bytes=10485760-"]


def test_what_is_not_there_or_not_for_all(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    there.add("o/gated", VIT, gated=True)
    there.add("o/private", VIT, token="hf_mine")
    there.add("o/m", VIT)
    with pytest.raises(NotFound, match="the hub has no such model, or it is private"):
        hub.fetch("hf://o/none")
    with pytest.raises(NotFound, match="o/m has no revision v9"):
        hub.fetch("hf://o/m@v9")
    with pytest.raises(Unavailable, match="accepted the terms"):
        hub.fetch("hf://o/gated")
    with pytest.raises(NotFound, match="it is private"):
        hub.fetch("hf://o/private")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert (hub.fetch("hf://o/private")[0] / "model.safetensors").exists()
    assert there.tokens == {"hf_mine"}


def test_a_server_that_fails(there: Hub) -> None:
    there.add("o/m", VIT)
    there.failing = True
    with pytest.raises(Unavailable, match=r"hf://o/m: the hub did not give it \(.*500"):
        hub.fetch("hf://o/m")


def test_without_network_the_cache_serves(there: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = there.add("google/vit", VIT)
    hub.fetch("hf://google/vit")
    there.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder, said = hub.fetch("hf://google/vit")
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert said[0] == "hub: HF_HUB_OFFLINE is set; the copy in the cache is used"
    assert commit in said[1]
    assert hub.fetch("hf://google/vit/config.json")[0].read_bytes() == b"{}"
    with pytest.raises(NotFound, match=r"README.md is not in the cached copy"):
        hub.fetch("hf://google/vit/README.md")
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE is set, and the cache has no copy"):
        hub.fetch("hf://google/other")
    assert there.asked == []


def test_without_network_a_revision_is_still_that_revision(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    old = there.add("google/vit", VIT)
    there.push("google/vit", {**VIT, "model.safetensors": b"newer"})
    for name in ("hf://google/vit", f"hf://google/vit@{old}"):
        hub.fetch(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert (hub.fetch("hf://google/vit")[0] / "model.safetensors").read_bytes() == b"newer"
    assert (hub.fetch(f"hf://google/vit@{old}")[0] / "model.safetensors").read_bytes() == b"weights"
    with pytest.raises(Unavailable, match="the cache has no copy"):
        hub.fetch("hf://google/vit@v2")


def closed_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@pytest.mark.parametrize("where", ["closed", "silent"])
def test_without_a_hub_there_is_an_error_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        full = [socket.socket() for _ in range(4)]
        for one in full:
            one.setblocking(False)
            one.connect_ex(deaf.getsockname())
        port = deaf.getsockname()[1] if where == "silent" else closed_port()
        point_to(f"http://127.0.0.1:{port}", tmp_path, monkeypatch)
        began = time.monotonic()
        with pytest.raises(Unavailable, match="cannot be reached, and the cache has no copy"):
            hub.fetch("hf://google/vit")
        assert time.monotonic() - began < 1.3
        for one in full:
            one.close()


def test_the_environment_is_honoured_and_nobody_else_is_asked(tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads its environment once."""
    code = """
import socket, sys
reached = []
real = socket.socket.connect
def connect(self, address):
    reached.append(address[0])
    return real(self, address)
socket.socket.connect = connect
import vitrine.weights.opening
assert "huggingface_hub" not in sys.modules
from vitrine.weights import hub
print(hub.fetch("hf://google/vit")[0])
print(sorted(set(reached)))
"""
    with serving(Hub()) as there:
        commit = there.add("google/vit", VIT)
        own = {
            "HF_ENDPOINT": there.url,
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_mine",
            "OMP_NUM_THREADS": "1",
        }
        clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**clean, **own}, capture_output=True, text=True, check=True, timeout=120
        )
    place, reached = done.stdout.splitlines()
    assert place == str(tmp_path / "home/hub/models--google--vit/snapshots" / commit)
    assert reached == "['127.0.0.1']"
    assert there.tokens == {"hf_mine"}
