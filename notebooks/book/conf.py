"""Sphinx's settings. The sources are those that build.py has gathered, not the files beside this one."""

import sys
import warnings
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
warnings.filterwarnings("ignore", message=".*Triton.*")

import api  # noqa: E402  # after the path is set

from proofs_check import CLAIMS  # noqa: E402

project = "Attention as Descent"
copyright = "MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
exclude_patterns = ["_build"]
nitpicky = False

html_theme = "furo"
html_title = "Attention as Descent"
html_static_path = [str(HERE / "static")]
html_css_files = ["book.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_search_summary = False  # it would fetch pages, which browsers refuse on a disk
html_last_updated_fmt = None
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "html_image", "attrs_inline"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
nb_execution_mode = "off"  # they were run before
nb_ipywidgets_js = {}  # knobs are drawn beforehand: nothing is fetched
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "forward, training"}
napoleon_google_docstring = False
napoleon_numpy_docstring = False
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
suppress_warnings = ["myst.header", "autosummary", "config.cache"]

IDS = [claim.id for claim in CLAIMS]


def rewrite(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Our docstrings' sections, equations and claims, for autodoc."""
    lines[:] = api.restructured(lines, IDS)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", rewrite)
