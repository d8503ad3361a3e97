"""The Sphinx extension that writes the generated pages of the reference before Sphinx reads the pages."""

from pathlib import Path

from sphinx.application import Sphinx

from generate import commands, exit_codes, python_api, run_files, settings

PAGES = {
    "settings.md": settings.page,
    "commands.md": commands.page,
    "python.md": python_api.page,
    "exit-codes.md": exit_codes.page,
    "run-files.md": run_files.page,
}
"""The generated pages; Git ignores them."""


def write_pages(app: Sphinx) -> None:
    """Write every page that has changed, so that Sphinx reads only those again."""
    folder = Path(app.srcdir) / "reference"
    for name, page in PAGES.items():
        file, text = folder / name, page()
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
