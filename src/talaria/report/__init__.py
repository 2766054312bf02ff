"""What a run did and what came of it, for people: an offline page, a model card, a comparison of two runs."""

from talaria.report.compare import compare_runs
from talaria.report.page import write_report

__all__ = ["compare_runs", "write_report"]
