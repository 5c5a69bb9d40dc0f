"""The command line `nvr-rag`: mounts the commands and turns every outcome into an exit code and one clear line.

0 all went well, 1 something failed, 2 wrong usage, 130 stopped by Ctrl-C. Commands import what they need when they run,
and commands of other packages (entry-point group `nvr_rag.commands`, each a `register(app: typer.Typer) -> None`) are
loaded only when asked for, so that `nvr-rag status` costs neither torch nor a parser.
"""

from __future__ import annotations

import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from nvr_rag import __version__, output
from nvr_rag.commands import (
    backup,
    collections,
    deploy,
    documents,
    erasing,
    index,
    jobs,
    keys,
    mcp,
    models,
    prune,
    search,
    serve,
    status,
    transfer,
    verify,
    worker,
)
from nvr_rag.errors import InvalidInput, NvrError
from nvr_rag.running import memory

GROUP = "nvr_rag.commands"
FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


class Root(TyperGroup):
    """The top of the command line: own commands at once, those of other packages when they are needed."""

    _complete = False

    def list_commands(self, ctx: Any) -> list[str]:
        self._mount()
        return sorted(super().list_commands(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            self._mount()
        return super().get_command(ctx, cmd_name)

    def _mount(self) -> None:
        if not self._complete:
            self._complete = True
            for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
                for name, command in _contributed(entry).items():
                    self.commands.setdefault(name, command)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run a command line, the help when it is empty, and exit with its code."""
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        options["standalone_mode"] = False
        run = super().main
        sys.exit(_run(lambda: run(arguments, *rest, **options), as_json=_wants_json(arguments)))


def _contributed(entry: EntryPoint) -> dict[str, Any]:
    """The commands of another package; none, and a warning, when it is broken."""
    contributed = typer.Typer(rich_markup_mode=None)
    try:
        entry.load()(contributed)
        return dict(get_group(contributed).commands)
    except Exception as error:  # whatever is wrong with one package must not take the other commands away
        output.note(f"Warning: the commands of {entry.name!r} cannot be loaded ({type(error).__name__}: {error})")
        return {}


app = typer.Typer(
    cls=Root,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("backup")(backup.backup)
app.command("export")(transfer.export)
app.command("import")(transfer.import_file)
app.command("mcp")(mcp.mcp)
app.command("restore")(backup.restore)
app.command("prune")(prune.prune)
app.command("search")(search.search)
app.command("serve")(serve.serve)
app.command("status")(status.status)
app.command("verify")(verify.verify)
app.command("worker")(worker.worker)
app.add_typer(collections.app, name="collections")
app.add_typer(deploy.app, name="deploy")
documents.app.command("erase")(erasing.erase_documents)
app.add_typer(documents.app, name="documents")
app.add_typer(erasing.erasures, name="erasures")
app.add_typer(index.app, name="index")
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
app.add_typer(erasing.users, name="users")


def _print_version(wanted: bool) -> None:
    if wanted:
        output.say(f"nvr-rag {__version__}")
        raise typer.Exit


@app.callback()
def root(
    home: Annotated[Path | None, typer.Option("--home", help="The data folder.  [default: NVR_HOME]")] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A self-hosted retrieval backend for RAG that gets better with use."""
    if home is not None:
        # Through the environment, so that child processes and the commands of other packages see it as well.
        os.environ["NVR_HOME"] = str(home)


def main() -> None:
    """The console entry point."""
    memory.keep_less()
    app(prog_name="nvr-rag")


def _run(command: Callable[[], Any], *, as_json: bool) -> int:
    """Run a command, tell how it ended, and return the exit code."""
    try:
        code = command()
        sys.stdout.flush()
    except typer.TyperException as error:
        return _fail("UsageError", error.format_message(), error, WRONG_USAGE, as_json=as_json)
    except typer.Abort as error:
        return _fail("Aborted", "stopped; nothing was changed", error, FAILED, as_json=as_json)
    except NvrError as error:
        code = WRONG_USAGE if isinstance(error, InvalidInput) else FAILED
        return _fail(type(error).__name__, str(error), error, code, as_json=as_json)
    except (Exception, SystemExit) as error:
        # typer ends the process by itself when it meets a closed pipe
        cause = error.__context__ if isinstance(error, SystemExit) else error
        if isinstance(cause, BrokenPipeError) and _nobody_reads():
            return 0
        if not isinstance(cause, Exception):
            raise
        return _fail(type(cause).__name__, _unexpected(cause), cause, FAILED, as_json=as_json)
    if code == INTERRUPTED:
        return _fail("Interrupted", "stopped by Ctrl-C", None, INTERRUPTED, as_json=as_json)
    return code if isinstance(code, int) else 0


def _fail(kind: str, message: str, error: BaseException | None, code: int, *, as_json: bool) -> int:
    """Tell a person on stderr, and with --json also a program on stdout, what went wrong."""
    if _debugging() and error is not None:
        traceback.print_exception(error)
    field = getattr(error, "field", None)
    context = getattr(error, "ctx", None)
    output.note(f"Error: {message}")
    if context is not None:
        output.note(f"Try '{context.command_path} --help'.")
    if as_json:
        document = {"type": kind, "message": message, **({"field": field} if field else {})}
        with suppress(BrokenPipeError):
            output.emit({"error": document})
            sys.stdout.flush()
    return code


def _unexpected(error: Exception) -> str:
    where = "" if _debugging() else "; run it again with NVR_DEBUG=1 to see where it came from"
    return f"unexpected {type(error).__name__}: {error}{where}"


def _debugging() -> bool:
    return os.environ.get("NVR_DEBUG", "") not in ("", "0")


def _wants_json(arguments: Sequence[str]) -> bool:
    """Known before the command line is understood, since that can fail already."""
    return "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)


def _nobody_reads() -> bool:
    """Whether stdout is a pipe that nobody reads any more, as after `| head`; what is still buffered is let go."""
    try:
        descriptor = sys.__stdout__.fileno() if sys.__stdout__ else -1
        poll = select.poll()
        poll.register(descriptor, 0)
        closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
        if closed:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        return closed
    except (OSError, ValueError):  # not a file at all
        return False
