"""Plain ustar archives, header by header: no byte depends on the machine, user or time."""

from __future__ import annotations

BLOCK = 512
END = bytes(2 * BLOCK)  # two blocks of zeros end an archive
LABEL = b".cls"  # ending of the member that holds an image's class

_PADDING = tuple(bytes(n) for n in range(BLOCK))
_OWNER = b"0000444\0" + b"0000000\0" * 2  # mode, uid, gid
_MTIME = b"00000000000\0"
_REST = b"0".ljust(101, b"\0") + b"ustar\0" + b"00" + bytes(247)  # regular file, no names of owners
_SUM = sum(_OWNER) + sum(_MTIME) + sum(_REST) + 8 * ord(" ")  # of all that never changes
_NAME = 100
_SIZE = 8**11


def header(name: bytes, size: int) -> bytes:
    """Return the 512 bytes before a member's content.

    Args:
        name: path of the member, 1 to 100 bytes.
        size: bytes of its content, below 8 GiB.

    Raises:
        ValueError: the name or the size has no room in a plain header.
    """
    if not 0 < len(name) <= _NAME or not 0 <= size < _SIZE:
        raise ValueError(f"no plain header for a name of {len(name)} bytes and a size of {size}")
    digits = b"%011o\0" % size
    checksum = b"%06o\0 " % (_SUM + sum(name) + sum(digits))
    return b"".join((name.ljust(_NAME, b"\0"), _OWNER, digits, _MTIME, checksum, _REST))


def padding(size: int) -> bytes:
    """Return the zeros after a content of ``size`` bytes, up to a full block."""
    return _PADDING[-size % BLOCK]


def sample_head(key: bytes, ending: bytes, label: int, size: int) -> bytes:
    """Return the 1,536 bytes before an image: the member of its label, and its own header.

    Args:
        key: name of both members without ending; with the longer ending at most 100 bytes.
        ending: of the image's member, with the dot.
        label: class of the image, 0 or larger.
        size: bytes of the image.

    Raises:
        ValueError: name or size have no room in a plain header.
    """
    text = b"%d" % label
    return b"".join(
        (
            header(key + LABEL, len(text)),
            text.ljust(BLOCK, b"\0"),
            header(key + ending, size),
        )
    )


def sample_bytes(size: int) -> int:
    """Return the bytes that an image of ``size`` bytes takes in an archive, label included."""
    return 3 * BLOCK + size + -size % BLOCK
