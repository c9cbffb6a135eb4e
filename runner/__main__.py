"""Run as a module: `python -m runner`."""

from runner.cli import main

main()
