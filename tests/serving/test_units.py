"""The units for systemd: systemd itself reads them, and the service keeps to the system calls that its unit allows."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx")
for package in ("uvicorn", "starlette", "python_multipart", "prometheus_client", "pydicom"):
    pytest.importorskip(package)

from tests.helpers.dicom_files import radiograph, stored, write  # noqa: E402
from tests.helpers.pages import ROOT  # noqa: E402
from tests.serving.http_site import Service, files, pictures  # noqa: E402

UNITS = ROOT / "r2gen_export/serving"
EXPOSURE = {"r2gen-serve": 15, "r2gen-node": 33}
"""The most that `systemd-analyze security` may find, in tenths: 0 is none, 100 a service without any restriction."""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", EXPOSURE)
def test_systemd_reads_the_unit(tmp_path: Path, name: str) -> None:
    text = (UNITS / f"{name}.service").read_text(encoding="utf-8")
    assert text.count("/opt/r2gen/bin/r2gen ") == 1
    program = shutil.which("true")
    assert program
    unit = tmp_path / f"{name}.service"
    unit.write_text(text.replace("/opt/r2gen/bin/r2gen ", f"{program} "))
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE[name]}", unit)
    assert done.returncode == 0, done.stdout


def system_calls(group: str) -> set[str]:
    """The names that a group such as `@system-service` stands for."""
    names: set[str] = set()
    for line in re.sub(r"\x1b\[[0-9;]*m", "", analyze("syscall-filter", group).stdout).splitlines()[1:]:
        name = line.strip()
        if name.startswith("@"):
            names |= system_calls(name)
        elif name and not name.startswith("#"):
            names.add(name)
    return names


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_service_keeps_to_its_system_calls(tmp_path: Path) -> None:
    unit = (UNITS / "r2gen-serve.service").read_text(encoding="utf-8")
    allowed: set[str] = set()
    for out, group in re.findall(r"^SystemCallFilter=(~?)(@[\w-]+)$", unit, re.MULTILINE):
        allowed = allowed - system_calls(group) if out else allowed | system_calls(group)
    assert "read" in allowed and "reboot" not in allowed
    values = stored(12, False, 512, 512)
    write(tmp_path / "view.dcm", radiograph(values, 12), values, "explicit")
    trace = tmp_path / "trace"
    running = Service(("--audit-file", str(tmp_path / "audit")), tmp_path,
                      before=("strace", "-D", "-f", "-qq", "-o", str(trace)))  # fmt: skip
    try:
        running.wait_for("ready")
        with httpx.Client(base_url=running.url, timeout=120) as client:
            for path, form in ((pictures(tmp_path / "phantoms", 1)[0], "json"), (tmp_path / "view.dcm", "pdf")):
                assert client.post("/v1/reports", files=files(path), data={"format": form}).status_code == 200
        assert running.end() == 0
    finally:
        running.process.kill()
    used = set(re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)", trace.read_text(errors="replace"), re.MULTILINE))
    assert {"execve", "accept4", "madvise"} <= used
    assert used <= allowed
