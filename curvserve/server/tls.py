"""TLS from a certificate and its key."""

import ssl
from pathlib import Path


class TLSFileError(Exception):
    """A certificate or its key cannot be used; the text says why, in one line."""


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return what a server needs to speak TLS 1.2 and newer.

    Args:
        certificate: a PEM file: the server's certificate, then those that lead to its authority.
        key: a PEM file: its private key, without a passphrase.

    Returns:
        None where neither is given.

    Raises:
        TLSFileError: one without the other, or a file that cannot be used.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise TLSFileError("--tls-cert and --tls-key need each other")
    for path in (certificate, key):
        try:
            path.read_bytes()
        except OSError as error:  # ssl does not say which file it was
            raise TLSFileError(f"cannot read {path}: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password="")  # else ssl asks at the terminal
    except ssl.SSLError as error:
        reason = error.reason or error.strerror or "no PEM"
        pair = f"{certificate} and {key}"
        raise TLSFileError(f"{pair} are no certificate and its key: {reason}") from error
    return context
