"""The queue: what is answered for is on the disk, every study ends in one state, and nothing is tried for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.serving import status
from r2gen_export.serving.queue import MOST_ATTEMPTS, Queue
from r2gen_export.serving.records import Added, Image, Result
from r2gen_export.serving.settings import parse_dimse, parse_forms, parse_title, parse_url
from r2gen_export.serving.spool import Spool, make_spool, open_spool, spool_lock


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return make_spool(tmp_path / "spool")


@pytest.fixture
def queue(spool: Spool) -> Queue:
    return Queue(spool.database, spool.pseudonym)


def add(queue: Queue, study: str = "1.2", number: int = 1, sha256: str = "aa") -> Added:
    return queue.add_image(Image(study, f"{study}.{number}", sha256, f"images/{study}/{number}-{sha256}.dcm", 7))


def states(queue: Queue) -> list[tuple[int, str]]:
    return [(row["revision"], row["state"]) for row in status.studies(queue)]


def finished(queue: Queue, *destinations: str) -> None:
    """Report the study that waits; nothing is sent."""
    queue.close_quiet(0)
    study = queue.claim()
    assert study is not None
    result = Result("sr", "1.88", f"{study.study_uid}.9.{study.revision}", f"results/{study.id}.dcm")
    queue.finish(study, [result], destinations or ("A",))


def test_a_study_closes_when_no_image_came_for_a_while(queue: Queue) -> None:
    assert add(queue) is Added.new
    assert queue.close_quiet(60) == 0
    assert queue.claim() is None
    assert queue.close_quiet(0) == 1
    assert states(queue) == [(1, "quiet")]
    assert add(queue, number=2) is Added.new
    assert states(queue) == [(1, "received")], "an image that comes before the report joins it"


def test_a_clock_that_was_set_back_keeps_no_study_open(queue: Queue) -> None:
    add(queue)
    queue.rows("UPDATE studies SET changed = changed + 100000")
    assert queue.close_quiet(60) == 1


def test_the_same_image_again_changes_nothing_and_other_bytes_are_a_conflict(queue: Queue) -> None:
    add(queue)
    assert add(queue) is Added.again
    assert add(queue, sha256="bb") is Added.conflict
    (row,) = status.studies(queue)
    assert (row["images"], row["conflicts"]) == (1, 1)
    assert queue.image_sha256("1.2", "1.2.1") == "aa", "the first bytes stay"
    assert add(queue, study="1.3", number=1) is Added.new


def test_late_images_make_revisions_up_to_three_that_name_their_predecessor(queue: Queue) -> None:
    add(queue)
    finished(queue)
    for revision in (2, 3):
        assert add(queue, number=revision) is Added.new
        queue.close_quiet(0)
        study = queue.claim()
        assert study is not None
        assert study.revision == revision
        assert len(study.paths) == revision, "a revision is of all images"
        assert set(study.earlier) == {"sr"}
        queue.finish(study, [Result("sr", "1.88", f"9.{revision}", f"results/r{revision}.dcm")], ["A"])
    assert add(queue, number=4) is Added.too_late
    assert len(status.studies(queue)) == 3
    assert status.studies(queue)[-1]["too_late"] == 1


def test_what_was_being_reported_is_reported_after_a_crash(spool: Spool, queue: Queue) -> None:
    add(queue)
    queue.close_quiet(0)
    assert queue.claim() is not None
    again = Queue(spool.database, spool.pseudonym)
    assert again.recover() == 1
    study = again.claim()
    assert study is not None
    assert study.paths == ("images/1.2/1-aa.dcm",)


def test_a_study_that_kills_its_reporter_twice_is_refused(queue: Queue) -> None:
    add(queue)
    add(queue, study="1.3")
    queue.close_quiet(0)
    first = queue.claim()
    assert first is not None
    assert queue.died(first)
    again = queue.claim()
    assert again is not None
    assert again.id == first.id
    assert not queue.died(again)
    other = queue.claim()
    assert other is not None
    assert other.study_uid == "1.3", "the others go on"
    assert status.study(queue, first.id)["code"] == "R2G-INTERNAL"


def test_a_study_that_takes_the_node_with_it_is_not_begun_for_ever(spool: Spool, queue: Queue) -> None:
    add(queue)
    queue.close_quiet(0)
    for _ in range(MOST_ATTEMPTS):
        assert Queue(spool.database, spool.pseudonym).claim() is not None
        queue.recover()
    assert queue.claim() is None
    assert states(queue) == [(1, "refused")]


def test_a_report_that_was_stopped_on_purpose_does_not_count(queue: Queue) -> None:
    add(queue)
    queue.close_quiet(0)
    for _ in range(2 * MOST_ATTEMPTS):
        study = queue.claim()
        assert study is not None
        queue.put_back(study)
    queue.recover()
    assert states(queue) == [(1, "quiet")]


def test_a_study_is_sent_when_every_destination_has_it_and_dead_when_one_was_given_up(queue: Queue) -> None:
    add(queue)
    finished(queue, "A", "B")
    (to_a,), (to_b,) = queue.due("A"), queue.due("B")
    queue.begin_sending([to_a])
    assert states(queue) == [(1, "sending")]
    queue.sent(to_a)
    assert states(queue) == [(1, "sending")]
    queue.try_later(to_b, "status 0xA700", 3600)
    assert queue.due("B") == []
    queue.give_up(to_b, "not delivered in time")
    assert states(queue) == [(1, "dead")]
    assert queue.retry(1) == "delivery"
    assert [delivery.id for delivery in queue.due("B")] == [to_b.id]
    assert queue.due("A") == [], "what was delivered is not sent again"
    queue.sent(to_b)
    assert states(queue) == [(1, "sent")]
    assert queue.retry(1) == ""


def test_results_for_a_destination_that_is_gone_wait_for_nobody(queue: Queue) -> None:
    add(queue)
    finished(queue, "A", "B")
    assert queue.drop_destinations(["A"]) == 1
    queue.sent(queue.due("A")[0])
    assert states(queue) == [(1, "dead")]


def test_purge_takes_what_is_done_and_no_more(queue: Queue) -> None:
    add(queue)
    finished(queue)
    add(queue, study="1.3")
    assert queue.purge(0) == []
    queue.sent(queue.due("A")[0])
    assert queue.purge(1) == []
    assert sorted(queue.purge(0)) == ["images/1.2/1-aa.dcm", "results/1.dcm"]
    assert queue.purge(0) == []
    assert add(queue) is Added.again, "an image that comes again is known"
    assert queue.files() == ["images/1.3/1-aa.dcm"]


def test_pragmas_that_a_power_cut_depends_on(spool: Spool, queue: Queue) -> None:
    assert queue.rows("PRAGMA journal_mode")[0][0] == "wal"
    assert queue.rows("PRAGMA synchronous")[0][0] == 2, "FULL"


def test_spool_is_for_its_user_alone_and_for_one_node(spool: Spool) -> None:
    assert spool.folder.stat().st_mode & 0o777 == 0o700
    assert (spool.folder / "key").stat().st_mode & 0o777 == 0o600
    assert open_spool(spool.folder).pseudonym("1.2.3") == spool.pseudonym("1.2.3")
    assert make_spool(spool.folder.parent / "other").pseudonym("1.2.3") != spool.pseudonym("1.2.3")
    with (
        spool_lock(spool.folder),
        pytest.raises(R2GenError, match="another node uses this spool"),
        spool_lock(spool.folder),
    ):
        pass


def test_sweep_removes_what_no_row_names(spool: Spool) -> None:
    (spool.incoming / "half.dcm").write_bytes(b"half")
    listed = spool.image_path("1.2", "1.2.1", "aa")
    spool.write(listed, b"listed")
    spool.write(spool.image_path("1.2", "1.2.2", "bb"), b"orphan")
    assert spool.sweep([spool.relative(listed)]) == 2
    assert listed.read_bytes() == b"listed"
    assert "1.2" not in "".join(path.name for path in spool.folder.rglob("*"))


def test_destinations_as_they_are_given() -> None:
    assert parse_dimse("PACS@10.0.0.5:104").host == "10.0.0.5"
    assert parse_dimse("MY PACS@[::1]:104").host == "::1"
    assert parse_url("https://pacs/dicom-web/").url == "https://pacs/dicom-web/studies"
    assert parse_forms("sr,pdf") == ("sr", "dicom-pdf")
    for call, text in [
        (parse_dimse, "PACS"), (parse_dimse, "PACS@host"), (parse_dimse, "PACS@host:0"), (parse_dimse, "P@h:70000"),
        (parse_url, "pacs/dicom-web"), (parse_url, "https://user:secret@pacs"), (parse_title, "A" * 17),
        (parse_title, ""), (parse_title, "A\\B"), (parse_forms, "text"), (parse_forms, ","),
    ]:  # fmt: skip
        with pytest.raises(R2GenError) as refused:
            call(text)
        assert refused.value.code == "R2G-CONFIG-VALUE"
        assert "secret" not in refused.value.render()


def test_retry_brings_a_refused_study_back(queue: Queue) -> None:
    add(queue)
    queue.close_quiet(0)
    study = queue.claim()
    assert study is not None
    queue.refuse(study, "R2G-DICOM-REFUSED", "the image is of another body part")
    assert "another body part" in status.table(status.studies(queue))
    assert queue.retry(study.id) == "report"
    assert queue.claim() is not None
    assert queue.retry(99) == ""
