"""Rows and files of benchmarks that were never run."""

from hpcdat.performance.benchmark_file import BenchmarkFile, Row
from hpcdat.report.benchmarks.sections import benchmark_sections

ENVIRONMENT = {
    "packages": {"hpcdat": "0.1.0", "torch": "2.14.1"},
    "git_commit": "0123456789abcdef-dirty",
    "engine": "horovod",
    "command": ["communication.py"],
    "workers": [{"host": f"n{rank}", "device": "EPYC", "threads": 1, "cpus": 2} for rank in range(4)],
}
SETTINGS = {"workers": 4, "nodes": 4, "workers_per_node": 1, "engine": "horovod", "transport": "MPI"}


def row(*seconds, size=1024, figures=None, **parameters):
    known = {"operation": "all-reduce", "by": "hpcdat", "protocol": None, "bits": 32, "two_sided": False}
    return Row(parameters=known | parameters | {"bytes": size}, seconds=seconds, figures=figures or {})


def file_of(*rows, benchmark="communication", environment=None, ratios=None, notes=(), **settings):
    described = ENVIRONMENT | (environment or {})
    return BenchmarkFile.of(benchmark, described, SETTINGS | settings, rows, ratios, notes)


def exchange(protocol, bits=8, *, two_sided=False, **more):
    return {"operation": "exchange", "protocol": protocol, "bits": bits, "two_sided": two_sided} | more


def sections_of(files, slower_by=None):
    found, slower = benchmark_sections(files, slower_by, None)
    return {section.name: section for section in found}, slower


def column(section, heading):
    place = list(section.header).index(heading)
    return [cells[place] for cells in section.rows]
