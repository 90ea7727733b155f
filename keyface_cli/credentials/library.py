"""The C2PA library, an optional package, and the settings that we use it with."""

from __future__ import annotations

from typing import Any

from keyface_cli.errors import CredentialsError

# what a certificate may be for, to sign claims or to stamp the time (C2PA specification 2.2,
# section 14.5.1); the last two are those of Microsoft and of C2PA itself
_PURPOSES = (
    *("1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.5.5.7.3.8", "1.3.6.1.5.5.7.3.9"),
    *("1.3.6.1.4.1.311.76.59.1.9", "1.3.6.1.4.1.62558.2.1"),
)
BLOCK_KB = 256  # of picture and sound with a hash of its own, so that a reader says which changed
_CORE = {
    "merkle_tree_chunk_size_in_kb": BLOCK_KB,  # without it whole videos are read into memory
    "merkle_tree_max_proofs": 0,  # every block's hash is in the manifest
    "backing_store_memory_threshold_in_mb": 16,
}
MIME = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".png": "image/png",
    ".gif": "image/gif",
}


def load_library() -> Any:
    """Import `c2pa`.

    Raises:
        CredentialsError: it is not installed.
    """
    try:
        import c2pa
    except ImportError as error:
        raise CredentialsError(
            "content credentials need the package c2pa-python",
            "pip install 'keyface[credentials]'",
        ) from error
    return c2pa


def signing_settings() -> dict[str, Any]:
    """Return c2pa's settings for writing: no thumbnails, and every byte that may be is hashed."""
    return {
        "version": 1,
        "core": _CORE,
        "builder": {
            "thumbnail": {"enabled": False},
            "bmff_hash_exclude_free_and_skip_boxes": False,
        },
        "verify": {
            "verify_after_sign": False,  # would read the result again; the key was tried before
            "remote_manifest_fetch": False,
            "ocsp_fetch": False,
        },
    }


def reading_settings(anchors: str | None) -> dict[str, Any]:
    """Return c2pa's settings for reading, by which nothing is asked of any network.

    Args:
        anchors: certificates of the authorities that are trusted, PEM; None trusts nobody.
    """
    trust = {"trust_config": "\n".join(_PURPOSES)}
    if anchors is not None:
        trust["user_anchors"] = anchors
    return {
        "version": 1,
        "core": _CORE | {"allowed_network_hosts": []},
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
        "trust": trust,
    }
