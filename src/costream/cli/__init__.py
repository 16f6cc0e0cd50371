"""The program `costream`: one file per verb, imported when that verb is used.

Exit codes: 0 done, 1 done with failures listed, 2 refused (nothing was done, or not all of it, and
the message says why). 130 is Ctrl-C, 70 a defect of costream, shown with its traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from costream.cli.output import OutputClosedError, refuse
from costream.errors import ConfigError, CostreamError
from costream.suggest import did_you_mean

VERBS = (
    "index",
    "search",
    "caption",
    "serve",
    "mcp",
    "forget",
    "migrate",
    "train",
    "evaluate",
    "reproduce",
    "models",
    "methods",
    "doctor",
    "demo",
)
# What can be done to an index as a whole: `costream index check`, beside `costream index PATH...`.
INDEX_VERBS = ("copy", "check", "repair", "backup", "restore")

# The parent of all usage errors; typer has moved it between modules, but not out of this place.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_STOPPED = 130
_INDEX_COMMANDS = tuple(f"index {verb}" for verb in INDEX_VERBS)
_INDEX_EPILOG = (
    f"Also: costream index {'|'.join(INDEX_VERBS)}, each with a --help of its own. A folder of "
    "such a name is given as ./NAME."
)
# What to do about errors of the system that nobody was prepared for.
_REMEDIES = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some space, or have the quota raised",
    errno.EFBIG: "have the limit on the size of files raised: ulimit -f",
    errno.EMFILE: "have the limit on open files raised: ulimit -n",
    errno.EACCES: "check the permissions, or name another place",
    errno.EPERM: "check the permissions, or name another place",
    errno.EROFS: "that disk takes no changes: name another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_SETTINGS = {"help_option_names": ["-h", "--help"]}


class _VerbsWhenUsed(TyperGroup):
    """A group that imports the module of a verb when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS and cmd_name not in _INDEX_COMMANDS:
            return None
        module = import_module(f"costream.cli.{cmd_name.replace(' ', '_')}")
        verb = typer.Typer(
            add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
        )
        about = str(module.__doc__)
        # "index" is no name for a function next to a class Index, hence `run` everywhere.
        verb.command(
            name=cmd_name,
            help=about,
            epilog=_INDEX_EPILOG if cmd_name == "index" else None,
            short_help=about.partition(";")[0].rstrip("."),
            no_args_is_help=False,
            context_settings=_SETTINGS,
        )(module.run)
        command = typer.main.get_command(verb)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise CostreamError(
                f"there is no verb {args[0]!r}{did_you_mean(args[0], VERBS)}, "
                f"expected {', '.join(VERBS)}",
                hint="see costream --help",
            )
        if (name := " ".join(args[:2])) in _INDEX_COMMANDS:
            return name, self.get_command(ctx, name), args[2:]
        return super().resolve_command(ctx, args)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"costream {version('costream')}")
        except PackageNotFoundError:
            typer.echo("costream, run from its source without being installed")
        raise typer.Exit


def _application() -> Any:
    application = typer.Typer(
        cls=_VerbsWhenUsed,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=False,
        context_settings=_SETTINGS,
    )

    @application.callback(invoke_without_command=False)
    def costream(
        version: bool = typer.Option(
            False, "--version", callback=_show_version, is_eager=True, help="Show the version."
        ),
    ) -> None:
        """Find pictures by words or by example; train and measure the models that do it.

        Exit codes: 0 done, 1 done with failures listed, 2 refused.
        """

    return typer.main.get_command(application)


def run(arguments: Sequence[str]) -> int:
    """Do what a command line says.

    Args:
        arguments: The words after `costream`.

    Returns:
        The exit code: 0 done, 1 done with failures listed, 2 refused.

    Example:
        >>> run(["models", "--help"])  # doctest: +ELLIPSIS
        Usage: costream models [OPTIONS]...
        0
    """
    as_json = "--json" in arguments
    try:
        _check_surroundings(arguments)
        words = list(arguments) or ["--help"]
        code = _application().main(words, prog_name="costream", standalone_mode=False)
        sys.stdout.flush()
    except CostreamError as error:
        return refuse(type(error).__name__, error.message, error.hint, as_json=as_json)
    except _UsageError as error:
        return refuse("UsageError", *_usage(error, arguments), as_json=as_json)
    except (OutputClosedError, BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != 1:
            raise
        # Who read us has seen enough (`| head`), which typer makes exit code 1 of; keep the
        # interpreter from flushing into the void.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        code = _STOPPED
    except OSError as error:
        return refuse("OSError", _system_error(error), _remedy(error), as_json=as_json)
    if code == _STOPPED:  # typer makes this of Ctrl-C
        hint = "what was stored stays; run it again to go on (train: with --resume)"
        return refuse("Stopped", "stopped by the keyboard", hint, as_json=as_json, code=_STOPPED)
    return int(code or 0) if arguments else 2


def _check_surroundings(arguments: Sequence[str]) -> None:
    """Refuse what would be understood in a way that nobody means."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        raise CostreamError(
            "the current folder is not there any more", hint="cd to another one"
        ) from None
    if "" in arguments:
        # As a path it would be the current folder.
        raise ConfigError(
            f"argument {arguments.index('') + 1} is empty, expected a word",
            hint="is a variable of the shell not set?",
        )


def _usage(error: Exception, arguments: Sequence[str]) -> tuple[str, str]:
    """What was wrong with the words, and where to look."""
    # Every usage error of typer has it; the stable class to say so is not public.
    message = str(error.format_message()).rstrip(".")  # type: ignore[attr-defined]
    verb = f" {arguments[0]}" if arguments and arguments[0] in VERBS else ""
    if (name := " ".join(arguments[:2])) in _INDEX_COMMANDS:
        verb = f" {name}"
    quotes = "put words that belong together into quotes; " if "extra argument" in message else ""
    return message, f"{quotes}see costream{verb} --help"


def _system_error(error: OSError) -> str:
    name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{name}{error.strerror or error}"


def _remedy(error: OSError) -> str:
    return _REMEDIES.get(error.errno or 0, "check that path, and the disk or network it is on")


def main() -> None:
    """Entry point of the program."""
    _open_closed_streams()
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is shown escaped instead of ending the program.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = run(sys.argv[1:])
    except Exception:
        # Python would exit with 1, which says "done with failures listed" here.
        traceback.print_exc()
        code = 70
    sys.exit(code)


def _open_closed_streams() -> None:
    """Lead streams that were closed (`>&-`) to nowhere, or the next file would take their place.

    In this order, for a file that is opened gets the lowest number that is free.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123
