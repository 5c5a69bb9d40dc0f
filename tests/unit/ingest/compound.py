"""Old Office containers (OLE compound files), written by hand: enough of the format for an Outlook message."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise

_FREE, _END, _FAT = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD
_SECTOR, _MINI = 512, 64
_STREAM, _ROOT, _STORAGE = 2, 5, 1


def message(*, subject: str, sender: str, recipient: str, body: str) -> bytes:
    """An Outlook message (.msg) with a plain text body."""
    text = {0x001A: "IPM.Note", 0x0037: subject, 0x0C1A: "Ann", 0x0C1F: sender, 0x0E04: recipient, 0x1000: body}
    return compound(
        {
            "__properties_version1.0": bytes(32),
            **_strings(text),
            "__recip_version1.0_#00000000": {
                "__properties_version1.0": bytes(8),
                **_strings({0x3001: recipient, 0x3003: recipient}),
            },
        }
    )


def _strings(values: Mapping[int, str]) -> dict[str, bytes]:
    return {f"__substg1.0_{tag:04X}001F": text.encode("utf-16-le") for tag, text in values.items()}


def compound(tree: Mapping[str, bytes | Mapping[str, bytes]]) -> bytes:
    """A compound file with these streams, and storages of streams; all of them short, so all in the mini stream."""
    entries: list[tuple[str, int, bytes, list[int]]] = [("Root Entry", _ROOT, b"", [])]
    _add(entries, 0, tree)
    mini, starts = bytearray(), []
    mini_fat: list[int] = []
    for _, kind, data, _ in entries:
        starts.append(len(mini) // _MINI if kind == _STREAM and data else _END)
        count = -(-len(data) // _MINI)
        mini_fat += [*range(len(mini_fat) + 1, len(mini_fat) + count), _END] if count else []
        mini += data.ljust(count * _MINI, b"\0")
    folder = _directory(entries, starts, len(mini))
    parts = [folder, struct.pack(f"<{len(mini_fat)}I", *mini_fat), bytes(mini)]
    return _file([_padded(part, b"\xff" if part is parts[1] else b"\0") for part in parts])


def _add(entries: list[tuple[str, int, bytes, list[int]]], parent: int, tree: Mapping[str, object]) -> None:
    for name in sorted(tree, key=lambda name: (len(name), name.upper())):
        value = tree[name]
        entries[parent][3].append(len(entries))
        entries.append((name, _STREAM, value, []) if isinstance(value, bytes) else (name, _STORAGE, b"", []))
        if isinstance(value, Mapping):
            _add(entries, len(entries) - 1, value)


def _directory(entries: Sequence[tuple[str, int, bytes, list[int]]], starts: Sequence[int], mini: int) -> bytes:
    """128 bytes an entry; siblings hang to the right of each other, which is a lopsided but valid tree."""
    right = {a: b for _, _, _, children in entries for a, b in pairwise(children)}
    out = b""
    for number, (name, kind, data, children) in enumerate(entries):
        coded = name.encode("utf-16-le")
        start, size = (3, mini) if kind == _ROOT else (starts[number], len(data))  # 3 is mended by _file
        out += coded.ljust(64, b"\0") + struct.pack("<HBB", len(coded) + 2, kind, 1)
        out += struct.pack("<III", _FREE, right.get(number, _FREE), children[0] if children else _FREE)
        out += bytes(36) + struct.pack("<IQ", start if kind != _STORAGE else 0, size)
    return out


def _padded(data: bytes, filler: bytes) -> bytes:
    return data + filler * (-len(data) % _SECTOR)


def _file(parts: Sequence[bytes]) -> bytes:
    """Header, FAT, directory, mini FAT, mini stream; each a run of sectors, the FAT one sector."""
    counts = [len(part) // _SECTOR for part in parts]
    fat, firsts = [_FAT], []
    for count in counts:
        firsts.append(len(fat))
        fat += [*range(len(fat) + 1, len(fat) + count), _END]
    assert len(fat) <= _SECTOR // 4
    table = struct.pack(f"<{_SECTOR // 4}I", *fat, *[_FREE] * (_SECTOR // 4 - len(fat)))
    directory = bytearray(parts[0])
    directory[116:120] = struct.pack("<I", firsts[2])
    header = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16) + struct.pack("<HHHHH", 0x3E, 3, 0xFFFE, 9, 6) + bytes(6)
    header += struct.pack("<IIIIIIIII", 0, 1, firsts[0], 0, 4096, firsts[1], counts[1], _END, 0)
    header += struct.pack("<I", 0) + b"\xff" * (4 * 108)
    return header + table + bytes(directory) + parts[1] + parts[2]
