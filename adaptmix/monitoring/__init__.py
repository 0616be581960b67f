"""What a run records of itself, and the page that tells whether it helped."""

from adaptmix.monitoring._page import Page, page
from adaptmix.monitoring._reading import read_runs
from adaptmix.monitoring._record import RunRecord, Series

__all__ = ["Page", "RunRecord", "Series", "page", "read_runs"]
