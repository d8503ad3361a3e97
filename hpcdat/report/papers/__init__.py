"""The papers' own numbers: tables that reports compare runs with, and their inconsistencies."""

from __future__ import annotations

from hpcdat.report.papers import conadv, dat
from hpcdat.report.papers.paper_table import PaperTable

TABLES: dict[str, PaperTable] = {table.name: table for table in (*dat.TABLES, *conadv.TABLES)}
"""By the names that ``hpcdat report --table`` takes."""
