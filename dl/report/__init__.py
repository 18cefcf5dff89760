"""The report of a run: one self-contained HTML file from the folder of the run.

It does not trust the files of the run. This room may import all rooms except `dl.cli`. Read `page` first.
"""

from dl.report.folds import FOLDS, write_folds_report
from dl.report.page import write_report

__all__ = ["FOLDS", "write_folds_report", "write_report"]
