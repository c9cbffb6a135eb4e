"""Benchmark: prints the lines of a benchmark, keeps their numbers per commit, and compares two commits.

Numbers are kept in `tests/benchmarks/results/COMMIT.json`, which git ignores, as those of two machines cannot be
compared. A repeated run adds to them, so that medians and spreads get better.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("results")
Values = dict[str, dict[str, dict[str, list[float]]]]
"""Numbers by benchmark, line and unit."""


class Report:
    """The lines of one benchmark."""

    def __init__(self, file: str) -> None:
        self._name = Path(file).stem.removeprefix("bench_")

    def line(self, what: str, text: str, **measures: float | Sequence[float]) -> None:
        """Print a line and keep its numbers by unit; `ratio` is one that was made within this run."""
        print(f"{what}: {text}", flush=True)
        file = RESULTS / f"{_git('describe', '--always', '--dirty', '--abbrev=12', '--exclude=*')}.json"
        values = _read(file) if file.exists() else {}
        kept = values.setdefault(self._name, {}).setdefault(what, {})
        for unit, found in measures.items():
            kept.setdefault(unit, []).extend(found if isinstance(found, Sequence) else [found])
        RESULTS.mkdir(exist_ok=True)
        file.write_text(json.dumps(values, indent=1))


def compare(base: str, head: str) -> Iterator[str]:
    """Yield a line for each number that both commits have: both medians, their ratio, and its least and greatest.

    Raises SystemExit where a commit has no numbers.
    """
    old, new = _of(base), _of(head)
    yield f"{'':60}{'base':>12}{'head':>12}{'ratio':>8}  least to greatest"
    for benchmark, lines in old.items():
        for what, units in lines.items():
            for unit, before in units.items():
                after = new.get(benchmark, {}).get(what, {}).get(unit)
                if after and min(before) > 0:
                    was, now = statistics.median(before), statistics.median(after)
                    spread = f"{min(after) / max(before):.2f} to {max(after) / min(before):.2f}"
                    name = f"{benchmark}: {what} ({unit})"
                    yield f"{name:60}{was:12,.2f}{now:12,.2f}{now / was:8.2f}  {spread}"


def _of(revision: str) -> Values:
    file = RESULTS / f"{revision}.json"
    if not file.exists():
        file = RESULTS / f"{_git('rev-parse', '--short=12', revision)}.json"
    if not file.exists():
        known = ", ".join(sorted(path.stem for path in RESULTS.glob("*.json"))) or "none"
        raise SystemExit(f"error: no results of {revision}: check it out and run `make bench`; there are: {known}")
    return _read(file)


def _read(file: Path) -> Values:
    values: Values = json.loads(file.read_text())
    return values


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: git: {done.stderr.strip()}")
    return done.stdout.strip()
