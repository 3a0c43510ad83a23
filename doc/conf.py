# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""Configuration of Sphinx; `bin/docs` builds the pages."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

project = "meas_maskrcnn"
author = "The meas_maskrcnn developers"
copyright = author
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_nb",
    "reference_directives",
]
default_role = "obj"
exclude_patterns = ["_build", "changes"]
nb_execution_mode = "off"
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_use_index = False
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
numpydoc_show_class_members = False
# Members that upstream's classes document in their own way, and the Markdown of notebooks.
suppress_warnings = ["ref.python", "mystnb.unknown_mime_type"]
