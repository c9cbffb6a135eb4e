"""Example of a `venv` module: it has a requirement of its own and an isolated environment."""

import statistics

from tabulate import tabulate


def handler(input, context):  # noqa: A002, ANN001, ANN201
    """Return what can be said of `{"values": [numbers]}`, and the same as a table."""
    values = [float(value) for value in input["values"]]
    context.progress(1, 2, "parsed")
    summary = {
        "count": len(values),
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "spread": statistics.pstdev(values),
    }
    print(tabulate(summary.items(), headers=["what", "value"]))  # noqa: T201
    return summary
