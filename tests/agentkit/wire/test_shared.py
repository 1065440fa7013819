"""Memory that processes share: mapped where it is what was said, refused where it is not, gone when nobody has it."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from agentkit.wire import shared
from agentkit.wire.attachments import ATTACH_FROM_BYTES, FRAME_BYTES, ContentPacker, unpack
from agentkit.wire.shared import Shared, capability, frames_for, is_descriptor, may_share
from agentkit.wire.values import Undecodable

MAGIC = shared._MAGIC


def open_or_mapped() -> tuple[int, int]:
    """How many descriptors of shared memory this process has (each owner and each mapping has one), and how many mappings."""
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.append(str(entry.readlink()))
    maps = Path("/proc/self/maps").read_text()
    return sum("memfd:agentkit-" in name for name in names), maps.count("memfd:agentkit-")


def send(value: Any, *, to_share: bool = True) -> tuple[Any, list[Any]]:
    body, attached = ContentPacker().pack_to_share(value)
    frames = list(frames_for(attached, may_share=to_share))
    return unpack(body, frames), frames


@pytest.mark.parametrize("to_share", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        np.arange(100_000.0).reshape(100, 1000), np.asfortranarray(np.ones((300, 200), np.int16)), np.arange(3), np.zeros((0, 4)),
        memoryview(bytes(range(256)) * 100), b"x" * 40_000,
    ],
)  # fmt: skip
def test_it_arrives_as_what_it_was_made_from(value: Any, to_share: bool) -> None:
    came, frames = send({"x": Shared(value)}, to_share=to_share)
    assert type(came["x"]) is type(value)
    assert np.array_equal(np.asarray(came["x"]), np.asarray(value))
    large = memoryview(value).nbytes >= ATTACH_FROM_BYTES
    assert any(map(is_descriptor, frames)) == (to_share and large)
    if to_share and large:
        assert sum(map(len, frames)) < 256


def test_what_is_larger_than_a_frame_is_one_descriptor_here_and_several_frames_elsewhere() -> None:
    array = np.full(FRAME_BYTES * 2 + 5, 7, np.uint8)
    came, frames = send(Shared(array))
    assert [len(frame) < 256 for frame in frames] == [True] * 3
    assert np.array_equal(came, array)
    came, frames = send(Shared(array), to_share=False)
    assert [len(frame) for frame in frames] == [FRAME_BYTES, FRAME_BYTES, 5]
    assert np.array_equal(came, array)


def test_receivers_can_not_write_into_what_they_share() -> None:
    came, _ = send(Shared(np.zeros(10_000)))
    assert not came.flags.writeable
    view, _ = send(Shared(memoryview(bytes(ATTACH_FROM_BYTES))))
    assert view.readonly


def test_the_copy_does_not_change_with_its_original() -> None:
    array = np.zeros(10_000)
    made = Shared(array)
    array[:] = 1
    assert made.value.sum() == 0


def test_it_is_freed_when_the_last_of_its_arrays_is_gone() -> None:
    before = open_or_mapped()
    made = Shared(np.arange(100_000))
    came, frames = send(made)
    again, _ = send(made)
    assert open_or_mapped() == (before[0] + 3, before[1] + 2)
    del made, frames
    gc.collect()
    assert open_or_mapped() == (before[0] + 2, before[1] + 2)
    assert came[99_999] == again[99_999] == 99_999
    slice_of_it = came[5:10]
    del came, again
    gc.collect()
    assert open_or_mapped() == (before[0] + 1, before[1] + 1)
    assert slice_of_it[0] == 5
    del slice_of_it
    gc.collect()
    assert open_or_mapped() == before


def test_another_process_maps_it_and_what_a_killed_one_had_is_gone() -> None:
    made = Shared(np.arange(1000.0))
    script = """
import sys, time
import numpy as np
from agentkit.wire import shared
view = np.frombuffer(shared.mapped(bytes.fromhex(sys.argv[1])))
print(view.sum(), flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, made.descriptor().hex()], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert float(process.stdout.readline()) == 499_500
        assert "memfd:agentkit-" in Path(f"/proc/{process.pid}/maps").read_text()
        process.kill()
    assert made.value[3] == 3.0  # its death took nothing along
    assert not [name for name in os.listdir("/dev/shm") if "agentkit" in name]


def test_memory_that_is_gone_is_refused() -> None:
    made = Shared(np.zeros(5000))
    descriptor = made.descriptor()
    del made
    gc.collect()
    with pytest.raises(Undecodable):
        shared.mapped(descriptor)


@pytest.mark.parametrize("change", ["pid", "fd", "token", "size", "smaller", "kind"])
def test_a_descriptor_that_lies_is_refused(change: str) -> None:
    made = Shared(np.zeros(5000))
    pid, fd, token, size = msgpack.unpackb(made.descriptor()[len(MAGIC) :])
    lies: dict[str, tuple[Any, ...]] = {
        "pid": (1, fd, token, size), "fd": (pid, 0, token, size), "token": (pid, fd, "0" * 32, size), "kind": (pid, fd, token, "1"),
        "size": (pid, fd, token, size + 1), "smaller": (pid, fd, token, size - 1),
    }  # fmt: skip
    with pytest.raises(Undecodable):
        shared.mapped(MAGIC + msgpack.packb(lies[change]))


def test_a_file_that_is_no_shared_memory_is_never_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 100)
    with secret.open("rb") as file:
        for token in ("", "0" * 32, f"../{secret}"):
            with pytest.raises(Undecodable, match="gone"):
                shared.mapped(MAGIC + msgpack.packb((os.getpid(), file.fileno(), token, 100)))


def test_a_memfd_that_could_shrink_is_refused() -> None:
    fd = os.memfd_create("agentkit-" + "0" * 32, os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 4096)
        with pytest.raises(Undecodable, match="not what was said"):
            shared.mapped(MAGIC + msgpack.packb((os.getpid(), fd, "0" * 32, 4096)))
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "frame", [MAGIC, MAGIC + b"\xc1", MAGIC + b"\x90", MAGIC + b"\x94\x01\x02\x03\x04", MAGIC + bytes(100)]
)
def test_a_descriptor_that_can_not_be_read_is_refused(frame: bytes) -> None:
    with pytest.raises(Undecodable):
        shared.mapped(frame)


def test_processes_of_one_user_and_kernel_have_a_word_in_common() -> None:
    (word,) = capability()
    script = "from agentkit.wire.shared import capability; print(*capability())"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert other.split() == [word]
    assert may_share(("batches", word))
    assert not may_share(("memory-0123456789abcdef",))


def test_what_does_not_travel_is_refused_and_leaves_nothing_open() -> None:
    before = open_or_mapped()
    for wrong in (np.array([object()]), "text", 5):
        with pytest.raises(TypeError):
            Shared(wrong)
    assert open_or_mapped() == before
