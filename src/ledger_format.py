"""What is hashed in the ledger and in run records, and how: bytes, digests, seals. Pure; nothing is read or written.

A leaf, and with `primitives` all that a verifier elsewhere needs to compute what this runner computed.

    run record  -> run_hash                           "run"           canonical JSON without runHash
    entry       -> entry_hash                         "ledger-entry"  canonical JSON without hash and seal
    entry hash  -> seal_mac, under key number `index` "ledger-seal"
    ledger end  -> end_mac, under the key that comes next, over number and hash of the last entry

Every digest begins with the name of what it is of and a zero byte, so that none can be passed off as another. The
canonical form is that of RFC 8785 for what is hashed here: no floats, integers below 2^53, keys in ASCII.
"""
from __future__ import annotations

from primitives import canonical_bytes, canonical_pieces, digest_of, sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple
    Json = Dict[str, Any]

ENTRY_SCHEMA = 1
KEY_BYTES = 32
KEY_WORD = "pipeline-seal-key-1"    # first word of a key file: kind and version
MODES = ("hmac", "forward")
ANCHOR_DIGITS = 32                  # of a head as shown to people: half of a SHA-256, out of reach for a second preimage
BLOCK_BYTES = 64                    # of SHA-256, for HMAC


def canonical_json(value: Any) -> bytes:
    """Return the one byte form of a JSON value: sorted keys, no blanks, UTF-8 (RFC 8785 for values without floats)."""
    return canonical_bytes(value)


def run_hash(record: Json) -> str:
    """Return the SHA-256 (hex) that a run record states as its runHash."""
    return digest_of(canonical_pieces({key: value for key, value in record.items() if key != "runHash"}), b"run\0")


def found_hash(record: Any) -> str:
    """Return the same of a record as it was found, "" for one that the runner cannot have written (numbers without a canonical
    form, say)."""
    try:
        return run_hash(record)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ""


def stage_key(parts: Json) -> str:
    """Return the idempotency key (hex) of its parts."""
    return sha256(b"stage-key\0" + canonical_json(parts)).hexdigest()


def entry_hash(entry: Json) -> str:
    """Return the SHA-256 (hex) that a ledger entry states as its hash."""
    return sha256(b"ledger-entry\0" + canonical_json({key: value for key, value in entry.items() if key not in ("hash", "seal")})).hexdigest()


def is_unwritten(line: bytes) -> bool:
    """Tell whether a line at the end of the ledger is none that was written to its end: empty, or with zeros in it, which a power
    cut leaves of a sector that did not get to the disk while the next one did. No entry has either.
    """
    return b"\0" in line or not line.strip()


def without_torn_end(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a ledger but those at its end that were not written to their end: the next run cuts them off."""
    held: List[bytes] = []
    for line in lines:
        held.append(line)
        if not is_unwritten(line):
            yield from held
            held.clear()


def entry_line(entry: Json) -> bytes:
    """Return an entry as it stands in the ledger: canonical, with the newline without which it is torn."""
    return canonical_json(entry) + b"\n"


# --- sealing ---------------------------------------------------------------------------------------------------------

def hmac_sha256(key: bytes, message: bytes) -> str:
    """Return HMAC-SHA256 (hex) for a key of at most 64 bytes.

    Not the module hmac: it loads OpenSSL, which shows in the time of a run in which nothing changed.
    Source: RFC 2104.
    """
    padded = key.ljust(BLOCK_BYTES, b"\0")
    inner = sha256(bytes(one ^ 0x36 for one in padded) + message).digest()
    return sha256(bytes(one ^ 0x5C for one in padded) + inner).hexdigest()


def next_key(key: bytes) -> bytes:
    """Return the key that follows in forward mode; nobody gets back from it."""
    return sha256(b"ledger-key\0" + key).digest()


def key_id(first_key: bytes) -> str:
    """Return the public name of a key (and of all that follow from it): 16 hex digits that tell nothing of it."""
    return sha256(b"ledger-key-id\0" + first_key).hexdigest()[:16]


def seal_mac(key: bytes, digest: str) -> str:
    """Return what seals an entry of hash *digest*."""
    return hmac_sha256(key, b"ledger-seal\0" + digest.encode("ascii"))


def end_mac(key: bytes, seq: int, digest: str) -> str:
    """Return what says that entry number *seq* of hash *digest* is the last; *key* is the one that comes next."""
    return hmac_sha256(key, b"ledger-end\0%d\0" % seq + digest.encode("ascii"))


def key_text(mode: str, identity: str, index: int, key: bytes) -> str:
    """Return the content of a key file: one line."""
    return "%s %s %s %d %s\n" % (KEY_WORD, mode, identity, index, key.hex())


def parse_key(text: str) -> Optional[Tuple[str, str, int, bytes]]:
    """Return (mode, key id, index, key) of a key file, None if it is none."""
    words = text.split()
    if len(words) != 5 or words[0] != KEY_WORD or words[1] not in MODES or not words[3].isdecimal():
        return None
    try:
        key = bytes.fromhex(words[4])
    except ValueError:
        return None
    return (words[1], words[2], int(words[3]), key) if len(key) == KEY_BYTES else None


# --- heads, for people -----------------------------------------------------------------------------------------------

def head_text(entry: Json) -> str:
    """Return the head that *entry* is, for a notebook: "12: 9f3a-77c1-..."."""
    digits = str(entry["hash"])[:ANCHOR_DIGITS]
    return "%d: %s" % (entry["seq"], "-".join(digits[place:place + 4] for place in range(0, len(digits), 4)))


def parse_head(text: str) -> Optional[Tuple[Optional[int], str]]:
    """Return (number or None, leading hex digits) of a head as noted by a person, None if it is none.

    "12: 9f3a-77c1-..." and "9f3a77c1..." are understood; at least 16 digits are needed.
    """
    number, colon, digits = text.rpartition(":")
    digits = "".join(digits.split()).replace("-", "").lower()
    if not 16 <= len(digits) <= 64 or set(digits) - set("0123456789abcdef") or (colon and not number.strip().isdecimal()):
        return None
    return (int(number) if colon else None), digits
