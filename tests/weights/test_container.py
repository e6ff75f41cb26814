from __future__ import annotations

import hashlib
import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vitrine.errors import BadData, CannotCreate, NotFound
from vitrine.weights import container


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    return {
        **{f"{dtype}".removeprefix("torch."): (10 * wide).to(dtype) for dtype in container.DTYPES},
        "turned": wide.t(),
        "every second": torch.arange(20)[::2],
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "one byte": torch.tensor([7], dtype=torch.uint8),
        "not a number": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


FACTS = {"format": 1, "word": 'a "quote", sha256":" and ü', "list": [1, 2.5, None], "nested": {"x": True}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    container.write(tmp_path / "a.safetensors", tensors(), FACTS)
    return tmp_path / "a.safetensors"


def test_what_is_read_is_what_was_written(file: Path) -> None:
    found, facts = container.read(file)
    assert facts == FACTS == container.read_facts(file)
    assert set(found) == set(tensors())
    for name, tensor in tensors().items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert (
            found[name].numpy(force=True).tobytes() == tensor.contiguous().numpy().tobytes()
            if (tensor.dtype != torch.bfloat16)
            else torch.equal(found[name], tensor)
        ), name


def test_equal_content_gives_equal_bytes(file: Path, tmp_path: Path) -> None:
    shuffled = dict(reversed(tensors().items()))
    container.write(tmp_path / "b.safetensors", shuffled, dict(reversed(FACTS.items())))
    assert (tmp_path / "b.safetensors").read_bytes() == file.read_bytes()


def test_plain_safetensors_reads_it(file: Path) -> None:
    plain = load_file(file)
    assert set(plain) == set(tensors())
    assert torch.equal(plain["bfloat16"], tensors()["bfloat16"])
    with safe_open(file, framework="pt") as opened:
        assert set(opened.metadata()) == {"sha256", "vitrine"}
        assert json.loads(opened.metadata()["vitrine"]) == FACTS


def test_every_tensor_begins_at_a_multiple_of_its_item_size(file: Path) -> None:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    for name, tensor in tensors().items():
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0, name


def defined_hash(data: bytes) -> str:
    """The hash as the docstring of `container` defines it, computed plainly."""
    (length,) = struct.unpack("<Q", data[:8])
    digits = json.loads(data[8 : 8 + length])["__metadata__"]["sha256"].encode()
    assert len(digits) == 64 and data.count(digits) == 1
    blanked = data.replace(digits, b"0" * 64)
    chunks = [blanked[start : start + 4 * 1024 * 1024] for start in range(0, len(blanked), 4 * 1024 * 1024)]
    return hashlib.sha256(b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)).hexdigest()


@pytest.mark.parametrize("megabytes", [0, 4, 9])
def test_the_hash_is_as_defined(tmp_path: Path, megabytes: int) -> None:
    many = torch.arange(megabytes * 2**20 // 4, dtype=torch.int32)
    container.write(tmp_path / "a", {"many": many}, FACTS)
    with safe_open(tmp_path / "a", framework="pt") as opened:
        assert opened.metadata()["sha256"] == defined_hash((tmp_path / "a").read_bytes())


def test_digits_across_the_border_of_two_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    container.write(tmp_path / "a", tensors(), FACTS)
    at = (tmp_path / "a").read_bytes().index(container.MARK) + len(container.MARK)
    # The border then lies within the digits, and the hash is still that of chunks with all digits blanked.
    monkeypatch.setattr(container, "CHUNK", at + 30)
    container.write(tmp_path / "b", tensors(), FACTS)
    data = (tmp_path / "b").read_bytes()
    blanked = data[:at] + b"0" * 64 + data[at + 64 :]
    chunks = [blanked[start : start + at + 30] for start in range(0, len(blanked), at + 30)]
    expected = hashlib.sha256(b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)).hexdigest()
    assert data[at : at + 64].decode() == expected
    assert container.read_facts(tmp_path / "b") == FACTS


def altered(data: bytes) -> list[tuple[str, bytes]]:
    """Files that differ from `data` by one flipped bit, by their end, or by two swapped pieces."""
    rng = np.random.default_rng(0)
    (length,) = struct.unpack("<Q", data[:8])
    digits = data.index(container.MARK) + len(container.MARK)
    everywhere = rng.integers(0, 8 * len(data), 300).tolist()
    picked = [*range(64), *range(8 * digits, 8 * (digits + 64), 7), 8 * (8 + length) - 3, 8 * len(data) - 1]
    found = []
    for bit in [*everywhere, *picked]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        found.append((f"bit {bit} flipped", bytes(flipped)))
    ends = [1, 7, 8, 9, 8 + length // 2, 8 + length, len(data) - 1, *rng.integers(1, len(data), 20).tolist()]
    found += [(f"cut off at {end}", data[:end]) for end in ends]
    found.append(("a byte more", data + b"\0"))
    found.append(("twice", data * 2))
    found.append(("digits in capitals", data[:digits] + data[digits : digits + 64].upper() + data[digits + 64 :]))
    found.append(("rest of zeros", data[: len(data) // 2] + bytes(len(data) - len(data) // 2)))
    return found


def test_every_alteration_is_refused_by_name(file: Path) -> None:
    whole = file.read_bytes()
    for what, data in altered(whole):
        assert data != whole, what
        file.write_bytes(data)
        for reader in (container.read, container.read_facts):
            with pytest.raises(BadData) as caught:
                reader(file)
            assert str(file) in str(caught.value), what
            assert "\n" not in str(caught.value), what
    file.write_bytes(whole)
    assert container.read_facts(file) == FACTS


@pytest.mark.parametrize("length", [2**63, 2**40, 33 << 20])
def test_a_bomb_in_the_header_length_is_refused_at_once(tmp_path: Path, length: int) -> None:
    path = tmp_path / "bomb"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(64 << 20)
    began = time.monotonic()
    with pytest.raises(BadData, match="bomb: not a safetensors file"):
        container.read(path)
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello, this is a text and no model", "not a safetensors file"),
        (b"\x02\0\0\0\0\0\0\0[]", "header"),
        (b"\x02\0\0\0\0\0\0\0{}", "not one that Vitrine wrote"),
        (struct.pack("<Q", 40_000) + b"[" * 40_000, "header"),
    ],
)
def test_what_is_none_of_ours_is_told_apart(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(BadData, match=said):
        container.read(tmp_path / "x")


def test_a_foreign_safetensors_file_is_called_so(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadData, match="a safetensors file, but not one that Vitrine wrote"):
        container.read(tmp_path / "w.safetensors")


@pytest.mark.parametrize("text", ["5", "[1]", "not JSON", "null"])
def test_facts_must_be_a_table(tmp_path: Path, text: str) -> None:
    """Our layout with a right hash around facts that are none."""
    metadata = {"sha256": "0" * 64, "vitrine": text}
    header = json.dumps({"__metadata__": metadata}, separators=(",", ":")).encode()
    data = struct.pack("<Q", len(header)) + header
    data = data.replace(b"0" * 64, hashlib.sha256(hashlib.sha256(data).digest()).hexdigest().encode())
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(BadData, match="not one that Vitrine wrote"):
        container.read(tmp_path / "x")


def test_a_second_hash_in_the_header_is_refused(tmp_path: Path) -> None:
    header = b'{"__metadata__":{"sha256":"%s","vitrine":"{}"},"sha256":"%s"}' % (b"0" * 64, b"0" * 64)
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(BadData, match="sha256"):
        container.read(tmp_path / "x")


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        container.read(tmp_path / "none")


def test_a_failed_write_leaves_the_old_file(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        container.write(file, tensors(), {"loss": float("nan")})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_type_that_the_format_lacks_is_refused_by_name(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(BadData, match=r"a\.safetensors: waves is of type torch\.complex64, .* It holds float64, "):
        container.write(file, {"x": torch.ones(2), "waves": torch.ones(2, dtype=torch.complex64)}, FACTS)
    assert file.read_bytes() == before


def test_a_place_below_a_file_is_refused(file: Path) -> None:
    with pytest.raises(CannotCreate, match=r"a\.safetensors"):
        container.write(file / "below", tensors(), FACTS)
