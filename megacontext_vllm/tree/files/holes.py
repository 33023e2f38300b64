"""Holes: bytes within a file that read as zeros and take no space, so that rows can go without others moving."""

import ctypes
import errno
import functools
import os
from collections.abc import Callable

from megacontext_vllm.tree.files.checksums import write_all

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_CANNOT_PUNCH = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV}
_CHUNK_BYTES = 1 << 20


def punch(fd: int, offset: int, length: int) -> bool:
    """Make bytes ``[offset, offset + length)`` of a writable file zero; its size stays. Returns whether it is a hole.

    Where the file system has no holes, zeros are written instead and nothing is gained. Space comes back in whole
    blocks (4 KiB, mostly), so punch neighbouring ranges as one. Raises OSError.
    """
    assert offset >= 0
    length = min(length, os.fstat(fd).st_size - offset)
    if length <= 0:
        return True
    code = errno.EINTR
    while code == errno.EINTR:
        code = _fallocate()(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length)
    if code == 0:
        return True
    if code not in _CANNOT_PUNCH:
        raise OSError(code, os.strerror(code))
    for at in range(offset, offset + length, _CHUNK_BYTES):
        write_all(fd, bytes(min(_CHUNK_BYTES, offset + length - at)), at)
    return False


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    """``fallocate`` of the C library (Python has ``posix_fallocate`` only); returns an error number or 0."""
    try:
        function = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        return lambda fd, mode, offset, length: errno.ENOSYS
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int

    def call(fd: int, mode: int, offset: int, length: int) -> int:
        return ctypes.get_errno() if function(fd, mode, offset, length) else 0

    return call
