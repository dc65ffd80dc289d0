"""Signatures of the copies in a front: whoever can write there and nowhere else can make up no session."""

from hmac import compare_digest

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from ...keys import PIECE, KeyRing, Keys

__all__ = ["Signatures"]


class Signatures:
    """Signs and verifies copies, so that whoever can write to the front cannot make up sessions; or does neither."""

    def __init__(self, keys: Keys | None, name: str) -> None:
        """Sign with the newest key, and accept any; None is for none."""
        subkeys = () if keys is None else KeyRing.of(keys).subkeys("front", name)
        self._macs = {key_id: HMAC(key, SHA256()) for key_id, key in subkeys}
        self._newest = next(iter(self._macs), "")

    def __bool__(self) -> bool:
        """Tell whether there are keys."""
        return bool(self._macs)

    def of(self, name: str, leased: int, copy: bytes) -> str:
        """Return the signature of a copy in its place."""
        return f"{self._newest}.{_signed(self._macs[self._newest], name, leased, copy)}"

    def verify(self, signature: object, name: str, leased: int, copy: bytes) -> bool:
        """Tell whether one of the keys signed this."""
        if not self._macs:
            return True
        key_id, _, text = str(signature).partition(".")
        mac = self._macs.get(key_id)
        return mac is not None and compare_digest(_signed(mac, name, leased, copy).encode(), text.encode())


def _signed(mac: HMAC, name: str, leased: int, copy: bytes) -> str:
    mac = mac.copy()
    mac.update(b"%d:%s%d:" % (len(name), name.encode(), leased))
    for start in range(0, len(copy), PIECE):
        mac.update(copy[start : start + PIECE])
    return mac.finalize().hex()
