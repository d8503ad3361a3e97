"""The page of exit codes, from their definition."""

from sphinx.pycode import ModuleAnalyzer

from hpcdat.errors import Exit

HEAD = """# Exit codes

Every command ends with one of these.

| code | meaning |
|---|---|
"""
TAIL = """
Under torchrun the exit code is torchrun's own, 1, whatever that of the workers was
([engines](../how-it-works/engines.md)). `hpcdat box run` and `hpcdat box login` end with the code of the
command that they run. A batch script of `hpcdat submit` finds the code in the run's folder, and puts the job
back into the queue after 75 and after a failure, unless the run ends twice at the same step
([failures](../how-it-works/failures.md)).
"""


def page() -> str:
    """The page, in Markdown."""
    documented = ModuleAnalyzer.for_module("hpcdat.errors").find_attr_docs()
    rows = [f"| {code.value} | {' '.join(documented['Exit', code.name])} |\n" for code in Exit]
    return HEAD + "".join(row.replace("  |", " |") for row in rows) + TAIL
