"""The site builds without warnings, needs no network, and its links and search work."""

import contextlib
import io
import re
import warnings
from urllib.parse import unquote

import pytest
from sphinx.cmd.build import build_main

from hpcdat.config.job_file import read_job
from hpcdat.config.sections import by_name
from tests.conftest import DEMO
from tests.docs.pages import DOCS

ATTACK_EPS = """```{confval} attack.eps
:type: number; at least 0
:default: `8/255`

Radius of the ball, [0, 1] units; may be written 8/255.
```"""
STAGE_KEEP = """```{confval} data.stage_keep
:type: `true` or `false`
:default: `true`

Whether these copies stay when the run has finished.

**May change** when a run resumes.
```"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built in this process, which has imported what the reference is generated from."""
    folder = tmp_path_factory.mktemp("site")
    paths = [str(path) for path in (folder / "doctrees", DOCS, folder / "html")]
    with contextlib.redirect_stderr(io.StringIO()) as said, warnings.catch_warnings():
        # Python shows them to nobody but pytest.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        code = build_main(["-W", "--keep-going", "-q", "-b", "html", "-d", *paths])
    assert (code, said.getvalue()) == (0, "")
    return folder / "html"


def test_no_page_loads_anything_from_the_network(site):
    loaded = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*\"")
    fetched = re.compile(r"(?:url\(|@import )[\"']?(?:https?:)?//")
    remote = {
        f"{file.name}: {match[0]}"
        for pattern, kind in ((loaded, "html"), (fetched, "css"))
        for file in site.rglob(f"*.{kind}")
        for match in pattern.finditer(file.read_text())
    }
    assert not remote


def test_links_lead_somewhere(site):
    ids = {file: set(re.findall(r"\sid=\"([^\"]+)\"", file.read_text())) for file in site.rglob("*.html")}
    assert len(ids) > 30
    broken = set()
    for file in ids:
        for link in re.findall(r"<a [^>]*href=\"([^\"]*)\"", file.read_text()):
            path, _, anchor = unquote(link).partition("#")
            target = (file.parent / path).resolve() if path else file
            if not re.match(r"[a-z]+:", link) and (
                not target.exists() or (anchor and target in ids and anchor not in ids[target])
            ):
                broken.add(f"{file.relative_to(site)}: {link}")
    assert not broken


def test_settings_are_in_the_reference_and_its_search(site):
    page = (site / "reference" / "settings.html").read_text()
    names = by_name(read_job(DEMO))
    assert len(names) > 100
    assert [name for name in names if f'id="confval-{name}"' not in page] == []
    index = (site / "searchindex.js").read_text()
    assert [name for name in names if f'"{name}"' not in index] == []


def test_settings_have_range_default_and_meaning():
    from generate import settings

    page = settings.page()
    assert ATTACK_EPS in page
    assert STAGE_KEEP in page
    assert "**Applies to** `disadv`, `conadv`." in page


def test_a_public_name_without_a_place_is_an_error(monkeypatch):
    from generate import python_api

    monkeypatch.setattr("hpcdat.__all__", [*__import__("hpcdat").__all__, "new"])
    with pytest.raises(ValueError, match=r"public names without a group: \{'new'\}"):
        python_api.page()


def test_a_field_of_the_metrics_without_a_description_is_an_error(monkeypatch):
    from generate import run_files

    monkeypatch.delitem(run_files.EPOCH, "lr")
    with pytest.raises(ValueError, match=r"fields of an epoch's line: \{'lr'\}"):
        run_files.page()
