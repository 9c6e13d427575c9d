"""Files that only stand for others."""

from __future__ import annotations

LARGEST_POINTER = 1024
"""Bytes; what Git LFS writes is smaller."""

_POINTER = b"version https://git-lfs.github.com/spec/"


def is_git_lfs_pointer(head: bytes) -> bool:
    """Says whether a file that begins with `head` is a Git LFS pointer: the file itself was not fetched."""
    return head.startswith(_POINTER)
