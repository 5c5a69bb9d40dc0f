from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ingest import sandbox as sandbox_module
from ingest.parsers.limits import ParseLimits
from ingest.sandbox import Sandbox
from nvr_rag.errors import ConfigurationError, NvrError, ParseFailed
from tests.unit.ingest import files

# A child whose parser does what a hostile file might make a parser do, told by the document's text.
HOSTILE = """
import ctypes, os, socket, sys, tempfile, time
sys.path.append(sys.argv[1])
from ingest.parsers import child
real, count = child.parse_bytes, 0

def parse_bytes(data, **options):
    global count
    count += 1
    if data == b"hang": time.sleep(600)
    if data == b"hold the GIL": ctypes.PyDLL(None).sleep(600)
    if data == b"crash": ctypes.string_at(0)
    if data == b"crash unless fresh" and count > 1: ctypes.string_at(0)
    if data == b"exit": os._exit(3)
    if data == b"memory": bytearray(8 << 30)
    if data == b"abort": os.write(2, b"memory allocation of 99 bytes failed"); os.abort()
    if data == b"panic": raise type("PanicException", (BaseException,), {})("index out of bounds")
    if data == b"print": print("noise on stdout", flush=True); os.write(1, b"x" * 10_000)
    if data == b"write":
        with tempfile.TemporaryFile() as file: file.write(bytes(4 << 20))
    if data == b"pid": return real(str(os.getpid()).encode(), **options)
    if data == b"nice": return real(str(os.nice(0)).encode(), **options)
    if data == b"secret": return real(repr("NVR_SECRET" in os.environ).encode(), **options)
    if data.split()[0:1] in ([b"make"], [b"remove"], [b"run"], [b"connect"]):
        attempt, place = data.decode().split()
        try:
            if attempt == "make": open(place + "/new", "w")
            if attempt == "remove": os.remove(place + "/there")
            if attempt == "run": os.execv("/bin/true", ["true"])
            if attempt == "connect": socket.create_connection(("127.0.0.1", 9), 1)
        except OSError as error: return real(type(error).__name__.encode(), **options)
    if data.endswith(b" later"):
        options["provisional"](real(b"provisional", name="a.txt"))
        ctypes.string_at(0) if data == b"crash later" else time.sleep(2 if data == b"slow later" else 600)
    if data == b"nonsense": return type("Odd", (), {"__dataclass_fields__": {}})()
    return real(data, **options)

child.parse_bytes = parse_bytes
child.serve(sys.argv[2])
"""


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setattr(sandbox_module, "_PROGRAM", HOSTILE)
    monkeypatch.setenv("NVR_SECRET", "x")
    with Sandbox(ParseLimits(seconds=1.5, memory_bytes=1 << 30)) as sandbox:
        yield sandbox


def failure(sandbox: Sandbox, source: bytes | Path, name: str = "a.txt") -> str:
    with pytest.raises(ParseFailed) as raised:
        sandbox.parse(source, name=name)
    return str(raised.value)


def text(sandbox: Sandbox, source: bytes | Path, name: str = "a.txt") -> str:
    return sandbox.parse(source, name=name).parsed.text


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_the_same_text_as_without_a_sandbox_and_the_hash_of_the_bytes(tmp_path: Path) -> None:
    data = files.pdf([[(24, "Roll back"), (11, "Go back.")], [(11, "Second.")]], title="Operations")
    path = tmp_path / "a.pdf"
    path.write_bytes(data)
    with Sandbox() as sandbox:
        from_file = sandbox.parse(path, name="a.pdf")
        from_bytes = sandbox.parse(data, name="a.pdf")
        text_file = sandbox.parse("# Über\n\n„Zitat“ 🦆".encode(), name="a.md")
    assert from_file == from_bytes
    assert from_file.sha256 == hashlib.sha256(data).hexdigest()
    assert from_file.parsed.text.split() == ["Roll", "back", "Go", "back.", "Second."]
    assert list(from_file.parsed.page_starts) == [0, from_file.parsed.text.index("Second")]
    assert from_file.parsed.metadata["pages"] == 2
    assert (text_file.parsed.text, text_file.parsed.title) == ("# Über\n\n„Zitat“ 🦆", "Über")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"hang", "took longer than 1.5 s"),
        (b"hold the GIL", "took longer than 1.5 s"),
        (b"crash", "made the parser crash (SIGSEGV)"),
        (b"exit", "made the parser crash (exit code 3)"),
        (b"memory", "needs more than 1 GB of memory"),
        (b"abort", "needs more than 1 GB of memory"),
        (b"panic", "made the parser"),
        (b"nonsense", "made the parser"),
        (b"write", "made the parser fail"),
        (b"", "is empty (0 bytes)"),
    ],
    ids=lambda value: value.decode().replace(" ", "-") if isinstance(value, bytes) else "",
)
def test_a_hostile_document_fails_alone_and_in_words(hostile: Sandbox, document: bytes, words: str) -> None:
    assert text(hostile, b"before") == "before"
    assert words in failure(hostile, document)
    assert text(hostile, b"after") == "after"


def test_prints_do_not_disturb_the_answers(hostile: Sandbox) -> None:
    for _ in range(3):
        assert text(hostile, b"print") == "print"


def test_a_crash_is_not_blamed_on_a_document_that_parses_in_a_fresh_child(hostile: Sandbox) -> None:
    assert text(hostile, b"before") == "before"
    assert text(hostile, b"crash unless fresh") == "crash unless fresh"


def test_a_child_is_reused_and_replaced_after_many_documents(hostile: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "DOCUMENTS_PER_CHILD", 3)
    pids = [text(hostile, b"pid") for _ in range(7)]
    assert [pids.index(pid) for pid in pids] == [0, 0, 0, 3, 3, 3, 6]


def test_a_child_that_was_killed_between_documents_is_replaced(hostile: Sandbox) -> None:
    pid = int(text(hostile, b"pid"))
    os.kill(pid, signal.SIGKILL)
    assert int(text(hostile, b"pid")) != pid


def test_a_child_is_niced_and_knows_no_secrets(hostile: Sandbox) -> None:
    assert int(text(hostile, b"nice")) == os.nice(0) + 5
    assert text(hostile, b"secret") == "False"


def test_children_work_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "_PROGRAM", HOSTILE)
    with Sandbox(children=2) as sandbox, ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda number: text(sandbox, b"document %d" % number), range(40)))
        pids = set(pool.map(lambda _: text(sandbox, b"pid"), range(40)))
    assert texts == [f"document {number}" for number in range(40)]
    assert len(pids) <= 2


def test_closing_ends_children_and_fails_no_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "_PROGRAM", HOSTILE)
    sandbox = Sandbox()
    pid = int(text(sandbox, b"pid"))
    raised: list[Exception] = []

    def hang() -> None:
        try:
            sandbox.parse(b"hang", name="a.txt")
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    time.sleep(0.3)
    sandbox.close()
    thread.join(10)
    assert [type(error) for error in raised] == [NvrError]
    assert not Path(f"/proc/{pid}").exists()  # not even as a zombie
    with pytest.raises(NvrError, match="stopped"):
        sandbox.parse(b"late", name="a.txt")
    sandbox.close()


def test_an_interrupted_parse_does_not_answer_for_the_next_document(
    hostile: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sandbox_module._read_answer
    text(hostile, b"before")
    with monkeypatch.context() as patched:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(sandbox_module, "_read_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hostile.parse(b"first", name="a.txt")
    assert sandbox_module._read_answer is real
    assert text(hostile, b"second") == "second"


def test_children_die_with_a_parent_that_is_killed() -> None:
    program = (
        "import sys; from ingest import sandbox; sandbox._PROGRAM = sys.argv[1]\n"
        "box = sandbox.Sandbox()\n"
        "print(box.parse(b'pid', name='a.txt').parsed.text, flush=True)\n"
        "box.parse(b'hang', name='a.txt')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, HOSTILE], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.2)
    assert alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    limits = ParseLimits(input_bytes=1000)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "large.txt").write_bytes(b"x" * 1001)
    with Sandbox(limits) as sandbox:
        assert failure(sandbox, tmp_path / "gone.txt") == "is gone"
        assert failure(sandbox, tmp_path / "pipe") == "is not a regular file"
        assert failure(sandbox, tmp_path) == "is not a regular file"
        assert failure(sandbox, tmp_path / "empty.txt") == "is empty (0 bytes)"
        assert failure(sandbox, tmp_path / "large.txt").startswith("is larger than")
        assert failure(sandbox, b"x" * 1001).startswith("is larger than")


def test_a_200_mb_text_file_gets_a_clear_message(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    with open(path, "wb") as file:
        file.truncate(200 * 2**20)
    with Sandbox() as sandbox:
        assert failure(sandbox, path) == "is larger than 100 MB (200 MB); split it into smaller files"


def test_an_odd_file_name_is_no_problem(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\n\xff.txt"))
    path.write_bytes(b"words")
    with Sandbox() as sandbox:
        assert text(sandbox, path, name=path.name) == "words"


def test_a_broken_installation_is_not_blamed_on_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "_PROGRAM", "raise SystemExit('no such module')")
    with Sandbox() as sandbox, pytest.raises(ConfigurationError, match="no such module"):
        sandbox.parse(b"words", name="a.txt")


def test_a_parent_believes_nothing() -> None:
    sound = {"text": "ab", "page_starts": [0, 1], "format": "plain", "media_type": "text/plain", "title": ""}
    sound |= {"metadata": {}, "notes": [], "sha256": "0" * 64}
    assert sandbox_module._parsed_file(sound).parsed.text == "ab"
    for odd in (
        {"page_starts": [1, 0]},
        {"page_starts": [0, 9]},
        {"page_starts": [-1]},
        {"format": "exe"},
        {"metadata": 3},
        {"text": "a\x00b"},
    ):
        with pytest.raises(ParseFailed, match="nonsense"):
            sandbox_module._parsed_file(sound | odd)


def test_a_parent_with_much_memory_does_not_cost_its_children_their_lives() -> None:
    ballast = bytearray(600 * 2**20)  # more than the share of the limit at which a child is replaced
    ballast[::4096] = b"x" * len(ballast[::4096])
    with Sandbox() as sandbox:
        sandbox.parse(b"one", name="one.txt")
        first = sandbox._all[0]._process
        sandbox.parse(b"two", name="two.txt")
        assert sandbox._all[0]._process is first
    assert len(ballast)


@pytest.mark.parametrize("end", [b"crash later", b"hang later"])
def test_what_was_there_before_a_step_that_killed_the_child_counts(
    hostile: Sandbox, end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ParseLimits, "ocr_seconds", 0.5)
    parsed = hostile.parse(end, name="a.txt").parsed
    assert parsed.text == "provisional"
    assert text(hostile, b"after") == "after"


def test_such_a_step_has_time_of_its_own(hostile: Sandbox) -> None:
    assert text(hostile, b"slow later") == "slow later"  # 2 s, in which the 1.5 s of the others have passed


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")
def test_a_child_can_neither_change_files_nor_connect(hostile: Sandbox, tmp_path: Path) -> None:
    if not confinement_works():
        pytest.skip("this kernel has no Landlock with a say over connections")
    for attempt in ("make", "remove", "run", "connect"):
        (tmp_path / "there").touch()
        assert text(hostile, f"{attempt} {tmp_path}".encode()) == "PermissionError", attempt
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def confinement_works() -> bool:
    return ctypes.CDLL(None).syscall(444, None, 0, 1) >= 4
