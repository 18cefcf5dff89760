"""The report of a run: one HTML file from the run's folder, to be read, kept and sent."""

from dl.report.folds import FOLDS, write_folds_report
from dl.report.page import write_report

__all__ = ["FOLDS", "write_folds_report", "write_report"]
