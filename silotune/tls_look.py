"""A look at a TLS listener: which certificate it shows. Nothing is sent."""

import socket
import ssl

from cryptography import x509

__all__ = ["shown_certificate"]

_SECONDS = 5.0


def shown_certificate(
    host: str, port: int, context: ssl.SSLContext | None = None
) -> x509.Certificate:
    """Return the certificate of the listener at ``host``.

    Args:
        host: name or address.
        port: its port.
        context: what is accepted; None: anything, to be compared by the caller.

    Raises:
        OSError: nobody answers there, or not by TLS, or with a certificate that is not accepted.
    """
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, port), _SECONDS) as raw,
        context.wrap_socket(raw, server_hostname=host) as sealed,
    ):
        return x509.load_der_x509_certificate(sealed.getpeercert(binary_form=True) or b"")
