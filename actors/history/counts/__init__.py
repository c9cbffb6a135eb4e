"""Reading the counts of ended executions: sums over spans of time, of one module or of all."""

from actors.history.counts.reading import by_module, by_start, ended_by_module, ended_in_all, total

__all__ = ["by_module", "by_start", "ended_by_module", "ended_in_all", "total"]
