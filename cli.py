"""The command `stl-search` from a checkout: `python cli.py --help`."""

from stl_search.cli import main

if __name__ == "__main__":
    main()
