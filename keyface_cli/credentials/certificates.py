"""Certificates and their keys: made for trying out, and read before anything is signed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from keyface_cli.errors import CredentialsError
from keyface_cli.files import unwritable

if TYPE_CHECKING:
    from cryptography import x509

Algorithm = Literal["ES256", "ES384", "PS256", "Ed25519"]
CHAIN, KEY, ROOT = "cert.pem", "key.pem", "root.pem"
_EMAIL_PROTECTION = "1.3.6.1.5.5.7.3.4"  # the purpose that every C2PA reader takes
_CLOCK_SKEW = timedelta(hours=1)  # a reader's clock may be behind ours
_RSA_BITS = 3072


@dataclass(frozen=True)
class KeyPair:
    """A chain of certificates and the key of its first one.

    Args:
        source: the file of certificates, for messages.
        chain: PEM: the signer's own certificate, then those that vouch for it.
        key: PEM, not encrypted.
        algorithm: C2PA's name of how the key signs, such as "es256".
    """

    source: Path
    chain: bytes
    key: bytes
    algorithm: str


def read_key_pair(certificates: Path, key: Path) -> KeyPair:
    """Read a chain and its key, and check what can be without signing.

    Raises:
        CredentialsError: a file is missing, unreadable, encrypted or of another kind, the key is
            another certificate's, or that is not valid today.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    chain_pem, key_pem = _read(certificates), _read(key)
    try:
        first = x509.load_pem_x509_certificates(chain_pem)[0]
    except ValueError:
        raise CredentialsError(f"{certificates}: holds no certificate in PEM") from None
    try:
        private: Any = load_pem_private_key(key_pem, None)
    except TypeError:
        raise CredentialsError(
            f"{key}: the key is encrypted",
            f"decrypt a copy that only you can read: openssl pkey -in {key} -out FILE",
        ) from None
    except ValueError:
        raise CredentialsError(f"{key}: holds no private key in PEM") from None
    algorithm = _algorithm(key, private)
    if private.public_key() != first.public_key():
        raise CredentialsError(
            f"{key}: is not the key of the first certificate in {certificates}",
            "that file begins with the signer's own certificate, then come its issuers'",
        )
    _check_dates(certificates, first)
    return KeyPair(certificates, chain_pem, key_pem, algorithm)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CredentialsError(
            f"{path}: no such file", "keyface credentials new makes a key and a certificate"
        ) from None
    except OSError as error:
        raise CredentialsError(f"{path}: cannot be read: {error.strerror or error}") from error


def _algorithm(path: Path, key: Any) -> str:
    """How a private key signs."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    if isinstance(key, Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(key, EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    raise CredentialsError(
        f"{path}: not a kind of key that signs content credentials",
        "ES256, ES384, PS256 (RSA of 2048 bits or more) and Ed25519 do",
    )


def _check_dates(path: Path, certificate: x509.Certificate) -> None:
    now = datetime.now(UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > ends:
        raise CredentialsError(f"{path}: the certificate expired on {ends:%Y-%m-%d}")
    if now < begins:
        raise CredentialsError(f"{path}: the certificate is valid from {begins:%Y-%m-%d %H:%M} UTC")


def new_key_pair(
    folder: Path, name: str, algorithm: Algorithm = "ES256", days: int = 365
) -> tuple[Path, Path, Path]:
    """Make a key, a certificate for it, and a root certificate that vouches for that.

    The standard takes no certificate that vouches for itself (C2PA specification 2.2, section
    14.5), hence the root; its key is forgotten, so that nobody issues a second certificate by it.

    Args:
        folder: where they go, made where missing; the key is readable by its owner alone.
        name: whom readers will show as the signer.
        algorithm: of both keys.
        days: how long the certificates are valid.

    Returns:
        The chain `cert.pem`, the key `key.pem` and the root `root.pem`.

    Raises:
        CredentialsError: one of them is there already, or cannot be written.
    """
    from cryptography.hazmat.primitives import serialization

    contents = [folder / CHAIN, folder / KEY, folder / ROOT]
    for path in contents:
        if os.path.lexists(path):
            raise CredentialsError(f"{path}: exists already", "choose another folder")
    root_key, key = _new_key(algorithm), _new_key(algorithm)
    root = _issue(f"{name} (root)", root_key, None, root_key, days)
    own = _issue(name, key, root, root_key, days)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    vouching = root.public_bytes(pem)
    made: list[Path] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, data in zip(
            contents, (own.public_bytes(pem) + vouching, secret, vouching), strict=True
        ):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            made.append(path)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        raise unwritable(folder, error, CredentialsError) from error
    return contents[0], contents[1], contents[2]


def _new_key(algorithm: Algorithm) -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if algorithm == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm == "PS256":
        return rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS)
    return ec.generate_private_key(ec.SECP384R1() if algorithm == "ES384" else ec.SECP256R1())


def _issue(
    name: str, key: Any, issuer: x509.Certificate | None, issuer_key: Any, days: int
) -> x509.Certificate:
    """Return a certificate; without an issuer it is a root."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    now, root = datetime.now(UTC), issuer is None
    subject = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, name),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, name),
        ]
    )
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(root, 0 if root else None), critical=True)
        .add_extension(
            x509.KeyUsage(
                **usage,
                digital_signature=not root,
                key_cert_sign=root,
                crl_sign=root,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if not root:
        purpose = x509.ExtendedKeyUsage([x509.ObjectIdentifier(_EMAIL_PROTECTION)])
        builder = builder.add_extension(purpose, critical=False)
    ed25519 = isinstance(issuer_key, Ed25519PrivateKey)
    return builder.sign(issuer_key, None if ed25519 else hashes.SHA256())
