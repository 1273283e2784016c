"""The child process: kept between files, replaced when it ends or is slow, limited, and gone when its parent is."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.studies.dicom import reader as module
from r2gen_export.studies.dicom.limits import Limits
from r2gen_export.studies.dicom.reader import DicomReader
from r2gen_export.studies.dicom.types import DicomSettings
from tests.helpers.dicom_files import encode, radiograph, stored, write

ROOT = Path(__file__).parents[2]
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


def endless(folder: Path) -> Path:
    """A file whose run-length coded pixels hold 64 million bytes that code nothing: minutes of decoding."""
    frame = struct.pack("<16I", 2, 64, 64_000_000, *[0] * 13) + b"\x80" * 64_000_000
    return write(folder / "endless.dcm", radiograph(VALUES, 12), VALUES, "rle", frame)


def wait(until: Callable[[], object]) -> None:
    """Wait for something that must happen; the test's own limit ends it."""
    while not until():
        time.sleep(0.02)


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
    wait(lambda: child not in children())
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
            if child is not None and reader.process.counts.starts and busy(child.pid):
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


def busy(pid: int) -> bool:
    """Whether a child has the endless file in memory, 64 MB, and so is decoding it."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > 100_000_000
    except OSError:
        return False


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


def run(program: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A Python program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


READ = """
import sys
from pathlib import Path
from r2gen_export.errors import CodedError
from r2gen_export.studies.dicom.reader import read_dicom
from r2gen_export.studies.dicom.types import DicomSettings
try:
    print(read_dicom(Path(sys.argv[1]), "image", DicomSettings()).pixels.shape)
except CodedError as error:
    print(error)
"""


def test_missing_packages(tmp_path: Path) -> None:
    """Without pydicom, or without the decoder a file needs: the extra that brings it."""
    path = write(tmp_path / "a.dcm", radiograph(VALUES, 12), VALUES, "lossless")
    blocked = tmp_path / "blocked"
    for package in ("pydicom", "imagecodecs"):
        shutil.rmtree(blocked, ignore_errors=True)
        blocked.mkdir()
        (blocked / f"{package}.py").write_text(f"raise ModuleNotFoundError('none', name={package!r})")
        result = run(f"import sys; sys.path.insert(0, {str(blocked)!r})\n{READ}", path)
        assert f"R2G-DEPENDENCY-MISSING: image is DICOM, for which {package} is needed" in result.stdout
        assert "pip install 'r2gen[dicom]'" in result.stdout
    result = run(f"import sys; sys.modules['pydicom'] = None\n{READ}", path)
    assert "R2G-DEPENDENCY-MISSING" in result.stdout


def test_a_child_that_does_not_start(tmp_path: Path) -> None:
    """An installation that is broken is no fault of the file."""
    path = write(tmp_path / "a.dcm", radiograph(VALUES, 12), VALUES)
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "pydicom").mkdir()
    (blocked / "pydicom" / "__init__.py").write_text("import os; os._exit(3)")
    result = run(f"import sys; sys.path.insert(0, {str(blocked)!r})\n{READ}", path)
    assert "R2G-INTERNAL: the process that reads DICOM does not start" in result.stdout


def test_nothing_is_imported_from_the_working_directory(tmp_path: Path, path: Path) -> None:
    """A folder that somebody else fills may hold a `pydicom.py`."""
    (tmp_path / "pydicom.py").write_text("raise RuntimeError('imported from the working directory')")
    # `python -c` has the working directory in its own path; what it imports is its own affair.
    program = f"import sys; sys.path.remove('')\nimport importlib.util\nimport pydicom\nsys.path.insert(0, '')\n{READ}"
    result = run(program, path, cwd=tmp_path)
    assert result.stdout == f"{VALUES.shape}\n", result.stderr


FORK = """
import os, sys, threading
from pathlib import Path
from r2gen_export.studies.dicom import reader
from r2gen_export.studies.dicom.types import DicomSettings
path = Path(sys.argv[1])
read = lambda: reader.read_header(path, "image", DicomSettings()).modality
assert read() == "CR"
own = reader._reader.process._child.pid
over, forks = threading.Event(), []
def keep_reading():
    while not over.is_set():
        assert read() == "CR"
thread = threading.Thread(target=keep_reading)
thread.start()  # so that the lock is held while this process forks
for _ in range(3):
    if (pid := os.fork()) == 0:
        good = all(read() == "CR" for _ in range(50)) and reader._reader.process._child.pid != own
        reader._reader.close()
        os._exit(0 if good else 1)
    forks.append(pid)
over.set()
thread.join()
assert all(read() == "CR" for _ in range(50))
assert reader._reader.process._child.pid == own
assert all(os.waitpid(pid, 0)[1] == 0 for pid in forks)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_has_a_child_of_its_own(path: Path) -> None:
    """Answers of one process must not reach another."""
    result = run(FORK, path)
    assert result.stdout == "done\n", result.stderr


def test_quiet(path: Path) -> None:
    """No output, no warning, when a process ends with a warm child."""
    result = run(f"import warnings; warnings.simplefilter('error')\n{READ}", path)
    assert (result.stdout, result.stderr, result.returncode) == (f"{VALUES.shape}\n", "", 0)


ORPHAN = """
import os, sys
from pathlib import Path
from r2gen_export.studies.dicom import reader
from r2gen_export.studies.dicom.types import DicomSettings
reader.read_header(Path(sys.argv[1]), "image", DicomSettings())
print(reader._reader.process._child.pid, flush=True)
if len(sys.argv) > 2:
    reader.read_dicom(Path(sys.argv[2]), "image", DicomSettings())
sys.stdin.read()
"""


@PROCFS
@pytest.mark.parametrize("work", ["idle", "decoding"])
def test_the_child_ends_with_a_killed_parent(work: str, path: Path, tmp_path: Path) -> None:
    """kill -9 of the parent: an idle child ends by itself, a decoding one by SIGIO, which its closed input raises."""
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: the orphan becomes this process's child
    try:
        arguments = [path] if work == "idle" else [path, endless(tmp_path)]
        command = [sys.executable, "-c", ORPHAN, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as parent:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            if work == "decoding":
                wait(lambda: busy(child))
            parent.kill()
        _, status = os.waitpid(child, 0)
        if work == "idle":
            assert os.WIFEXITED(status)
        else:
            assert os.WTERMSIG(status) == signal.SIGIO
    finally:
        libc.prctl(36, 0, 0, 0, 0)


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
