"""The child process among others: forks, a killed parent, missing packages, a hostile working directory."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.dicom_files import endless, has_endless, radiograph, stored, wait, write

ROOT = Path(__file__).parents[2]
VALUES = stored(12, False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound file."""
    return write(tmp_path / "sound.dcm", radiograph(VALUES, 12), VALUES)


# Without an empty entry, which would be the working directory.
SEARCHED = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def run(program: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A Python program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": SEARCHED}
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


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("work", ["idle", "decoding"])
def test_the_child_ends_with_a_killed_parent(work: str, path: Path, tmp_path: Path) -> None:
    """kill -9 of the parent: an idle child ends by itself, a decoding one by SIGIO, which its closed input raises."""
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: the orphan becomes this process's child
    try:
        arguments = [path] if work == "idle" else [path, endless(tmp_path)]
        command = [sys.executable, "-c", ORPHAN, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": SEARCHED}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as parent:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            if work == "decoding":
                wait(lambda: has_endless(child))
            parent.kill()
        _, status = os.waitpid(child, 0)
        if work == "idle":
            assert os.WIFEXITED(status)
        else:
            assert os.WTERMSIG(status) == signal.SIGIO
    finally:
        libc.prctl(36, 0, 0, 0, 0)
