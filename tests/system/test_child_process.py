"""A child that answers in JSON: what it prints is no answer, its errors are raised, and it ends with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.system.child_process import JsonProcess

CHILD = """
import json, os, sys
from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.system.child_process import failure, leave_signals_to_parent, open_answers, write_answer
leave_signals_to_parent()
answers = open_answers()
os.system("echo native code prints")
print("so does Python")
for line in sys.stdin:
    request = json.loads(line)
    if request == {"fail": "user"}:
        write_answer(answers, failure(R2GenError("R2G-CONFIG-VALUE", "wrong", "mend it")))
    elif request == {"fail": "bug"}:
        write_answer(answers, failure(InternalError("ours")))
    elif request == {"end": 3}:
        sys.exit(3)
    else:
        write_answer(answers, {"said": request["text"]})
"""


@pytest.fixture
def child():
    process = JsonProcess([sys.executable, "-c", CHILD])
    yield process
    process.close()


def test_it_answers_each_line_and_raises_what_it_failed_with(child: JsonProcess) -> None:
    child.put({"text": "zwölf\n"})
    assert child.answer() == {"said": "zwölf\n"}
    child.put({"fail": "user"})
    with pytest.raises(R2GenError) as caught:
        child.answer()
    assert (caught.value.code, caught.value.message, caught.value.fix) == ("R2G-CONFIG-VALUE", "wrong", "mend it")
    child.put({"fail": "bug"})
    with pytest.raises(InternalError, match="ours"):
        child.answer()
    child.signal(signal.SIGINT)
    child.put({"text": "still there"})
    assert child.answer() == {"said": "still there"}


def test_its_end_is_no_answer(child: JsonProcess) -> None:
    child.put({"end": 3})
    assert child.answer() is None
    assert (child.wait(), child.runs) == (3, False)
    child.put({"text": "to nobody"})
    child.signal(signal.SIGTERM)
    assert child.answer() is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel to end it")
def test_a_stopped_child_ends_with_its_parent() -> None:
    program = (
        "import os, signal, sys; from r2gen_export.system.child_process import JsonProcess\n"
        f"child = JsonProcess([sys.executable, '-c', {CHILD!r}])\n"
        "child.put({'text': 'ready'}); child.answer(); child.signal(signal.SIGSTOP)\n"
        "print(child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 30
    while _is_there(int(done.stdout)):
        assert time.monotonic() < deadline, "it outlives its parent"
        time.sleep(0.02)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
