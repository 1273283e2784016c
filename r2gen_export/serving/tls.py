"""TLS with certificates of both sides, as the BCP 195 secure transport profile of PS3.15 asks (TLS 1.2 or newer)."""

from __future__ import annotations

import ssl

from r2gen_export.errors import R2GenError, cause_of
from r2gen_export.serving.settings import Tls


def server_context(files: Tls) -> ssl.SSLContext:
    """For peers that connect; one without a certificate of a trusted authority gets no association.

    Raises:
        R2GenError: `R2G-NODE-NETWORK`.
    """
    return _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)


def client_context(files: Tls) -> ssl.SSLContext:
    """For destinations: their certificate must be of a trusted authority and bear the host's name.

    Raises:
        R2GenError: `R2G-NODE-NETWORK`.
    """
    return _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), files)


def _load(context: ssl.SSLContext, files: Tls) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        # An empty password: OpenSSL would else ask for one on the terminal.
        context.load_cert_chain(files.certificate, files.key, password="")
        context.load_verify_locations(files.authorities)
    except (OSError, ssl.SSLError, ValueError) as error:
        message = f"the files of --tls-cert, --tls-key and --tls-ca cannot be used: {cause_of(error)}"
        raise R2GenError("R2G-NODE-NETWORK", message, "give PEM files, the key without a password") from error
    return context
