"""The papers of the project: licence, citation, version, and what the distributions hold."""

import subprocess
import sys

import pytest
import yaml

import hpcdat
from tests.conftest import CHECKOUT, run_here


def test_the_version_is_that_of_the_package():
    done = run_here("--version")
    assert (done.returncode, done.stdout) == (0, f"hpcdat {hpcdat.__version__}\n")
    command = [sys.executable, "setup.py", "--quiet", "--version", "--license"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.stdout.split()[-2:] == [hpcdat.__version__, "Apache-2.0"], done.stderr


def test_the_citation_names_the_software_and_both_papers():
    """With the keys that the Citation File Format 1.2.0 requires."""
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["type"] == "software"
    assert citation["license"] == "Apache-2.0" and citation["authors"] == [{"name": "The hpcdat authors"}]
    papers = {paper["title"]: paper for paper in citation["references"]}
    assert sorted(papers) == [
        "Concurrent Adversarial Learning for Large-Batch Training",
        "Distributed Adversarial Training to Robustify Deep Neural Networks at Scale",
    ]
    for work in [citation, *papers.values()]:
        assert {"title", "authors", "type"} <= work.keys()
    people = [person for paper in papers.values() for person in paper["authors"]]
    assert len(people) == 15 and all(person.keys() == {"given-names", "family-names"} for person in people)


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_template_has_what_a_forge_reads(name):
    text = (CHECKOUT / ".github" / "ISSUE_TEMPLATE" / f"{name}.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert {"name", "about"} <= yaml.safe_load(head).keys()
    if name == "bug":
        assert "hpcdat doctor" in body and "environment.json" in body
