"""The command line. Exit codes: 0 done, 1 it failed, 2 a flag or a setting is wrong, 130 Ctrl-C."""

from deltafan.cli.app import main

__all__ = ["main"]
