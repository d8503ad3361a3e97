"""TLS for the connections between workers that torch.distributed's Gloo makes.

All workers of a start have one private key, which each derives from the secret of the start, so that it is
never sent. Rank 0 makes a certificate for it, which the others get from the store. Each end of a connection
has to show that certificate, and to prove that it has the key.
"""

from __future__ import annotations

import datetime
import os

import torch
import torch.distributed as dist

from hpcdat.distributed.store_client import StoreClient
from hpcdat.errors import InputError

CERTIFICATE = "hpcdat/certificate"
"""Key of the certificate in the store."""
DAYS = 365
"""For which the certificate is valid, from the day before the start, since clocks differ."""


def use_tls(client: StoreClient, *, makes_certificate: bool) -> None:
    """Let Gloo connect by TLS from now on, until this process ends.

    Gloo reads key and certificate from files whenever a group is made; here they are in memory only.

    Args:
        client: this worker's connection to the store.
        makes_certificate: whether it is this worker that makes the certificate.

    Raises:
        InputError: this torch has no TLS in its Gloo.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    # All of these are below the order of the curve's group.
    key = ec.derive_private_key(1 + int.from_bytes(client.derive(b"key of TLS")[:31], "big"), ec.SECP256R1())
    if makes_certificate:
        client.set(CERTIFICATE, _certificate(key))
    certificate = client.get(CERTIFICATE)
    assert certificate is not None  # without a time limit, the store waits for it
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    where = _in_memory("certificate", certificate)
    os.environ["GLOO_DEVICE_TRANSPORT"] = "TCP_TLS"
    os.environ["GLOO_DEVICE_TRANSPORT_TCP_TLS_PKEY"] = _in_memory("key", text)
    os.environ["GLOO_DEVICE_TRANSPORT_TCP_TLS_CERT"] = where
    os.environ["GLOO_DEVICE_TRANSPORT_TCP_TLS_CA_FILE"] = where
    try:
        dist.ProcessGroupGloo.create_default_device()
    except RuntimeError as error:
        if "unsupported gloo device" not in str(error):
            raise
        raise InputError(
            f"encryption: tls: the Gloo of torch {torch.__version__} has no TLS (that of 2.11.0 has): use "
            "another version of torch, or set encryption: none"
        ) from None


def _certificate(key: object) -> bytes:
    """A certificate that the key has signed itself, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "workers of hpcdat")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def _in_memory(name: str, text: bytes) -> str:
    """The path of a file that is on no disk and that ends with this process."""
    number = os.memfd_create(name)
    os.write(number, text)
    return f"/proc/self/fd/{number}"
