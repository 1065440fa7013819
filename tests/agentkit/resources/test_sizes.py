"""What a resource needs, where nobody says so; and files as resources."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agentkit.resources.mapped import mapped, unmap
from agentkit.resources.sizes import MAX_OBJECTS, size_of


class WithInterface:
    __array_interface__ = {"shape": (10, 100), "typestr": "<f4", "version": 3}


class Slotted:
    __slots__ = ("weights",)

    def __init__(self) -> None:
        self.weights = bytearray(10_000)


class Cross:
    @property
    def nbytes(self) -> int:
        raise RuntimeError("no")


def test_buffers_arrays_and_files_count_exactly(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x" * 5000)
    assert size_of(b"abc") == 3
    assert size_of(bytearray(1000)) == 1000
    assert size_of(memoryview(bytes(80)).cast("d")) == 80
    assert size_of(np.zeros((10, 10))) == 800
    assert size_of(np.memmap(file, mode="r")) == 5000
    assert size_of(WithInterface()) == 4000
    assert size_of(file) == 5000
    assert size_of(tmp_path / "gone") == 0
    found = mapped(file)
    assert size_of(found) == 5000
    unmap(found)


def test_containers_and_objects_count_what_they_hold_once() -> None:
    array = np.zeros(1000)
    assert 8000 < size_of({"a": array, "b": [array, array]}) < 9500
    assert 8000 < size_of(SimpleNamespace(layers=(array,))) < 9500
    assert 10_000 < size_of(Slotted()) < 11_000
    assert size_of(Cross()) > 0
    ring: list[object] = [array]
    ring.append(ring)
    assert 8000 < size_of(ring) < 8500


def test_what_is_looked_at_is_bounded() -> None:
    assert size_of([[] for _ in range(MAX_OBJECTS * 2)]) > 0


def test_a_mapped_file_is_read_only_and_an_empty_one_is_nothing(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"abc")
    found = mapped(file)
    assert isinstance(found, mmap.mmap)
    assert bytes(found) == b"abc"
    with pytest.raises(TypeError):
        found[0] = 1
    view = memoryview(found)
    unmap(found)
    assert bytes(view) == b"abc"  # who still looks keeps it
    view.release()
    unmap(found)
    assert found.closed
    (tmp_path / "empty").touch()
    assert mapped(tmp_path / "empty") == b""
    with pytest.raises(FileNotFoundError):
        mapped(tmp_path / "gone")
