"""The report of a finished search: a page, pictures, a table. Made from the run folder alone, so it can be made again."""

from search_jobs.report.page import write
from search_jobs.report.run import FinishedRun, read
from search_jobs.report.table import at_other_scales, speed, table

__all__ = ["FinishedRun", "at_other_scales", "read", "speed", "table", "write"]
