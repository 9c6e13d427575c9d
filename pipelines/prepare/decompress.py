"""Decompresses a stream; its first bytes say how it is compressed, not the file's name.

Names lie: servers unpack what they send as `.gz`, and scripts forget the ending. Whatever a file holds comes
out in blocks, so memory is that of a block and of the decompressor's window, which for zstd the file decides.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import zstandard

from pipelines.system.machine import bytes_text

LARGEST_WINDOW = 1 << 31
"""Bytes; the most that zstd itself reads (`zstd --long=31`)."""

ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""What reading a damaged file raises."""

HEAD_BYTES = 18
"""The longest zstd frame header."""

_BLOCK = 1 << 20
_ZSTD_INPUT = 1 << 12  # each byte may stand for 32 KiB
_GZIP, _BZIP2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")


def blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yields the content of `stream` from its beginning, decompressed, in blocks; none is empty.

    Members and frames that follow each other are read as one.

    Raises:
        one of `ERRORS`: the content ends too early or is damaged.
    """
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    if is_zstd(head):
        if (window := zstd_window(head)) > LARGEST_WINDOW:
            what = f"its zstd window is of {bytes_text(window)}, and zstd reads {bytes_text(LARGEST_WINDOW)}"
            raise zstandard.ZstdError(f"{what} at most; compress it with --long=27")
        yield from _zstd_blocks(stream)
        return
    new = next((new for is_one, new in _MEMBERS if is_one(head)), None)
    if new is not None:
        yield from _member_blocks(stream, new)
        return
    file: Any = gzip.GzipFile(fileobj=stream) if head.startswith(_GZIP) else stream
    while block := file.read(_BLOCK):
        yield block


def is_compressed(head: bytes) -> bool:
    """Says whether a file that begins with `head` (`HEAD_BYTES` of it) is compressed."""
    return is_zstd(head) or head.startswith(_GZIP) or any(is_one(head) for is_one, _ in _MEMBERS)


def is_zstd(head: bytes) -> bool:
    """Says whether `head` begins a zstd frame; skippable ones count."""
    return head.startswith(_ZSTD) or (head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F)


def zstd_window(head: bytes) -> int:
    """Returns the bytes that whoever reads a file has to keep, if a zstd frame begins it; else 0.

    Source: RFC 8878, 3.1.1.1. zstandard's own reader of headers refuses windows above `LARGEST_WINDOW`.
    """
    if not head.startswith(_ZSTD) or len(head) < 6:
        return 0
    single_segment = head[4] & 0x20
    if not single_segment:
        exponent, mantissa = head[5] >> 3, head[5] & 7
        return (1 << (10 + exponent)) * (8 + mantissa) // 8
    start = 5 + (0, 1, 2, 4)[head[4] & 3]
    size = (1, 2, 4, 8)[head[4] >> 6]
    return int.from_bytes(head[start : start + size], "little") + (256 if size == 2 else 0)


def _is_bzip2(head: bytes) -> bool:
    return head.startswith(_BZIP2) and head[3:4].isdigit() and head[4:10] in _BZIP2_BLOCKS


_MEMBERS: tuple[tuple[Callable[[bytes], bool], Callable[[], Any]], ...] = (
    (_is_bzip2, bz2.BZ2Decompressor),
    (lambda head: head.startswith(_XZ), lambda: lzma.LZMADecompressor(memlimit=LARGEST_WINDOW)),
)


def _member_blocks(stream: BinaryIO, new: Callable[[], Any]) -> Iterator[bytes]:
    # Not bz2's and lzma's own files, which silently stop at anything unreadable after the first member.
    content = b""
    while content := content or stream.read(_BLOCK):
        content = content.lstrip(b"\0")  # xz files may be padded
        if not content:
            continue
        member = new()
        while not member.eof:
            if member.needs_input and not content and not (content := stream.read(_BLOCK)):
                raise EOFError("the last compressed member is cut short")
            if block := member.decompress(content, _BLOCK):
                yield block
            content = b""
        content = member.unused_data


def _zstd_blocks(stream: BinaryIO) -> Iterator[bytes]:
    # Not zstandard's stream_reader, which takes a truncated file for a complete one.
    context = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
    frame = None
    content = b""
    while content := content or stream.read(_ZSTD_INPUT):
        frame = frame or context.decompressobj()
        if block := frame.decompress(content):
            yield block
        content = b""
        if frame.eof:
            content, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("the last zstd frame is cut short")
