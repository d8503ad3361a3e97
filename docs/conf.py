"""Settings of Sphinx for `make docs`: Markdown pages and a reference generated from the code."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import hpcdat  # noqa: E402  (the package of this checkout)

project = "hpcdat"
author = "The hpcdat authors"
version = release = hpcdat.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "generate.extension",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "generate", "pictures"]

myst_enable_extensions = ["attrs_inline", "deflist"]
myst_heading_anchors = 4

# Code blocks without a language are commands, jobs and outputs; a wrong guess would colour them at random.
highlight_language = "none"
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "hpcdat"
html_static_path = ["static"]
html_css_files = ["hpcdat.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
