"""The commands of README.md and of the pages beside the code do what the pages say, in order, in a fresh folder."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from r2gen_export.bundle import NOTICE
from tests.helpers.pages import BLOCKS, COMMANDS, PAGES, ROOT, shell

LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist")

TOUR = (
    "doctor", "infer", "stream", "train", "checkpoint", "python", "drafts", "export", "own-studies", "published",
    "precision", "engines", "bench",
)  # fmt: skip
"""Blocks that build on each other's files, in the order in which they run."""

ELSEWHERE = {
    "run", "tests", "lint", "wheels", "offline",
    "serve", "serve-curl", "serve-python", "serve-forms", "serve-openai", "serve-keys", "serve-keys-curl",
}  # fmt: skip
"""Blocks with a test of their own: here, `.ci/run` itself, test_offline_install.py, or test_http_pages.py."""

STAND_INS = {"microsoft/swin-base-patch4-window7-224": "demo/vision", "meta-llama/Llama-2-7b-chat-hf": "demo/llm"}
"""What the tests use for the models of the hub, which need a network, a licence and 13.5 GB."""


def says_notice(out: str) -> bool:
    """The notice is wrapped in text and whole in JSON."""
    return NOTICE in " ".join(out.replace("\n| ", " ").split())


def test_every_block_is_executed_or_says_why_not() -> None:
    unmarked = [
        (block.page, block.text) for block in BLOCKS if block.language in ("sh", "python", "") and not block.kind
    ]
    assert not unmarked, "a block without '<!-- command: NAME -->' is executed by nobody"
    names = [block.name for block in BLOCKS if block.kind == "command"]
    assert sorted(names) == sorted({*TOUR, *ELSEWHERE}), "every block once"
    assert {block.page for block in BLOCKS if block.kind == "not executed"} <= {"benchmarks/gpu/README.md"}


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 10_000
    assert len(COMMANDS["checkpoint"].text.replace("\\\n", "").splitlines()) == 3
    assert len(COMMANDS["python"].text.splitlines()) <= 5


def test_picture_shows_the_report_below_it() -> None:
    (shown,) = (block.text for block in BLOCKS if block.kind == "output" and block.name == "run")
    with Image.open(ROOT / "r2gen_export/commands/report.png") as picture:
        assert shown.startswith(picture.info["report"] + "\n")


def heading_anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in heading_anchors(file), f"{page.name}: {target}"


def test_extras_that_pages_name_exist() -> None:
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = {name for names in re.findall(r"'(?:\.|r2gen)\[([\w,-]+)\]'", texts) for name in names.split(",")}
    assert named == extras


def test_ci_runs_the_tests_block() -> None:
    """What .ci/run reads from the README, before it runs it, is the block."""
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    (reading,) = re.findall(r"^tests=.*$", ci, re.MULTILINE)
    assert shell(f'{reading}\necho "$tests"', ROOT) == COMMANDS["tests"].text
    assert re.search(r'^bash .*-c "\$tests"$', ci, re.MULTILINE)


def test_ci_runs_the_lint_block() -> None:
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    commands = COMMANDS["lint"].text.splitlines()
    assert commands
    assert set(commands) <= set(ci)


@pytest.mark.slow
@pytest.mark.long
def test_run_block_installs_and_reports_without_torch(tmp_path: Path) -> None:
    """A copy of the tree without its dotfiles, a new virtual environment, the README's command and its output."""
    copy = tmp_path / "r2gen"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    out = shell(COMMANDS["run"].text, copy, PYTHONPATH="")
    (shown,) = (block.text for block in BLOCKS if block.kind == "output" and block.name == "run")
    assert out.endswith(shown), "pip's progress, then the report"
    assert says_notice(out)
    packages = shell(".venv/bin/pip list --format=freeze", copy).lower()
    assert "r2gen==" in packages
    assert "onnxruntime" in packages
    assert not re.search(r"^(torch|transformers|optimum|lightning|peft)\b", packages, re.MULTILINE)


def write_published_checkpoint(run: Path, file: Path) -> None:
    """The trained tensors of a run in the form of the published code's `.pth`."""
    import torch
    from safetensors.torch import load_file

    from tests.helpers.published import published_args

    arguments = published_args(Path("demo/vision"), Path("demo/llm"))
    tensors = load_file(run / "adapter.safetensors")
    torch.save({"model": tensors, "config": arguments, "epoch": 0, "step": 6}, file)


@pytest.mark.timeout(3600)
@pytest.mark.slow
@pytest.mark.long
def test_tour(tmp_path: Path) -> None:
    """One test, because a block reads the files of those before it and processes of pytest-xdist share no test."""
    shutil.copy(ROOT / "tests/data/phantom.png", tmp_path / "image.png")
    for name in TOUR:
        run_block(name, tmp_path)


def run_block(name: str, tour_folder: Path) -> None:
    """A block as it stands, but for the hub's models and the installation of extras, which are there."""
    scripts = Path(sys.executable).parent
    assert (scripts / "r2gen").exists(), "install with: pip install -e '.[dev]'"
    block = COMMANDS[name]
    commands = re.sub(r"^pip install '\.\[[\w,-]+\]'\n", "", block.text)
    if name == "checkpoint":
        write_published_checkpoint(tour_folder / "run/best", tour_folder / "my.pth")
        for model, folder in STAND_INS.items():
            assert model in commands
            commands = commands.replace(model, folder)
    if block.language == "python":
        commands = f"python - <<'END'\n{commands}END"
    out = shell(commands, tour_folder, scripts=scripts)
    if "r2gen infer" in commands or "Pipeline" in commands:
        assert says_notice(out)
