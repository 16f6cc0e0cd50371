"""The program `costream`, also as `python -m costream`."""

import signal


def main() -> None:
    """Run the program."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Ctrl-C before anything was begun needs no traceback of half an import.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    from costream.cli import main as run_and_exit

    run_and_exit()


if __name__ == "__main__":
    main()
