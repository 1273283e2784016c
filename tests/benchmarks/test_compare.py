"""Two reports side by side: verdicts that hold, refusals that name what differs, exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.latency.compare import compare_reports, slower_than
from benchmarks.latency.markdown import comparison_text
from r2gen_export.commands.bench import share
from r2gen_export.errors import R2GenError
from tests.benchmarks.synthetic import noisy, report
from tests.command import run_here


def verdicts(found: dict) -> dict[str, str]:
    return {one["name"]: one["verdict"] for one in found["configurations"][0]["metrics"]}


def test_a_run_against_itself_is_not_significant_in_19_of_20_tries():
    rng = np.random.default_rng(5)
    called = 0
    for _ in range(40):
        a, b = (report(noisy(rng, studies=3), studies=3) for _ in range(2))
        called += any(one in ("worse", "better") for one in verdicts(compare_reports(a, b)).values())
    assert called <= 2


def test_a_slow_down_of_a_tenth_is_found():
    rng = np.random.default_rng(6)
    found = 0
    for _ in range(20):
        a = report(noisy(rng, studies=3, between=0.015, within=0.03), studies=3)
        b = report(noisy(rng, studies=3, between=0.015, within=0.03, factor=1.1), studies=3)
        found += verdicts(compare_reports(a, b))["total"] == "worse"
    assert found >= 18


def test_studies_of_different_length_do_not_hide_it():
    """Reports of one study take five times those of another; a pooled median would jump between the two."""
    rng = np.random.default_rng(7)
    a = report(noisy(rng, rounds=5, studies=5, between=0.01, within=0.01), studies=5)
    b = report(noisy(rng, rounds=5, studies=5, between=0.01, within=0.01, factor=1.1), studies=5)
    (total,) = (one for one in compare_reports(a, b)["configurations"][0]["metrics"] if one["name"] == "total")
    assert total["ratio"] == pytest.approx(1.1, rel=0.03)
    assert total["verdict"] == "worse"


def test_a_slower_machine_is_not_a_slower_program():
    rng = np.random.default_rng(8)
    a, b = report(noisy(rng)), report(noisy(rng, factor=1.1), rate=0.85)
    found = compare_reports(a, b)
    assert found["drift"] == pytest.approx(1 / 0.85 - 1)
    assert verdicts(found)["total"] == "no significant difference"


def test_a_machine_that_wavers_may_have_changed():
    """What its rates scatter by may have happened between the runs too; more moments would tell."""
    rng = np.random.default_rng(16)
    times = [noisy(rng, rounds=12, between=0.002, within=0.01, factor=factor) for factor in (1.0, 1.1)]
    a, b = (report(one, wavers=0.1) for one in times)
    found = compare_reports(a, b)
    error = 1.2533 * 1.4826 * 0.1 / 6**0.5
    assert found["drift"] == pytest.approx(np.exp(2 * 2**0.5 * error) - 1, rel=1e-3)
    assert verdicts(found)["total"] == "no significant difference"
    b["machine"] = a["machine"] = {"moments": a["machine"]["moments"][:1]}
    assert verdicts(compare_reports(a, b))["total"] == "worse"


def test_memory_counts_only_where_the_model_is_read_from_it():
    rng = np.random.default_rng(17)
    a, b = report(noisy(rng)), report(noisy(rng))
    for one in b["machine"]["moments"]:
        one["read_gb_s"] /= 2
    assert compare_reports(a, b)["drift"] == pytest.approx(0.0)
    b["configurations"][0]["roofline"] = {"reason": "no floors"}
    assert compare_reports(a, b)["drift"] == pytest.approx(1.0)


def test_small_differences_mean_nothing_on_a_virtual_machine():
    rng = np.random.default_rng(18)
    a, b = (report(noisy(rng, rounds=12, between=0.002, within=0.01, factor=factor)) for factor in (1.0, 1.04))
    assert verdicts(compare_reports(a, b))["total"] == "worse"
    b["environment"]["virtual_machine"] = True
    assert verdicts(compare_reports(a, b))["total"] == "no significant difference"


def test_no_verdict_where_neighbours_slowed_the_machine():
    rng = np.random.default_rng(19)
    a, b = report(noisy(rng)), report(noisy(rng, factor=1.5))
    b["configurations"][0]["steadiness"]["gemm_spread"] = 1.6
    assert verdicts(compare_reports(a, b))["total"] == "machine was busy"


def test_no_verdict_on_times_of_a_busy_machine():
    """What other programs take is not r2gen's; memory is judged all the same, and force judges everything."""
    rng = np.random.default_rng(15)
    a, b = report(noisy(rng)), report(noisy(rng, factor=1.5), foreign=1.0)
    found = verdicts(compare_reports(a, b))
    assert found["total"] == found["ttft"] == found["tpot"] == "machine was busy"
    assert found["peak_rss"] == "no significant difference"
    assert slower_than(compare_reports(a, b), 0.0) == []
    assert verdicts(compare_reports(a, b, force=True))["total"] == "worse"


def test_improvement_is_not_a_failure():
    rng = np.random.default_rng(9)
    found = compare_reports(report(noisy(rng)), report(noisy(rng, factor=0.8)))
    assert verdicts(found)["total"] == "better"
    assert slower_than(found, 0.0) == []
    assert verdicts(found)["peak_rss"] == "no significant difference"
    assert verdicts(found)["encode"] == "", "only a few metrics are judged"


def test_few_processes_get_no_verdict():
    rng = np.random.default_rng(10)
    a, b = report(noisy(rng, processes=4)), report(noisy(rng, processes=4, factor=2.0))
    assert verdicts(compare_reports(a, b))["total"] == "too few processes"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda one: one["environment"].update(host="other", cpu="other CPU"), "host"),
        (lambda one: one["bundle"].update(id="c"), "bundle (b against c)"),
        (lambda one: one["bundle"].update(precision={"decoder": "int4"}), "precision (decoder fp32 against decoder"),
        (lambda one: one["settings"].update(images_digest="e"), "pictures"),
        (lambda one: one["configurations"][0]["decoding"].update(num_beams=3), "num_beams 1 against 3"),
        (lambda one: one["configurations"][0].update(semantics="hf-4.30"), "semantics"),
        (lambda one: one["configurations"][0].update(provider="OpenVINO"), "provider"),
        (lambda one: one["configurations"][0].update(threads=1), "threads"),
        (lambda one: one["configurations"][0].update(name="cuda, fast"), "no configuration is in both"),
    ],
)  # fmt: skip
def test_different_conditions_are_refused_by_name_unless_forced(change, named):
    rng = np.random.default_rng(11)
    a, b = report(noisy(rng)), report(noisy(rng))
    change(b)
    with pytest.raises(R2GenError, match="R2G-BENCH-CONDITIONS") as caught:
        compare_reports(a, b)
    assert named in caught.value.message
    forced = compare_reports(a, b, force=True)
    assert forced["configurations"]
    if forced["differs"]:
        assert "CONDITIONS DIFFER" in comparison_text(forced)


def test_other_versions_are_a_note_not_a_refusal():
    rng = np.random.default_rng(12)
    a, b = report(noisy(rng)), report(noisy(rng))
    b["environment"]["git"] = "abcdef"
    b["environment"]["packages"] = {"onnxruntime": "1.32"}
    assert compare_reports(a, b)["notes"] == ["git: None against abcdef", "onnxruntime: None against 1.32"]


def test_a_report_that_lacks_its_parts_is_refused():
    rng = np.random.default_rng(13)
    a, b = report(noisy(rng)), report(noisy(rng))
    del b["configurations"][0]["samples"]
    with pytest.raises(R2GenError, match="R2G-BENCH-FORMAT"):
        compare_reports(a, b)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Reports of one thing, of itself again, and of one a fifth slower."""
    rng = np.random.default_rng(14)
    paths = []
    for name, factor in (("a", 1.0), ("same", 1.0), ("slow", 1.2)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(report(noisy(rng, factor=factor))), encoding="utf-8")
        paths.append(folder)
    return paths[0], paths[1], paths[2]


def test_exit_statuses(folders):
    a, same, slow = folders
    fine = run_here("bench", "compare", a, same, "--fail-above", "5%")
    assert fine.returncode == 0, fine.stderr
    assert "no significant difference" in fine.stdout
    failed = run_here("bench", "compare", a, slow / "report.json", "--fail-above", "5%")
    assert failed.returncode == 3
    assert failed.stderr.startswith("R2G-BENCH-SLOWER: worse by more than 0.05: cpu, fast: end to end +")
    assert "worse" in failed.stdout, "the table is shown all the same"
    assert run_here("bench", "compare", a, slow, "--fail-above", "40%").returncode == 0
    assert run_here("bench", "compare", a, slow).returncode == 0
    assert run_here("bench", "compare", slow, a, "--fail-above", "0%").returncode == 0, "faster is fine"


def test_a_gate_without_a_verdict_is_not_passed(folders):
    path = folders[1] / "report.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["configurations"][0]["steadiness"]["foreign_cores"] = 1.5
    path.write_text(json.dumps(found), encoding="utf-8")
    shown = run_here("bench", "compare", folders[0], folders[1], "--fail-above", "5%")
    assert shown.returncode == 2
    assert shown.stderr.startswith("R2G-BENCH-CONDITIONS: no verdict")
    assert "machine was busy" in shown.stderr
    assert run_here("bench", "compare", folders[0], folders[1]).returncode == 0


def test_json(folders):
    shown = run_here("bench", "compare", folders[0], folders[2], "--format", "json")
    found = json.loads(shown.stdout)
    assert found["schema"] == "r2gen-bench-compare/1"
    assert verdicts(found)["total"] == "worse"


@pytest.mark.parametrize(("text", "expected"), [("5%", 0.05), ("0.05", 0.05), (" 12.5 % ", 0.125), ("0", 0.0)], ids=str)
def test_shares(text, expected):
    assert share(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "five", "-1%", "5%%", "nan", "5 percent"])
def test_not_a_share(text):
    with pytest.raises(R2GenError, match="R2G-CONFIG-VALUE"):
        share(text)


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "cannot be read"), ("{", "is not JSON"), ("[]", "has schema None"), ('{"schema": "r2gen-bench/9"}', "/9"),
     ('{"schema": "r2gen-bench/1"}', "environment is missing")],
)  # fmt: skip
def test_files_that_are_no_report(tmp_path, content, named):
    file = tmp_path / "report.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    shown = run_here("bench", "compare", file, file)
    assert shown.returncode == 2
    assert shown.stderr.startswith("R2G-BENCH-FORMAT")
    assert named in shown.stderr
