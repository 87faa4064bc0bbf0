"""The canary: which questions go to the candidate. The key decides, not chance: a caller keeps meeting the same version."""

import hashlib

KEY_HEADER = "x-canary-key"


def is_chosen(key: str, version: str, share: float) -> bool:
    """Whether `share` of all keys covers this one; another version covers others."""
    digest = hashlib.sha256(f"{version}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
