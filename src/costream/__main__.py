"""`python -m costream`: the program."""

from costream.cli import main

if __name__ == "__main__":
    main()
