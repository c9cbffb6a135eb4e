"""Run from source: `python main.py`."""

from runner.cli import main

main()
