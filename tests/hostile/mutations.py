"""Valid documents in, hostile ones out: every mutation takes a file's name, its bytes and a source of chance."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from random import Random

from tests.hostile import bombs
from tests.unit.ingest.documents import every, zipped

Made = tuple[str, bytes]  # name, content
Mutation = Callable[[str, bytes, Random], Made]

_EXTENSIONS = sorted({name.partition(".")[2] for name in every()} | {"doc", "xls", "ppt", "htm", "log", "yaml", "tex"})
_HUGE = (b"-1", b"0", b"2147483648", b"4294967295", b"99999999999999999999", b"1e308", b"16777216")
_ODD_BYTES = (b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\x00", b"\xfe\xff", b"\xe2\x80\xae")


def truncated(name: str, data: bytes, chance: Random) -> Made:
    return name, data[: chance.randrange(1, max(2, len(data)))]


def bits_flipped(name: str, data: bytes, chance: Random) -> Made:
    flipped = bytearray(data)
    for _ in range(chance.choice((1, 4, 16, 64, 256))):
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    return name, bytes(flipped)


def overwritten(name: str, data: bytes, chance: Random) -> Made:
    start, size = chance.randrange(len(data)), chance.randrange(1, 400)
    filler = chance.choice((chance.randbytes(size), b"\x00" * size, b"\xff" * size))
    return name, data[:start] + filler + data[start + size :]


def torn_out(name: str, data: bytes, chance: Random) -> Made:
    start, end = sorted((chance.randrange(len(data)), chance.randrange(len(data))))
    return name, data[:start] + data[end + 1 :] or b"x"


def repeated(name: str, data: bytes, chance: Random) -> Made:
    start, end = sorted((chance.randrange(len(data)), chance.randrange(len(data))))
    part = data[start : end + 1]
    return name, data[:end] + part * min(chance.choice((2, 100, 5000)), 2_000_000 // len(part) + 1) + data[end:]


def spliced(name: str, data: bytes, chance: Random) -> Made:
    _, other = chance.choice(sorted(every().items()))
    return name, data[: chance.randrange(1, len(data))] + other[chance.randrange(len(other)) :]


def led_by_another(name: str, data: bytes, chance: Random) -> Made:
    first = chance.choice((b"\xef\xbb\xbf", b"PK\x03\x04", b"%PDF-1.7\n", b"{\\rtf1", b"<html>", chance.randbytes(500)))
    return name, first + data


def followed_by_another(name: str, data: bytes, chance: Random) -> Made:
    _, other = chance.choice(sorted(every().items()))
    return name, data + other


def wrong_extension(name: str, data: bytes, chance: Random) -> Made:
    return f"{name}.{chance.choice(_EXTENSIONS)}", data


def no_extension(name: str, data: bytes, _chance: Random) -> Made:
    return name.partition(".")[0], data


def numbers_changed(name: str, data: bytes, chance: Random) -> Made:
    """Numbers in the text of a file, or of a member of its container, become huge or negative: counts, sizes."""

    def change(text: bytes) -> bytes:
        places = list(re.finditer(rb"\d+", text))[:2000]
        for place in sorted(chance.sample(places, min(len(places), chance.randrange(1, 6))), key=lambda p: -p.start()):
            text = text[: place.start()] + chance.choice(_HUGE) + text[place.end() :]
        return text

    return name, _inside(data, change, chance)


def odd_bytes(name: str, data: bytes, chance: Random) -> Made:
    """Bytes that are no UTF-8, nulls and marks of other encodings, in the text or in a member."""

    def spoil(text: bytes) -> bytes:
        for _ in range(chance.choice((1, 5, 50))):
            at = chance.randrange(len(text) + 1)
            text = text[:at] + chance.choice(_ODD_BYTES) + text[at:]
        return text

    return name, _inside(data, spoil, chance)


def damaged_inside(name: str, data: bytes, chance: Random) -> Made:
    """A member of a container is damaged, and the container is sound; a PDF's stream likewise."""
    return name, _inside(data, lambda text: bits_flipped("", text or b"x", chance)[1], chance)


def _inside(data: bytes, change: Callable[[bytes], bytes], chance: Random) -> bytes:
    members = members_of(data)
    if not members:
        return change(data)
    name = chance.choice(sorted(members))
    return zipped({**members, name: change(members[name])}, stored="mimetype")


def members_of(data: bytes) -> dict[str, bytes]:
    """The members of a ZIP container; none of what is not one."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError):
        return {}


def member_missing(name: str, data: bytes, chance: Random) -> Made:
    members = members_of(data)
    if not members:
        return torn_out(name, data, chance)
    del members[chance.choice(sorted(members))]
    return name, zipped(members, stored="mimetype")


def nested(name: str, data: bytes, chance: Random) -> Made:
    """The file in an archive in an archive ..., under its own name or as a member of a container of its own kind."""
    members = members_of(data)
    for level in range(chance.choice((1, 3, 40))):
        data = zipped({**members, f"level{level}/{name}": data})
        members = {} if chance.random() < 0.5 else members
    return name, data


def encrypted(name: str, data: bytes, chance: Random) -> Made:
    return bombs.encrypted(name, data, chance)


def bomb(name: str, data: bytes, chance: Random) -> Made:
    return bombs.zip_bomb(name, members_of(data), chance)


def xml_bomb(name: str, data: bytes, chance: Random) -> Made:
    return bombs.xml_bomb(name, members_of(data), chance)


def deep(name: str, _data: bytes, chance: Random) -> Made:
    return bombs.deep(name, chance)


def endless(name: str, data: bytes, chance: Random) -> Made:
    """Long beyond measure, mostly in one line; see `places` for files that grow while they are read."""
    size = chance.choice((200_000, 1_000_000, 3_000_000))
    filler = chance.choice(
        (b"a", b"a ", b"a,", b'"', b"\n", b"| a ", b"<p>", b"\xe6\x97\xa5", b"* ", b"1 0 obj\n", b"=")
    )
    return name, data + filler * (size // len(filler))


MUTATIONS: Mapping[str, Mutation] = {
    mutation.__name__.replace("_", " "): mutation
    for mutation in (
        truncated,
        bits_flipped,
        overwritten,
        torn_out,
        repeated,
        spliced,
        led_by_another,
        followed_by_another,
        wrong_extension,
        no_extension,
        numbers_changed,
        odd_bytes,
        damaged_inside,
        member_missing,
        nested,
        encrypted,
        bomb,
        xml_bomb,
        deep,
        endless,
    )
}


def mutated(mutation: str, bases: Sequence[Made], chance: Random) -> Made:
    name, data = chance.choice(bases)
    return MUTATIONS[mutation](name, data, chance)
