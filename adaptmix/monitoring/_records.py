"""Records as TensorBoard's files have them, many times faster than TensorBoard writes them."""

from __future__ import annotations

import struct
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, reversed
_BLOCK = 512
_MASK, _WORD = 0xA282EAD8, 0xFFFFFFFF


def record(data: bytes) -> bytes:
    """Return data with its length before it, and the checksums of both.

    Source:
        The format of TFRecord files, https://www.tensorflow.org/tutorials/load_data/tfrecord.
    """
    return b"".join((_head(len(data)), data, _masked(data)))


@lru_cache(maxsize=1024)
def _head(length: int) -> bytes:
    """Return a length and its checksum; the records of a run have few different lengths."""
    packed = struct.pack("<Q", length)
    return packed + _masked(packed)


def _masked(data: bytes) -> bytes:
    checksum = crc32c(data)
    rotated = (checksum >> 15) | (checksum << 17)
    return struct.pack("<I", (rotated + _MASK) & _WORD)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of bytes.

    A checksum is linear in the bits of its input, so that a whole block is the sum of what its
    bytes contribute, each by its place: one look-up in a table instead of a loop.

    Source:
        Castagnoli, Bräuer and Herrmann (1993); RFC 3720, appendix B.4.
    """
    tables, places = _tables()
    octets = np.frombuffer(data, dtype=np.uint8)
    state = _WORD
    for start in range(0, octets.size, _BLOCK):
        block = octets[start : start + _BLOCK].copy()
        # What is left of the state is added to the first bytes of what follows.
        carried = np.frombuffer(struct.pack("<I", state), dtype=np.uint8)[: block.size]
        block[: carried.size] ^= carried
        state >>= 8 * carried.size
        state ^= int(np.bitwise_xor.reduce(tables[places[_BLOCK - block.size :], block]))
    return state ^ _WORD


@cache
def _tables() -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """Return (512, 256) contributions of a byte, by its place in a block, and the places."""
    last: NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = (last >> np.uint32(1)) ^ (last & np.uint32(1)) * np.uint32(_POLYNOMIAL)
    tables = np.empty((_BLOCK, 256), dtype=np.uint32)
    tables[-1] = last
    for place in range(_BLOCK - 2, -1, -1):
        after = tables[place + 1]
        tables[place] = last[after & 0xFF] ^ (after >> 8)
    return tables, np.arange(_BLOCK)
