"""The little of the tar format that an archive of a tree needs: plain files, one after the other.

Reading takes nothing else: no links, devices, folders, sparse files, long-name or pax members. What is not understood
is refused, so a name or a size can only come from where this looks.
"""

import re

from megacontext_vllm.errors import CorruptTreeError

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
_MAX_SIZE = 1 << 62
_MAX_OCTAL = 8**11
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_TYPE, _LINK, _MAGIC, _PREFIX = slice(156, 157), slice(157, 257), slice(257, 265), slice(345, 512)
_OCTAL = re.compile(rb" *[0-7]{1,12}[ \0]*")


def member_header(name: str, size: int) -> bytes:
    """Header of a regular file of ``size`` bytes, which follow, with ``padding`` behind them."""
    block = bytearray(BLOCK_BYTES)
    encoded = name.encode("ascii")
    assert 0 < len(encoded) < 100
    block[: len(encoded)] = encoded
    block[100:108] = b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"  # owned by nobody in particular, of no time: same tree, same bytes
    # From 8 GiB on as GNU and pax tar do: a set first bit, then a binary number.
    block[_SIZE] = b"%011o\0" % size if size < _MAX_OCTAL else b"\x80" + size.to_bytes(11, "big")
    block[136:148] = b"00000000000\0"
    block[_TYPE] = b"0"
    block[_MAGIC] = b"ustar\x0000"
    block[_CHECKSUM] = b"%06o\0 " % _checksum(block)
    return bytes(block)


def padding(size: int) -> int:
    """Bytes between a file of ``size`` bytes and the next header."""
    return -size % BLOCK_BYTES


def parse_header(block: bytes) -> tuple[str, int]:
    """Name and size of the regular file whose header this is. Raises CorruptTreeError for anything else."""
    assert len(block) == BLOCK_BYTES
    if not any(block):
        raise CorruptTreeError("the archive ends before all of its files")
    if block[_MAGIC] not in (b"ustar\x0000", b"ustar  \0"):
        raise CorruptTreeError("not a tar archive, or damaged")
    if _number(block[_CHECKSUM]) != _checksum(block):
        raise CorruptTreeError("a header of the archive is damaged")
    if block[_TYPE] not in (b"0", b"\0") or any(block[_LINK]) or any(block[_PREFIX]):
        raise CorruptTreeError("the archive holds something else than plain files")
    name = block[_NAME].rstrip(b"\0")
    if not name.isascii() or b"\0" in name:
        raise CorruptTreeError("the archive has a file with a name that no tree has")
    size = _number(block[_SIZE])
    if size is None or size > _MAX_SIZE:
        raise CorruptTreeError("a file in the archive claims an impossible size")
    return name.decode("ascii"), size


def _number(field: bytes) -> int | None:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0"), 8) if _OCTAL.fullmatch(field) else None


def _checksum(block: bytes | bytearray) -> int:
    """Sum of the bytes, those of the checksum itself taken for spaces."""
    return sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
