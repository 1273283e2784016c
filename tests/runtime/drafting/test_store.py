"""A bundle's store of drafts: built, learned, torn, shared between processes, wiped."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from r2gen_export.bundle import bundle_id, demo_bundle, open_bundle
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.drafting import store as draft_store
from r2gen_export.runtime.drafting.read_reports import read_reports
from r2gen_export.runtime.pipeline import Pipeline
from tests.command import run_here

PHANTOM = Path(__file__).parents[2] / "data/phantom.png"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle(), tmp_path / "bundle"))


def test_build_infer_show_wipe(bundle: Path, tmp_path: Path) -> None:
    plain = run_here("infer", PHANTOM, "--bundle", bundle, "--format", "json")
    wanted = json.loads(plain.stdout)
    assert (wanted["drafted"], wanted["accepted"], wanted["passes"]) == (0, 0, len(wanted["token_ids"]) - 1)
    assert run_here("drafts", "show", bundle).stdout.startswith("no store")
    (tmp_path / "mine.json").write_text(plain.stdout, encoding="utf-8")
    (tmp_path / "other.txt").write_text("The lungs are clear.\n\nNo evidence of pneumothorax.\n", encoding="utf-8")
    built = run_here(
        "drafts", "build", bundle, "--reports", tmp_path / "mine.json", "--reports", tmp_path / "other.txt"
    )
    assert built.returncode == 0, built.stderr
    assert "3 reports" in built.stderr
    assert bundle_id(open_bundle(bundle)) == wanted["bundle_id"]
    first = json.loads(run_here("infer", PHANTOM, "--bundle", bundle, "--format", "json").stdout)
    second = json.loads(run_here("infer", PHANTOM, "--bundle", bundle, "--format", "json", "--no-learn").stdout)
    for one in (first, second):
        assert one["token_ids"] == wanted["token_ids"]
        assert one["accepted"] > 20
        assert one["passes"] < 20
    assert "learned: 1 reports" in run_here("drafts", "show", bundle).stdout
    off = json.loads(run_here("infer", PHANTOM, "--bundle", bundle, "--format", "json", "--no-draft").stdout)
    assert (off["token_ids"], off["drafted"]) == (wanted["token_ids"], 0)
    assert run_here("drafts", "wipe", bundle, "--learned").returncode == 0
    assert "site: 3 reports" in run_here("drafts", "show", bundle).stdout
    assert run_here("drafts", "wipe", bundle).returncode == 0
    assert not [path.name for path in (bundle / "drafts").iterdir() if path.name != "lock"]
    open_bundle(bundle)


def test_no_text_is_stored(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Mrs. Miller has pneumothorax.\n", encoding="utf-8")
    run_here("drafts", "build", bundle, "--reports", tmp_path / "one.txt")
    run_here("infer", PHANTOM, "--bundle", bundle)
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
    found = run_here("drafts", "build", bundle, "--reports", tmp_path / name)
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
        draft_store.Learned(bundle).append(report)
    whole = learned.read_bytes()
    rng = np.random.default_rng(0)
    for cut in range(1, len(whole)):
        learned.write_bytes(whole[:cut])
        kept = draft_store.Learned(bundle).read()
        assert kept == reports[: cut * 3 // len(whole)]
        if cut % 20 == 0:
            draft_store.Learned(bundle).append(reports[9])
            assert draft_store.Learned(bundle).read() == [*kept, reports[9]]
    damaged = bytearray(whole)
    damaged[int(rng.integers(len(whole) // 3))] ^= 4
    learned.write_bytes(damaged)
    assert draft_store.Learned(bundle).read() == []
    learned.write_bytes(b"")
    monkeypatch.setattr(draft_store, "MOST_BYTES", 4096)
    for report in reports:
        draft_store.Learned(bundle).append(report)
        assert learned.stat().st_size <= 4096
    kept = draft_store.Learned(bundle).read()
    assert 5 <= len(kept) < 40
    assert kept == reports[-len(kept) :]


def append_reading_all(path: Path, tokens: Sequence[int], most: int) -> None:
    """What adding a report means, said without remembering anything: every record is looked at each time."""
    content = path.read_bytes() if path.exists() else b""
    ends = [0]
    while ends[-1] + 8 <= len(content):
        count, checksum = struct.unpack_from("<II", content, ends[-1])
        end = ends[-1] + 8 + 4 * count
        if end > len(content) or zlib.crc32(content[ends[-1] + 8 : end]) != checksum:
            break
        ends.append(end)
    payload = np.array(tokens, "<i4").tobytes()
    record = struct.pack("<II", len(tokens), zlib.crc32(payload)) + payload
    start = 0
    if ends[-1] + len(record) > most:
        start = next((end for end in ends[1:] if end >= ends[-1] // 2), ends[-1])
    path.write_bytes(content[start : ends[-1]] + record)


@pytest.mark.parametrize("seed", range(4))
def test_remembering_what_was_whole_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Several writers, reads, kills in the middle of a record, wipes, halvings, damage by others: the same bytes."""
    most = 3000
    monkeypatch.setattr(draft_store, "MOST_BYTES", most)
    (tmp_path / "drafts").mkdir()
    learned, wanted = tmp_path / draft_store.LEARNED, tmp_path / "wanted.bin"
    rng = np.random.default_rng(seed)
    writers = [draft_store.Learned(tmp_path) for _ in range(3)]
    seen = set()
    for _ in range(1500):
        writer = writers[rng.integers(3)]
        action = rng.choice(
            ["append", "read", "kill", "wipe", "restart", "damage"], p=[0.7, 0.1, 0.1, 0.01, 0.08, 0.01]
        )
        seen.add(action)
        if action == "append":
            # Few lengths and many zeros: ends of other records then lie where this writer thinks one ends.
            tokens = rng.integers(0, 2, rng.choice([0, 1, 20, 20, 90])).tolist()
            writer.append(tokens)
            append_reading_all(wanted, tokens, most)
        elif action == "read":
            writer.read()
        elif action == "wipe":
            learned.unlink(missing_ok=True)
            wanted.unlink(missing_ok=True)
        elif action == "restart":
            writers[rng.integers(3)] = draft_store.Learned(tmp_path)
        elif learned.exists():
            content = bytearray(learned.read_bytes())
            if action == "kill":
                tokens = rng.integers(0, 9, 20)
                record = (
                    struct.pack("<II", 20, zlib.crc32(tokens.astype("<i4").tobytes())) + tokens.astype("<i4").tobytes()
                )
                content += record[: rng.integers(1, len(record))]
            elif content:
                del content[rng.integers(len(content)) :]
            with learned.open("r+b") as file:  # the same file, as another process would leave it
                file.truncate(len(content))
                file.write(content)
            wanted.write_bytes(content)
        assert (learned.read_bytes() if learned.exists() else None) == (
            wanted.read_bytes() if wanted.exists() else None
        )
    assert len(seen) == 6


def test_an_append_reads_only_what_it_has_not_seen(tmp_path: Path) -> None:
    """Damage in front goes unnoticed by those who have been there, and only by those."""
    (tmp_path / "drafts").mkdir()
    learned = tmp_path / draft_store.LEARNED
    one, two = draft_store.Learned(tmp_path), draft_store.Learned(tmp_path)
    one.append(range(100))
    two.read()
    with learned.open("r+b") as file:
        file.write(b"\xff")
    one.append(range(10))
    two.append(range(10))
    one.append(range(10))
    assert learned.stat().st_size == 408 + 3 * 48
    draft_store.Learned(tmp_path).append(range(10))
    assert learned.stat().st_size == 48


def test_processes_that_learn_together_lose_nothing(bundle: Path) -> None:
    (bundle / "drafts").mkdir()
    code = (
        "import sys; from pathlib import Path; from r2gen_export.runtime.drafting.store import Learned\n"
        "learned = Learned(Path(sys.argv[1]))\n"
        "for step in range(100): learned.append([int(sys.argv[2]), step, *range(30)])\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(bundle), str(number)]) for number in range(4)]
    assert [one.wait() for one in running] == [0] * 4
    found = draft_store.Learned(bundle).read()
    assert sorted((one[0], one[1]) for one in found) == [(number, step) for number in range(4) for step in range(100)]


def test_a_killed_writer_leaves_a_store_that_works(bundle: Path) -> None:
    (bundle / "drafts").mkdir()
    code = (
        "import sys; from pathlib import Path; from r2gen_export.runtime.drafting.store import Learned\n"
        "learned = Learned(Path(sys.argv[1])); print('go', flush=True)\n"
        "while True: learned.append(range(5000))\n"
    )
    for _ in range(5):
        running = subprocess.Popen([sys.executable, "-c", code, str(bundle)], stdout=subprocess.PIPE)
        assert running.stdout is not None
        running.stdout.readline()
        running.kill()
        running.wait()
        draft_store.Learned(bundle).append([1, 2, 3])
        assert draft_store.Learned(bundle).read()[-1] == (1, 2, 3)


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
