"""TLS with certificates of both sides: who has none of the right authority neither sends nor receives."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.serving.node import Node, running_node
from r2gen_export.serving.settings import MEBI, Limits, NodeSettings, Tls, parse_dimse
from r2gen_export.serving.tls import client_context, server_context
from tests.serving.node_site import DX, radiograph


def openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def authority(folder: Path) -> Path:
    folder.mkdir()
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 2, "-subj",
            "/CN=authority", "-keyout", folder / "ca.key", "-out", folder / "ca.pem")  # fmt: skip
    return folder


def certificate(folder: Path, name: str, address: str = "IP:127.0.0.1") -> Tls:
    key, request, extension = folder / f"{name}.key", folder / f"{name}.csr", folder / f"{name}.ext"
    extension.write_text(f"subjectAltName={address}\n")
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", key, "-out", request)  # fmt: skip
    openssl("x509", "-req", "-in", request, "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial",
            "-days", 2, "-extfile", extension, "-out", folder / f"{name}.pem")  # fmt: skip
    return Tls(folder / f"{name}.pem", key, folder / "ca.pem")


pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority(tmp_path_factory.mktemp("tls") / "hospital")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return authority(tmp_path_factory.mktemp("tls") / "stranger")


@pytest.fixture
def node(tmp_path: Path, hospital: Path) -> Iterator[Node]:
    settings = NodeSettings(
        "R2GEN", ("PACS",), (parse_dimse("PACS@127.0.0.1:9"),), tmp_path / "spool", port=0,
        tls=certificate(hospital, "node"), limits=Limits(acse_seconds=2, reserve_bytes=MEBI, associations_per_peer=50),
    )  # fmt: skip
    with running_node(settings) as node:
        yield node


def send(node: Node, context: ssl.SSLContext | None) -> list[int]:
    from pynetdicom import AE

    data = radiograph("1.2.826.1", side=32)
    entity = AE(ae_title="PACS")
    entity.add_requested_context(DX, data.file_meta.TransferSyntaxUID)
    entity.acse_timeout = entity.connection_timeout = entity.network_timeout = 5
    tls: Any = (context, "127.0.0.1") if context else None
    association = entity.associate("127.0.0.1", node.server.port, ae_title="R2GEN", tls_args=tls)
    if not association.is_established:
        return []
    status = association.send_c_store(data)
    association.release()
    return [int(status.Status)]


def test_only_a_peer_with_a_certificate_of_the_authority_is_served(node: Node, hospital: Path, stranger: Path) -> None:
    ours = certificate(hospital, "pacs")
    assert send(node, client_context(ours)) == [0]
    foreign = certificate(stranger, "pacs")
    assert send(node, client_context(Tls(foreign.certificate, foreign.key, ours.authorities))) == []
    without = ssl.create_default_context(cafile=str(ours.authorities))
    assert send(node, without) == []
    assert send(node, None) == [], "no TLS at all"
    old = client_context(ours)
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    assert send(node, old) == []
    assert send(node, client_context(ours)) == [0]


def test_handshakes_that_never_begin_stop_nobody(node: Node, hospital: Path) -> None:
    idle = [socket.create_connection(("127.0.0.1", node.server.port)) for _ in range(20)]
    try:
        assert send(node, client_context(certificate(hospital, "pacs"))) == [0]
    finally:
        for connection in idle:
            connection.close()


def shake_hands(context: ssl.SSLContext, connection: socket.socket) -> None:
    with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secured:
        secured.recv(1)


def test_the_node_checks_the_name_and_authority_of_a_destination(node: Node, hospital: Path, stranger: Path) -> None:
    """Here a client with the node's own settings connects to servers with other certificates."""
    client = client_context(certificate(hospital, "client"))
    for server, fits in [
        (certificate(hospital, "good"), True), (certificate(hospital, "named", "DNS:elsewhere.example"), False),
        (certificate(stranger, "foreign"), False),
    ]:  # fmt: skip
        here, there = socket.socketpair()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.certificate, server.key)
        answering = threading.Thread(target=shake_hands, args=(context, there))
        answering.start()
        try:
            client.wrap_socket(here, server_hostname="127.0.0.1").send(b"x")
            assert fits
        except ssl.SSLError:
            assert not fits
        finally:
            here.close()
            answering.join()


def test_files_that_cannot_be_used_are_said_before_anything_listens(tmp_path: Path, hospital: Path) -> None:
    good = certificate(hospital, "other")
    (tmp_path / "empty.pem").touch()
    openssl("pkey", "-in", good.key, "-aes128", "-passout", "pass:secret", "-out", tmp_path / "locked.key")
    for files in (
        Tls(tmp_path / "empty.pem", good.key, good.authorities),
        Tls(good.certificate, tmp_path / "none.key", good.authorities),
        Tls(good.certificate, tmp_path / "locked.key", good.authorities),
        Tls(good.certificate, certificate(hospital, "third").key, good.authorities),
        Tls(good.certificate, good.key, tmp_path / "empty.pem"),
    ):  # fmt: skip
        for make in (server_context, client_context):
            with pytest.raises(R2GenError, match="R2G-NODE-NETWORK"):
                make(files)
