"""The report of a run: one HTML file from the run's folder, to be read, kept and sent."""

from dl.report.page import write_report

__all__ = ["write_report"]
