"""The child process: kept between files, replaced when it ends or is slow, limited, and gone when its parent is."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.studies.dicom import reader as module
from r2gen_export.studies.dicom.limits import Limits
from r2gen_export.studies.dicom.reader import DicomReader
from r2gen_export.studies.dicom.types import DicomSettings
from tests.helpers.dicom_files import encode, endless, has_endless, radiograph, stored, wait, write

VALUES = stored(12, False)
SETTINGS = DicomSettings()
PROCFS = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound file."""
    return write(tmp_path / "sound.dcm", radiograph(VALUES, 12), VALUES)


@pytest.fixture
def reader() -> Iterator[DicomReader]:
    """A reader with a child process of its own."""
    reader = DicomReader()
    yield reader
    reader.close()


def children(parent: int | None = None) -> list[int]:
    """Process ids of the children that read DICOM, of this process or another, that have not ended."""
    result = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[1]) == (parent or os.getpid()) and b"studies.dicom.child" in command:
            result.append(int(entry.name))
    return result


def test_one_child_for_all_files_and_threads(path: Path, reader: DicomReader) -> None:
    """Headers and images of 8 threads: each gets its own answer, from one child."""
    other = write(path.with_name("other.dcm"), radiograph(VALUES, 12, PhotometricInterpretation="MONOCHROME1"), VALUES)
    upright, inverse = (reader.read_dicom(file, "image", SETTINGS).pixels for file in (path, other))
    assert not np.array_equal(upright, inverse)

    def read(number: int) -> bool:
        if number % 3 == 0:
            return reader.read_header(path, "image", SETTINGS).modality == "CR"
        expected = (upright, inverse)[number % 2]
        return np.array_equal(reader.read_dicom((path, other)[number % 2], "image", SETTINGS).pixels, expected)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(100)))
    assert reader.process.counts.starts == 1
    assert reader.process.counts.deaths == 0


@PROCFS
def test_a_child_that_was_ended_is_replaced(path: Path, reader: DicomReader) -> None:
    """Between two files, and while one is read: neither costs a report."""
    reader.read_header(path, "image", SETTINGS)
    before = set(children())
    (child,) = [pid for pid in before if pid not in outside_children(reader)]
    os.kill(child, signal.SIGKILL)
    # A process that ends has no command line any more before its parent can see that it ended.
    wait(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    assert reader.read_header(path, "image", SETTINGS).modality == "CR"
    assert reader.process.counts.deaths == 0
    (child,) = [pid for pid in children() if pid not in outside_children(reader)]
    os.kill(child, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(reader.read_dicom, path, "image", SETTINGS)
        wait(reader.process._lock.locked)
        time.sleep(0.2)
        os.kill(child, signal.SIGKILL)
        assert result.result().pixels.shape == VALUES.shape
    assert reader.process.counts.deaths == 1
    assert reader.process.counts.starts == 3


def outside_children(reader: DicomReader) -> set[int]:
    """Children of other readers of this test process."""
    own = reader.process._child
    return {pid for pid in children() if own is None or pid != own.pid}


@PROCFS
def test_a_file_that_ends_the_child_each_time(tmp_path: Path, path: Path, reader: DicomReader) -> None:
    """A coded error for this file, and the next one is read."""
    file, over = endless(tmp_path), threading.Event()

    def end_children() -> None:
        while not over.is_set():
            child = reader.process._child
            if child is not None and reader.process.counts.starts and has_endless(child.pid):
                os.kill(child.pid, signal.SIGKILL)
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(end_children)
        try:
            with pytest.raises(R2GenError, match="image ended the process that reads DICOM") as error:
                reader.read_dicom(file, "image", SETTINGS)
        finally:
            over.set()
        ending.result()
    assert error.value.code == "R2G-DICOM-PIXELS"
    assert reader.process.counts.deaths == 2
    assert reader.read_header(path, "image", SETTINGS).modality == "CR"


def test_a_slow_file(tmp_path: Path, path: Path) -> None:
    """A coded error after the time limit, and the next file is read by another child."""
    reader = DicomReader(Limits(seconds=1))
    with pytest.raises(R2GenError, match="study 2, view 1 was not read within 1 seconds") as error:
        reader.read_dicom(endless(tmp_path), "study 2, view 1", SETTINGS)
    assert error.value.code == "R2G-DICOM-LIMIT"
    assert reader.process.counts.slow == 1
    slower = DicomReader(Limits(seconds=60))
    assert slower.read_dicom(path, "image", SETTINGS).pixels.shape == VALUES.shape
    slower.close()
    reader.close()


def test_an_interrupted_request_leaves_no_answer_behind(path: Path, reader: DicomReader, tmp_path: Path) -> None:
    """Ctrl-C while a file is read: the next request must not get the answer of this one."""
    reader.read_header(path, "image", SETTINGS)
    slow = endless(tmp_path)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            reader.read_dicom(slow, "image", SETTINGS)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert reader.read_header(path, "image", SETTINGS).source.sop_instance_uid == "1.2.3.4.5.6"
    assert reader.process.counts.deaths == 0


def test_memory(tmp_path: Path, path: Path) -> None:
    """100 megapixels need 0.9 GiB: an error under a limit of 0.6, which is no crash; then another file is read."""
    coded = encode(radiograph(VALUES, 12, Rows=10_000, Columns=10_000), VALUES, "explicit", b"")
    head = coded.data[: coded.pixels_start] + b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", 200_000_000)
    large = tmp_path / "large.dcm"
    large.write_bytes(head)
    os.truncate(large, len(head) + 200_000_000)  # sparse
    reader = DicomReader(Limits(memory_bytes=600 << 20))
    assert reader.read_header(large, "image", SETTINGS).problem == ""
    with pytest.raises(R2GenError, match="needs more than 600 MiB") as error:
        reader.read_dicom(large, "image", SETTINGS)
    assert error.value.code == "R2G-DICOM-LIMIT"
    assert reader.read_dicom(path, "image", SETTINGS).pixels.shape == VALUES.shape
    reader.close()


def test_limits_of_size(tmp_path: Path, path: Path) -> None:
    """Bytes, rows, columns and pixels are checked before anything is decoded."""
    for limits, message in (
        (Limits(file_bytes=100), "is larger than"),
        (Limits(side=45), "claims 48 x 40 pixels"),
        (Limits(pixels=1900), "claims 48 x 40 pixels"),
    ):
        reader = DicomReader(limits)
        for read in (reader.read_header, reader.read_dicom):
            with pytest.raises(R2GenError, match=message) as error:
                read(path, "image", SETTINGS)
            assert error.value.code == "R2G-DICOM-LIMIT"
        reader.close()


def test_deflated_files(tmp_path: Path, reader: DicomReader) -> None:
    """2 MB that expand to 600: an error at the bound, long before memory ends. So are a truncated and a damaged one."""
    deflated = encode(radiograph(VALUES, 12), VALUES, "deflated")
    plain = encode(radiograph(VALUES, 12), VALUES, "explicit")
    bomb = zlib.compressobj(1, wbits=-15)
    data = bytearray(deflated.data[: deflated.dataset_start])
    data += bomb.compress(plain.data[plain.dataset_start :]) + bomb.flush(zlib.Z_FULL_FLUSH)
    data += (bomb.compress(b"\0" * (1 << 20)) + bomb.flush(zlib.Z_FULL_FLUSH)) * 600 + bomb.flush()
    path = tmp_path / "a.dcm"
    path.write_bytes(data)
    small = DicomReader(Limits(memory_bytes=400 << 20, inflated_bytes=32 << 20))
    with pytest.raises(R2GenError, match="expands to more than 32 MiB"):
        small.read_header(path, "image", SETTINGS)
    small.close()
    cut = deflated.data[:-20]
    damaged = deflated.data[: deflated.dataset_start] + b"\xff" * 200
    for content, code, message in (
        (data, "R2G-DICOM-LIMIT", "expands to more than 256 MiB"),
        (cut, "R2G-DICOM-FORMAT", "is deflated and truncated"),
        (damaged, "R2G-DICOM-FORMAT", "is deflated and damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(R2GenError, match=message) as error:
            reader.read_header(path, "image", SETTINGS)
        assert error.value.code == code
    path.write_bytes(deflated.data)
    assert reader.read_dicom(path, "image", SETTINGS).pixels.shape == VALUES.shape


def test_files_that_are_not_there(tmp_path: Path, reader: DicomReader) -> None:
    """Missing, a folder, a pipe, not DICOM, empty: named by the subject alone."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("no DICOM")
    (tmp_path / "empty").write_bytes(b"")
    for name, code in (
        ("missing", "R2G-IMAGE-MISSING"),
        (".", "R2G-IMAGE-MISSING"),
        ("pipe", "R2G-IMAGE-MISSING"),
        ("text", "R2G-DICOM-FORMAT"),
        ("empty", "R2G-DICOM-FORMAT"),
        ("a\0b", "R2G-IMAGE-MISSING"),
    ):
        for read in (reader.read_header, reader.read_dicom):
            with pytest.raises(R2GenError) as error:
                read(tmp_path / name, "study 3, view 1", SETTINGS)
            assert error.value.code == code, name
            assert error.value.message.startswith("study 3, view 1 ")
            assert str(tmp_path) not in error.value.render()


def test_names_of_any_bytes(tmp_path: Path, path: Path, reader: DicomReader) -> None:
    """A file name that is no UTF-8, and a relative one after the working directory has changed."""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.dcm"))
    shutil.copy(path, odd)
    assert reader.read_header(odd, "image", SETTINGS).modality == "CR"
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        assert reader.read_header(Path(path.name), "image", SETTINGS).modality == "CR"
    finally:
        os.chdir(before)


def test_the_functions_share_one_reader(path: Path) -> None:
    """What other packages call."""
    assert module.read_header(path, "image", SETTINGS).problem == ""
    image = module.read_dicom(path, "image", SETTINGS)
    assert image.pixels.dtype == np.uint8
    assert image.pixels.flags.writeable
    assert module._reader.process.counts.starts == 1


def test_an_answer_that_is_none(path: Path) -> None:
    """The child was taken over by a file, say: nothing it sends is believed."""
    for fields in (None, {}, {"sop_class_uid": 3}, []):
        with pytest.raises((KeyError, TypeError)):
            module._header(fields)
