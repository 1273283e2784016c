"""The node's Storage SCP against pynetdicom and dcmtk: what is answered, what is on the disk, who is not served."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from r2gen_export.serving import status
from r2gen_export.serving.node import Node, running_node
from r2gen_export.serving.receive import SYNTAXES, read_uids
from r2gen_export.serving.settings import MEBI, Limits, NodeSettings, parse_dimse
from tests.serving.node_site import (
    CR,
    DX,
    DX_FOR_PROCESSING,
    dcmtk,
    needs_dcmtk,
    radiograph,
    store,
    wait_for,
    write,
)

LIMITS = Limits(object_bytes=4 * MEBI, association_bytes=64 * MEBI, acse_seconds=2, idle_seconds=2, reserve_bytes=MEBI)


def settings(folder: Path, **options: object) -> NodeSettings:
    fields: dict[str, object] = {
        "title": "R2GEN", "allowed": ("PACS",), "destinations": (parse_dimse("PACS@127.0.0.1:9"),), "port": 0,
        "spool": folder / "spool", "limits": LIMITS, **options,
    }  # fmt: skip
    return NodeSettings(**fields)  # type: ignore[arg-type]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node that receives, and neither reports nor sends."""
    with running_node(settings(tmp_path)) as node:
        yield node


def spooled(node: Node) -> list[Path]:
    return list(node._spool.images.rglob("*.dcm"))


def nothing_half(node: Node) -> bool:
    return not list(node._spool.incoming.iterdir())


def test_an_image_is_on_the_disk_when_it_was_answered(node: Node) -> None:
    data = radiograph("1.2.826.1")
    assert store(node.server.port, data, radiograph("1.2.826.1", 2, CR)) == [0, 0]
    assert len(spooled(node)) == 2
    assert {read_uids(path) for path in spooled(node)} == {
        ("1.2.826.1", DX, "1.2.826.1.1.1"), ("1.2.826.1", CR, "1.2.826.1.1.2"),
    }  # fmt: skip
    assert [(row["images"], row["state"]) for row in status.studies(node.queue)] == [(2, "received")]
    assert nothing_half(node)


def test_the_order_in_which_an_image_becomes_durable(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, name, folder, row: each on the disk before the next, and all of them before the answer."""
    steps: list[str] = []
    before_fsync, before_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        before_fsync(descriptor)

    def replace(*names: object, **options: object) -> None:
        steps.append("rename")
        before_replace(*names, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "rename", replace)
    node.queue._db.set_trace_callback(
        lambda text: steps.append(text) if text in ("BEGIN IMMEDIATE", "COMMIT") else None
    )
    assert store(node.server.port, radiograph("1.2.826.1")) == [0]
    steps.append("answer")
    node.queue._db.set_trace_callback(None)
    assert steps == ["file", "folder", "rename", "folder", "BEGIN IMMEDIATE", "COMMIT", "answer"]


def test_the_same_image_again_and_other_bytes_under_its_uid(node: Node) -> None:
    data = radiograph("1.2.826.1")
    assert store(node.server.port, data, data) == [0, 0]
    before = spooled(node)[0].read_bytes()
    data.PatientComments = "changed"
    assert store(node.server.port, data) == [0]
    assert [path.read_bytes() for path in spooled(node)] == [before]
    assert status.studies(node.queue)[0]["conflicts"] == 1
    assert nothing_half(node)


def test_statuses_of_what_is_not_taken(node: Node) -> None:
    port = node.server.port
    assert store(port, radiograph("1.2.826.1", sop_class=DX_FOR_PROCESSING)) == [0x0122]
    assert store(port, radiograph("1.2.826.1", side=2048)) == [0xC000], "larger than object_bytes"
    without = radiograph("1.2.826.1")
    del without.StudyInstanceUID
    assert store(port, without) == [0xC000]
    assert store(port, radiograph("1.2.826.1", StudyInstanceUID="../../etc")) == [0xC000]
    assert status.studies(node.queue) == []
    assert spooled(node) == []
    assert nothing_half(node)
    assert store(port, radiograph("1.2.826.1")) == [0]


def test_a_data_set_that_is_not_what_the_command_says(node: Node) -> None:
    from pynetdicom import AE

    data = radiograph("1.2.826.1")
    entity = AE(ae_title="PACS")
    entity.add_requested_context(DX, data.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", node.server.port, ae_title="R2GEN")
    original = association.dimse.send_msg

    def lie(primitive: object, context: int) -> None:
        primitive.AffectedSOPInstanceUID = "1.2.826.9"  # type: ignore[attr-defined]
        original(primitive, context)  # type: ignore[arg-type]

    association.dimse.send_msg = lie  # type: ignore[method-assign, assignment]
    assert association.send_c_store(data).Status == 0xA900
    association.release()
    assert spooled(node) == []


@needs_dcmtk
def test_wrong_titles_are_rejected(node: Node) -> None:
    assert store(node.server.port, radiograph("1.2.826.1"), called="OTHER") == []
    assert store(node.server.port, radiograph("1.2.826.1"), calling="STRANGER") == []
    port = node.server.port
    assert dcmtk("echoscu", "-aet", "PACS", "-aec", "R2GEN", "127.0.0.1", port).returncode == 0
    refused = dcmtk("echoscu", "-aet", "STRANGER", "-aec", "R2GEN", "127.0.0.1", port)
    assert refused.returncode != 0
    assert "Calling AE Title Not Recognized" in refused.stdout + refused.stderr
    refused = dcmtk("echoscu", "-aet", "PACS", "-aec", "OTHER", "127.0.0.1", port)
    assert "Called AE Title Not Recognized" in refused.stdout + refused.stderr


PROPOSED = {
    "1.2.840.10008.1.2": "-xi", "1.2.840.10008.1.2.1": "-xe", "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.5": "-xr",
    "1.2.840.10008.1.2.4.50": "-xy", "1.2.840.10008.1.2.4.51": "-xx", "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt", "1.2.840.10008.1.2.4.81": "-xu", "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
}  # fmt: skip
"""dcmtk's storescu option for each transfer syntax it can propose."""


@needs_dcmtk
def test_storescu_in_every_syntax(node: Node, tmp_path: Path) -> None:
    """Compressed frames are what dcmtk and OpenJPEG make; storescu sends them as they are."""
    from openjpeg.utils import encode_array
    from pydicom.encaps import encapsulate

    plain = radiograph("1.2.826.2", 1)
    files = [write(plain, tmp_path / "1.2.840.10008.1.2.1")]
    for number, (syntax, program, options) in enumerate([
        ("1.2.840.10008.1.2", "dcmconv", ["+ti"]), ("1.2.840.10008.1.2.2", "dcmconv", ["+tb"]),
        ("1.2.840.10008.1.2.5", "dcmcrle", []), ("1.2.840.10008.1.2.4.51", "dcmcjpeg", ["+ee"]),
        ("1.2.840.10008.1.2.4.70", "dcmcjpeg", ["+e1"]), ("1.2.840.10008.1.2.4.80", "dcmcjpls", ["+el"]),
        ("1.2.840.10008.1.2.4.81", "dcmcjpls", ["+en"]),
    ], start=2):  # fmt: skip
        source = write(radiograph("1.2.826.2", number), tmp_path / "source")
        done = dcmtk(program, *options, source, tmp_path / syntax)
        assert done.returncode == 0, done.stderr
        files.append(tmp_path / syntax)
    data = radiograph("1.2.826.2", 20)
    frame = encode_array(data.pixel_array, bits_stored=12, photometric_interpretation=2)
    data.PixelData = encapsulate([frame])
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    files.append(write(data, tmp_path / "1.2.840.10008.1.2.4.90"))
    for file in files:
        done = dcmtk(
            "storescu", PROPOSED[file.name], "-aet", "PACS", "-aec", "R2GEN", "127.0.0.1", node.server.port, file
        )
        assert done.returncode == 0, (file.name, done.stdout, done.stderr)
    from pydicom import dcmread

    stored = {dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for path in spooled(node)}
    assert len(spooled(node)) == len(files)
    assert {file.name for file in files} <= stored <= set(SYNTAXES)


@needs_dcmtk
def test_deflated_is_sent_as_something_else(node: Node, tmp_path: Path) -> None:
    file = write(radiograph("1.2.826.3"), tmp_path / "plain.dcm")
    done = dcmtk("storescu", "-xd", "-aet", "PACS", "-aec", "R2GEN", "127.0.0.1", node.server.port, file)
    assert done.returncode == 0, done.stderr
    assert len(spooled(node)) == 1


def test_idle_connections_make_room(node: Node) -> None:
    """200 connections that say nothing, from the address of the peer that has something to send."""
    idle = [socket.create_connection(("127.0.0.1", node.server.port)) for _ in range(200)]
    try:
        assert store(node.server.port, radiograph("1.2.826.4")) == [0]
        assert node.server.open_connections() <= LIMITS.associations_per_peer
    finally:
        for connection in idle:
            connection.close()
    wait_for(lambda: node.server.open_connections() == 0)


def test_silent_connections_end(node: Node) -> None:
    with socket.create_connection(("127.0.0.1", node.server.port)) as silent:
        silent.settimeout(30)
        assert silent.recv(1) == b""


@pytest.mark.parametrize("head", [
    b"\x01\x00" + struct.pack(">L", 0xFFFFFFFF), b"\x04\x00" + struct.pack(">L", 2**31), b"\x01\x00\x00\x00\x01\x00ab",
    b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01",
])  # fmt: skip
def test_what_is_no_association_ends(node: Node, head: bytes) -> None:
    """A PDU of 4 GiB, half of one, HTTP, TLS."""
    with socket.create_connection(("127.0.0.1", node.server.port)) as hostile:
        hostile.settimeout(30)
        hostile.sendall(head)
        try:
            while hostile.recv(4096):
                pass
        except ConnectionError:
            pass
    assert store(node.server.port, radiograph("1.2.826.5")) == [0]


def test_a_slow_sender_stops_nobody_and_ends(node: Node) -> None:
    """It has an association, begins an image and then sends nothing more."""
    from pynetdicom import AE

    entity = AE(ae_title="PACS")
    entity.add_requested_context(DX, "1.2.840.10008.1.2.1")
    association = entity.associate("127.0.0.1", node.server.port, ae_title="R2GEN")
    assert association.is_established
    raw = association.dul.socket.socket
    assert raw is not None
    raw.sendall(b"\x04\x00" + struct.pack(">L", 16000) + b"\x00" * 100)
    assert store(node.server.port, radiograph("1.2.826.6")) == [0]
    wait_for(lambda: node.server.open_connections() == 0)
    assert nothing_half(node)
    association.abort()


def test_an_image_of_which_half_came_leaves_nothing(node: Node) -> None:
    from pynetdicom import AE, evt

    data = radiograph("1.2.826.7", side=1024)
    entity = AE(ae_title="PACS")
    entity.add_requested_context(DX, data.file_meta.TransferSyntaxUID)
    sent = 0

    def cut(event: object) -> None:
        nonlocal sent
        sent += len(event.data)  # type: ignore[attr-defined]
        if sent > 500_000:
            event.assoc.dul.socket.close()  # type: ignore[attr-defined]

    association = entity.associate(
        "127.0.0.1", node.server.port, ae_title="R2GEN", evt_handlers=[(evt.EVT_DATA_SENT, cut)]
    )
    assert "Status" not in association.send_c_store(data)
    wait_for(lambda: nothing_half(node))
    assert status.studies(node.queue) == []


def test_300_megabytes_in_one_image_are_refused_while_they_come(tmp_path: Path) -> None:
    """With the limits as they are by default; the sender is told, and no more than the limit was on the disk."""
    from pynetdicom import AE

    data = radiograph("1.2.826.8", side=256)
    data.PixelData = bytes(300 * MEBI)
    with running_node(settings(tmp_path, limits=Limits(reserve_bytes=MEBI))) as node:
        entity = AE(ae_title="PACS")
        entity.add_requested_context(DX, data.file_meta.TransferSyntaxUID)
        entity.dimse_timeout = 300
        association = entity.associate("127.0.0.1", node.server.port, ae_title="R2GEN")
        assert association.send_c_store(data).Status == 0xC000
        assert association.send_c_store(radiograph("1.2.826.8", 2)).Status == 0
        association.release()
        assert nothing_half(node)
        assert len(spooled(node)) == 1


def test_more_than_an_association_may_send_ends_it(tmp_path: Path) -> None:
    limits = Limits(object_bytes=4 * MEBI, association_bytes=MEBI, reserve_bytes=MEBI)
    with running_node(settings(tmp_path, limits=limits)) as node:
        many = [radiograph("1.2.826.9", number, side=512) for number in range(1, 5)]
        assert store(node.server.port, *many) == [0], "the second one passes 1 MiB"
        assert store(node.server.port, many[1]) == [0]
        assert nothing_half(node)


def test_connections_of_one_peer_are_limited(tmp_path: Path) -> None:
    from pynetdicom import AE

    limits = Limits(associations_per_peer=2, reserve_bytes=MEBI)
    with running_node(settings(tmp_path, limits=limits)) as node:
        entity = AE(ae_title="PACS")
        entity.add_requested_context(DX)
        held = [entity.associate("127.0.0.1", node.server.port, ae_title="R2GEN") for _ in range(3)]
        assert [association.is_established for association in held] == [True, True, False]
        held[0].release()
        wait_for(lambda: node.server.open_connections() == 1)
        assert store(node.server.port, radiograph("1.2.826.10")) == [0]
        held[1].release()


def test_two_nodes_cannot_share_a_port(node: Node, tmp_path: Path) -> None:
    from r2gen_export.errors import R2GenError

    with (
        pytest.raises(R2GenError, match="R2G-NODE-NETWORK"),
        running_node(settings(tmp_path / "other", port=node.server.port)),
    ):
        pass


def test_requests_that_do_not_wait_for_their_answers_end_the_association(node: Node) -> None:
    """Each would hold an open file; a peer that negotiated nothing else may have one request at a time."""
    from pynetdicom import AE
    from pynetdicom.dimse_primitives import C_STORE

    data = radiograph("1.2.826.11", side=16)
    entity = AE(ae_title="PACS")
    entity.add_requested_context(DX, data.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", node.server.port, ae_title="R2GEN")
    context = association.accepted_contexts[0].context_id
    for number in range(2000):
        request = C_STORE()
        request.MessageID, request.Priority = number % 60000 + 1, 2
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = DX, f"1.2.826.11.{number}"
        request.DataSet = BytesIO(bytes(2000))
        association.dimse.send_msg(request, context)
        if not association.dul.is_alive() or association.is_aborted:
            break
    wait_for(lambda: node.server.open_connections() == 0)
    wait_for(lambda: nothing_half(node))
    assert store(node.server.port, data) == [0]


@pytest.mark.parametrize("control", [1, 0], ids=["command", "data set of another service"])
def test_what_pynetdicom_would_collect_in_memory_is_limited(node: Node, control: int) -> None:
    """A command that never ends, and a C-ECHO with a data set that never ends."""
    from pynetdicom import AE
    from pynetdicom.dimse_messages import C_ECHO_RQ
    from pynetdicom.dimse_primitives import C_ECHO

    entity = AE(ae_title="PACS")
    entity.add_requested_context("1.2.840.10008.1.1")
    association = entity.associate("127.0.0.1", node.server.port, ae_title="R2GEN")
    raw = association.dul.socket.socket
    assert raw is not None

    def send(header: int, payload: bytes) -> None:
        body = struct.pack(">LBB", len(payload) + 2, 1, header) + payload
        raw.sendall(b"\x04\x00" + struct.pack(">L", len(body)) + body)

    if control == 0:
        echo = C_ECHO()
        echo.MessageID, echo.AffectedSOPClassUID = 1, "1.2.840.10008.1.1"
        message = C_ECHO_RQ()
        message.primitive_to_message(echo)
        message.command_set.CommandDataSetType = 1
        fragment = next(iter(message.encode_msg(1, 16384))).presentation_data_value_list[0][1]
        send(3, fragment[1:])
    sent = 0
    with pytest.raises(OSError):
        while sent < 64 * MEBI:
            send(control, bytes(16000))
            sent += 16000
    assert sent < 16 * MEBI
    association.abort()


def test_a_pdu_longer_than_was_offered_is_not_read(node: Node) -> None:
    """32 MiB, which an association may send in all, but not at once."""
    with socket.create_connection(("127.0.0.1", node.server.port)) as hostile:
        hostile.sendall(b"\x04\x00" + struct.pack(">L", 32 * MEBI))
        sent = 0
        with pytest.raises(OSError):
            while sent < 30 * MEBI:
                sent += hostile.send(bytes(65536))
    assert sent < 16 * MEBI
