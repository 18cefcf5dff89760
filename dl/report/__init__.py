"""The report of a run: one HTML file from the run's folder, to be read, kept and sent.

It reads what a run left, without trust, and imports everything but `dl.cli`. Read `page` first.
"""

from dl.report.folds import FOLDS, write_folds_report
from dl.report.page import write_report

__all__ = ["FOLDS", "write_folds_report", "write_report"]
