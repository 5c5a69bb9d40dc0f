"""The lines of a JSON Lines file as documents, and what is wrong with those that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ingest.folders import records
from ingest.folders.records import TextRecord, read_jsonl
from ingest.sources import Skipped
from nvr_rag.errors import InvalidInput


class TestJsonl:
    def read(self, tmp_path: Path, *lines: bytes | object) -> list[TextRecord | Skipped]:
        path = tmp_path / "a.jsonl"
        encoded = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        path.write_bytes(b"\n".join(encoded))
        return list(read_jsonl(path))

    def test_records(self, tmp_path: Path) -> None:
        full = {"uri": "https://a", "text": "A\r\nb", "title": "T", "metadata": {"n": [1, "x\x00"]}}
        full |= {"media_type": "text/markdown", "acl": ["team"]}
        assert self.read(tmp_path, full, b"", b" \t\r", {"id": 7, "text": "b", "acl": []}) == [
            TextRecord(
                uri="https://a",
                text="A\nb",
                line=1,
                title="T",
                media_type="text/markdown",
                metadata={"n": [1, "x"]},
                acl=("team",),
            ),
            TextRecord(uri="7", text="b", line=4, metadata={}, acl=()),
        ]

    def test_beir(self, tmp_path: Path) -> None:
        assert self.read(
            tmp_path, {"_id": "4983", "title": "T", "text": "A"}, {"_id": "5", "title": "T", "text": ""}
        ) == [
            TextRecord(uri="4983", text="A", line=1, title="T", metadata={}),
            TextRecord(uri="5", text="T", line=2, title="T", metadata={}),
        ]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"{broken", "is not JSON: "),
            (b"\xff{}", "is not UTF-8"),
            (b"[1]", "is not a JSON object"),
            (b"[" * 100_000, "is nested too deeply"),
            (b'{"id": "a"}', 'has no "text"'),
            (b'{"id": "a", "text": 3}', 'has a "text" that is not a string'),
            (b'{"id": "a", "text": " "}', 'has an empty "text"'),
            (b'{"text": "a"}', 'has no "uri" or "id"'),
            (b'{"text": "a", "id": ["b"]}', 'has a "id" that is not a string'),
            (b'{"text": "a", "id": "\\ud800"}', 'has a "id" that is not a string of printable'),
            (b'{"text": "a", "id": "b", "metadata": []}', 'has "metadata" that is not an object'),
            (b'{"text": "a", "id": "b", "metadata": {"x": NaN}}', "holds NaN"),
            (b'{"text": "a", "id": "b", "metadata": {"x": 1e999}}', "holds a number that is too large"),
            (b'{"text": "a", "id": "b", "metadata": {"x": 9223372036854775808}}', "holds a number that is too large"),
            (
                b'{"text": "a", "id": "b", "metadata": ' + b'{"x": ' * 17 + b"1" + b"}" * 18,
                'has "metadata" that cannot be',
            ),
            (b'{"text": "a", "id": "' + b"x" * 4097 + b'"}', 'has a "id" of more than 4096 characters'),
            (b'{"text": "a", "id": "b", "acl": "me"}', 'has an "acl" that is not a list'),
        ],
    )
    def test_a_bad_line_is_reported_and_the_rest_goes_on(self, tmp_path: Path, line: bytes, reason: str) -> None:
        good = {"id": "x", "text": "good"}
        first, bad, last = self.read(tmp_path, good, line, good)
        assert isinstance(first, TextRecord)
        assert isinstance(last, TextRecord)
        assert isinstance(bad, Skipped)
        assert (bad.line, bad.path) == (2, tmp_path / "a.jsonl")
        assert bad.reason.startswith(reason)

    def test_a_line_that_is_too_long_is_not_held_in_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(records, "MAX_LINE_BYTES", 1 << 20)
        good = {"id": "x", "text": "good"}
        first, bad, last = self.read(tmp_path, good, {"id": "y", "text": "x" * (3 << 20)}, good)
        assert isinstance(bad, Skipped)
        assert (bad.line, bad.reason) == (2, "is longer than 1 MB")
        assert isinstance(first, TextRecord)
        assert isinstance(last, TextRecord)
        assert last.line == 3

    def test_a_byte_order_mark_and_a_missing_file(self, tmp_path: Path) -> None:
        record = self.read(tmp_path, b'\xef\xbb\xbf{"id": "a", "text": "b"}')[0]
        assert isinstance(record, TextRecord)
        with pytest.raises(InvalidInput, match="No such file"):
            list(read_jsonl(tmp_path / "nowhere.jsonl"))
