"""Run from source: `python main.py`."""

from runner.cli.commands import main

main()
