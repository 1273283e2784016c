"""The recipe for a machine without network: what INSTALL.md says, in a network namespace without network."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.pages import BLOCKS, COMMANDS, ROOT, shell

OFFLINE = ("unshare", "--map-root-user", "--net")

LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist")


def may_unshare() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*OFFLINE, "true"], check=False).returncode == 0


def dependencies_alone(folder: Path) -> Path:
    """Links to the packages of this environment, r2gen itself left out, as a folder for PYTHONPATH."""
    folder.mkdir()
    for entry in Path(site.getsitepackages()[0]).iterdir():
        if not entry.name.startswith(("r2gen", "__editable__")) and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not may_unshare(), reason="this user may not make a network namespace")
def test_install_without_network(tmp_path: Path) -> None:
    """The page's commands as they stand.

    The dependencies come from this environment by PYTHONPATH, so that `pip wheel` builds r2gen's wheel alone and `pip
    install` finds the others installed: 295 MB of downloads would be too slow here. The commands' form is tested.
    """
    connected, offline = tmp_path / "connected", tmp_path / "offline"
    shutil.copytree(ROOT, connected, ignore=LEFT_OUT)
    packages = str(dependencies_alone(tmp_path / "packages"))
    scripts = Path(sys.executable).parent
    # pip reads the second variable as the value of the option's opposite, build isolation.
    shell(
        COMMANDS["wheels"].text,
        connected,
        scripts=scripts,
        PYTHONPATH=packages,
        PIP_NO_DEPS="1",
        PIP_NO_BUILD_ISOLATION="0",
    )
    assert [wheel.name.partition("-")[0] for wheel in (connected / "wheels").iterdir()] == ["r2gen"]
    offline.mkdir()
    shutil.move(connected / "wheels", offline / "wheels")
    shutil.rmtree(connected)
    with pytest.raises(AssertionError, match="Network is unreachable"):
        reach = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"
        shell(f'python3 -c "{reach}"', offline, wrapper=OFFLINE)
    shell(COMMANDS["offline"].text, offline, scripts=scripts, wrapper=OFFLINE, PYTHONPATH=packages)
    image = ROOT / "tests/data/phantom.png"
    out = shell(f".venv/bin/r2gen infer '{image}'", offline, wrapper=OFFLINE, PYTHONPATH=packages)
    assert out == next(block.text for block in BLOCKS if block.kind == "output" and block.name == "run")
    # Data files of the package are read from the wheel, too.
    reports = offline / "reports.csv"
    reports.write_text("id,text,reference\n1,Clear lungs.,Mild cardiomegaly.\n", encoding="utf-8")
    evaluate = (
        ".venv/bin/r2gen evaluate --predictions reports.csv --dataset mimic_cxr --protocol raw --out evaluation -q"
    )
    shell(f"{evaluate} --no-meteor", offline, wrapper=OFFLINE, PYTHONPATH=packages)
    assert "R2GenGPT deep" in (offline / "evaluation/table.md").read_text(encoding="utf-8")
