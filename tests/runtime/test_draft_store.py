"""A bundle's store of drafts: built, learned, torn, shared between processes, wiped."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from r2gen_export.bundle import bundle_id, demo_bundle, open_bundle
from r2gen_export.errors import R2GenError
from r2gen_export.runtime import draft_store
from r2gen_export.runtime.draft_reports import read_reports
from r2gen_export.runtime.pipeline import Pipeline
from tests.test_cli import run_cli

PHANTOM = Path(__file__).parents[1] / "data/phantom.png"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle(), tmp_path / "bundle"))


def test_build_infer_show_wipe(bundle: Path, tmp_path: Path) -> None:
    plain = run_cli("infer", PHANTOM, "--bundle", bundle, "--format", "json")
    wanted = json.loads(plain.stdout)
    assert (wanted["drafted"], wanted["accepted"], wanted["passes"]) == (0, 0, len(wanted["token_ids"]) - 1)
    assert run_cli("drafts", "show", bundle).stdout.startswith("no store")
    (tmp_path / "mine.json").write_text(plain.stdout, encoding="utf-8")
    (tmp_path / "other.txt").write_text("The lungs are clear.\n\nNo evidence of pneumothorax.\n", encoding="utf-8")
    built = run_cli("drafts", "build", bundle, "--reports", tmp_path / "mine.json", "--reports", tmp_path / "other.txt")
    assert built.returncode == 0, built.stderr
    assert "3 reports" in built.stderr
    assert bundle_id(open_bundle(bundle)) == wanted["bundle_id"]
    first = json.loads(run_cli("infer", PHANTOM, "--bundle", bundle, "--format", "json").stdout)
    second = json.loads(run_cli("infer", PHANTOM, "--bundle", bundle, "--format", "json", "--no-learn").stdout)
    for one in (first, second):
        assert one["token_ids"] == wanted["token_ids"]
        assert one["accepted"] > 20
        assert one["passes"] < 20
    assert "learned: 1 reports" in run_cli("drafts", "show", bundle).stdout
    off = json.loads(run_cli("infer", PHANTOM, "--bundle", bundle, "--format", "json", "--no-draft").stdout)
    assert (off["token_ids"], off["drafted"]) == (wanted["token_ids"], 0)
    assert run_cli("drafts", "wipe", bundle, "--learned").returncode == 0
    assert "site: 3 reports" in run_cli("drafts", "show", bundle).stdout
    assert run_cli("drafts", "wipe", bundle).returncode == 0
    assert not [path.name for path in (bundle / "drafts").iterdir() if path.name != "lock"]
    open_bundle(bundle)


def test_no_text_is_stored(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Mrs. Miller has pneumothorax.\n", encoding="utf-8")
    run_cli("drafts", "build", bundle, "--reports", tmp_path / "one.txt")
    run_cli("infer", PHANTOM, "--bundle", bundle)
    for path in (bundle / "drafts").iterdir():
        content = path.read_bytes()
        assert not any(word in content for word in (b"Miller", b"pneumo", b"cardiac", b"one.txt", b"phantom"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "{"),
        ("a.json", '[{"findings": "clear"}]'),
        ("a.txt", "\n \n"),
        ("a.jsonl", '{"error": {}}\n'),
        ("missing.txt", None),
        ("a.txt", b"\xff\xfe\x00"),
    ],
)
def test_reports_that_are_none(bundle: Path, tmp_path: Path, name: str, content: str | bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = run_cli("drafts", "build", bundle, "--reports", tmp_path / name)
    assert found.returncode == 2
    assert "R2G-DATA-" in found.stderr
    assert "Traceback" not in found.stderr
    assert not (bundle / "drafts").exists()


def test_annotation_without_its_test_split(tmp_path: Path) -> None:
    annotation = {"train": [{"report": "One."}], "val": [{"report": "Two. "}], "test": [{"report": "Three."}]}
    (tmp_path / "annotation.json").write_text(json.dumps(annotation), encoding="utf-8")
    assert read_reports([tmp_path / "annotation.json"]) == ["One.", "Two."]
    assert read_reports([tmp_path / "annotation.json"], "iu_xray") == ["one .", "two ."]


def test_torn_records_are_cut_off_and_the_size_is_bounded(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle / "drafts").mkdir()
    learned = bundle / draft_store.LEARNED
    reports = [tuple(range(number, number + 50)) for number in range(40)]
    for report in reports[:3]:
        draft_store.append_learned(bundle, report)
    whole = learned.read_bytes()
    rng = np.random.default_rng(0)
    for cut in range(1, len(whole)):
        learned.write_bytes(whole[:cut])
        kept = draft_store.read_learned(bundle)
        assert kept == reports[: cut * 3 // len(whole)]
        if cut % 20 == 0:
            draft_store.append_learned(bundle, reports[9])
            assert draft_store.read_learned(bundle) == [*kept, reports[9]]
    damaged = bytearray(whole)
    damaged[int(rng.integers(len(whole) // 3))] ^= 4
    learned.write_bytes(damaged)
    assert draft_store.read_learned(bundle) == []
    learned.write_bytes(b"")
    monkeypatch.setattr(draft_store, "MOST_BYTES", 4096)
    for report in reports:
        draft_store.append_learned(bundle, report)
        assert learned.stat().st_size <= 4096
    kept = draft_store.read_learned(bundle)
    assert 5 <= len(kept) < 40
    assert kept == reports[-len(kept) :]


def test_processes_that_learn_together_lose_nothing(bundle: Path) -> None:
    (bundle / "drafts").mkdir()
    code = (
        "import sys; from pathlib import Path; from r2gen_export.runtime.draft_store import append_learned\n"
        "for step in range(100): append_learned(Path(sys.argv[1]), [int(sys.argv[2]), step, *range(30)])\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(bundle), str(number)]) for number in range(4)]
    assert [one.wait() for one in running] == [0] * 4
    found = draft_store.read_learned(bundle)
    assert sorted((one[0], one[1]) for one in found) == [(number, step) for number in range(4) for step in range(100)]


def test_a_killed_writer_leaves_a_store_that_works(bundle: Path) -> None:
    (bundle / "drafts").mkdir()
    code = (
        "import sys; from pathlib import Path; from r2gen_export.runtime.draft_store import append_learned\n"
        "print('go', flush=True)\n"
        "while True: append_learned(Path(sys.argv[1]), range(5000))\n"
    )
    for _ in range(5):
        running = subprocess.Popen([sys.executable, "-c", code, str(bundle)], stdout=subprocess.PIPE)
        assert running.stdout is not None
        running.stdout.readline()
        running.kill()
        running.wait()
        draft_store.append_learned(bundle, [1, 2, 3])
        assert draft_store.read_learned(bundle)[-1] == (1, 2, 3)


def test_a_changed_store_is_noticed_and_a_read_only_one_costs_no_report(bundle: Path, tmp_path: Path) -> None:
    manifest = draft_store.build_store(bundle, open_bundle(bundle), [[5, 6, 7, 2]])
    name = draft_store.store_entry(manifest)
    assert name is not None
    shutil.copytree(bundle, tmp_path / "changed")
    (tmp_path / "changed" / name).write_bytes(b"\0" * manifest.files[name].size)
    with pytest.raises(R2GenError, match="R2G-BUNDLE-HASH"):
        open_bundle(tmp_path / "changed")
    (bundle / draft_store.LEARNED).mkdir()  # nobody, root neither, can write a report there
    assert Pipeline.from_bundle(bundle, device="cpu").generate(PHANTOM).text
    with pytest.raises(R2GenError, match="R2G-DATA-EMPTY"):
        draft_store.build_store(bundle, manifest, [])
