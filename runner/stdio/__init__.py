"""Standard input and output as lines, for commands that speak a protocol there; output of anything else is kept out."""

from runner.stdio.lines import Lines, standard_lines

__all__ = ["Lines", "standard_lines"]
