"""Forms as they arrive: in pieces of any size, from honest clients and from others."""

from __future__ import annotations

import random
from email import message_from_bytes
from email.policy import HTTP

import httpx
import pytest

from nvr_rag.api.multipart import MAX_HEAD_BYTES, MAX_PARTS, End, Head, Malformed, Parser, boundary_of, file_name

BOUNDARY = b"x-b0undary"


def part(head: str, body: bytes) -> bytes:
    return b"--" + BOUNDARY + b"\r\n" + head.encode() + b"\r\n\r\n" + body + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def field(name: str, body: bytes = b"1") -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"', body)


def parsed(body: bytes, size: int = 2**20, boundary: bytes = BOUNDARY) -> list[tuple[Head, bytes]]:
    """The parts of a body that is fed in pieces of a size."""
    parser, found, begun = Parser(boundary), [], []
    for start in range(0, len(body), size):
        for event in parser.feed(body[start : start + size]):
            if isinstance(event, Head):
                begun.append((event, bytearray()))
            elif isinstance(event, End):
                head, content = begun.pop()
                found.append((head, bytes(content)))
            else:
                begun[-1][1].extend(event)
    parser.end()
    assert not begun
    return found


BODIES = (
    b"",
    b"plain",
    b"\r\n",
    b"\r\n--",
    b"\r\n--x-b0undar",
    b"--x-b0undary",  # not at the beginning of a line that the body has
    b"a\r\n\r\nb\r\n-",
    bytes(range(256)) * 5,
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_parts_are_the_same_in_pieces_of_any_size(size: int) -> None:
    body = form(*(field(f"n{number}", content) for number, content in enumerate(BODIES)))
    assert [(head.name, content) for head, content in parsed(body, size)] == [
        (f"n{number}", content) for number, content in enumerate(BODIES)
    ]


def test_random_bodies_are_read_as_another_parser_reads_them() -> None:
    chance = random.Random(7)
    for _ in range(50):
        bodies = [bytes(chance.choices(b"\r\n-xb0 \x00\xff", k=chance.randrange(40))) for _ in range(3)]
        bodies = [content for content in bodies if b"--" + BOUNDARY not in content]
        body = form(*(field(f"n{number}", content) for number, content in enumerate(bodies)))
        head = b"Content-Type: multipart/form-data; boundary=" + BOUNDARY + b"\r\n\r\n"
        whole = message_from_bytes(head + body, policy=HTTP.clone(linesep="\r\n"))
        names = [one.get_param("name", header="content-disposition") for one in whole.iter_parts()]
        assert [one.name for one, _ in parsed(body, 5)] == names
        assert [content for _, content in parsed(body, 5)] == bodies


def test_what_httpx_sends_is_understood() -> None:
    files = [("file", ('dé "x".md', b"# One", "text/markdown")), ("file", ("two.txt", b"2\r\n"))]
    request = httpx.Request("POST", "http://host/", data={"uri": "a b", "title": "Ünï"}, files=files)
    found = parsed(request.read(), 11, boundary_of(request.headers["content-type"]))
    assert [(head.name, content.decode()) for head, content in found[:2]] == [("uri", "a b"), ("title", "Ünï")]
    (first, one), (second, two) = found[2:]
    assert (first.media_type, one, second.filename, two) == ("text/markdown", b"# One", "two.txt", b"2\r\n")
    assert first.filename is not None
    assert first.filename.startswith("dé ")


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ('filename="a.pdf"', "a.pdf"),
        ("filename=a.pdf", "a.pdf"),
        ('filename="../../etc/passwd"', "passwd"),
        (r'filename="C:\\docs\\a.pdf"', "a.pdf"),
        (r'filename="say \"hi\".txt"', 'say "hi".txt'),
        ("filename=\"x.txt\"; filename*=UTF-8''na%C3%AFve.txt", "naïve.txt"),
        ("filename*=UTF-8''..%2F..%2Fx.txt", "x.txt"),
        ('filename=""', ""),
        ('filename=".."', ""),
        ('filename="a/"', ""),
        ('filename="nu\x00l.txt"', "nul.txt"),
    ],
)
def test_a_file_name_is_never_a_path(said: str, name: str) -> None:
    body = form(part(f'Content-Disposition: form-data; name="file"; {said}', b"x"))
    assert [head.filename for head, _ in parsed(body)] == [name]


def test_a_long_name_keeps_its_ending() -> None:
    assert file_name("x" * 1000 + ".docx") == "x" * 250 + ".docx"
    assert file_name("x" * 1000) == "x" * 255


def test_what_stands_behind_the_parts_is_passed_over() -> None:
    body = field("a", b"1") + b"--" + BOUNDARY + b"--\r\nepilogue\r\n" + field("b")
    assert [(head.name, content) for head, content in parsed(body, 4)] == [("a", b"1")]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "its Content-Type names is not in it"),
        (b"no form at all", "is not the multipart/form-data that its"),
        (b"x" * 100_000, "is not the multipart/form-data that its"),
        (field("a"), "is cut off"),
        (form(field("a"))[:-6], "is cut off"),
        (field("a")[:-3], "is cut off"),
        (form(part("Content-Type: text/plain", b"x")), "Content-Disposition"),
        (form(part("Content-Disposition: attachment; name=a", b"x")), "Content-Disposition"),
        (form(part("Content-Disposition: form-data", b"x")), "Content-Disposition"),
        (b"--" + BOUNDARY + b"\r\n\r\nx\r\n--" + BOUNDARY + b"--", "Content-Disposition"),
        (b"--" + BOUNDARY + b"more\r\n", "is not the multipart/form-data that its"),
        (b"--" + BOUNDARY + b" " * 500, "is not the multipart/form-data that its"),
        (b"--" + BOUNDARY + b"\r\n" + b"a: b\r\n" * 10_000, "is not the multipart/form-data that its"),
        (
            form(part("\r\n".join(f"X{n}: " + "y" * (MAX_HEAD_BYTES // 4) for n in range(5)), b"x")),
            "header of a part is longer",
        ),
        (form(*[field("a", b"")] * (MAX_PARTS + 1)), f"more than {MAX_PARTS} parts"),
    ],
)
@pytest.mark.parametrize("size", [2**20, 1000])
def test_what_is_no_form_is_refused(body: bytes, words: str, size: int) -> None:
    with pytest.raises(Malformed, match=words):
        parsed(body, size)


def test_as_many_parts_as_are_allowed_are_read() -> None:
    assert len(parsed(form(*[field("a", b"")] * MAX_PARTS))) == MAX_PARTS


@pytest.mark.parametrize("said", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; x=y"])
def test_a_content_type_without_boundary_is_refused(said: str) -> None:
    with pytest.raises(Malformed, match="boundary"):
        boundary_of(said)


def test_a_boundary_may_be_quoted() -> None:
    assert boundary_of('multipart/form-data; charset=utf-8; boundary="a b:c"; x=y') == b"a b:c"


def test_nothing_of_a_large_part_is_kept() -> None:
    parser = Parser(BOUNDARY)
    list(parser.feed(b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'))
    for _ in range(64):
        came = sum(len(event) for event in parser.feed(bytes(2**20)) if isinstance(event, bytes))
        assert 2**20 - len(BOUNDARY) - 4 <= came <= 2**20 + len(BOUNDARY) + 4
        assert not parser._events
