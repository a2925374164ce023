"""The command `stl-search` as `python -m stl_search`."""

from stl_search.cli import main

if __name__ == "__main__":
    main()
