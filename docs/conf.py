"""The site of the documentation: `make docs` builds it from the pages in this folder."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import conr_ray  # noqa: E402

project = "conr_ray"
author = "the authors of conr_ray"
version = release = conr_ray.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "tools.site_parts",
]
exclude_patterns = ["figures"]
nitpicky = False

# Pages are read on GitHub too: their links are between files, with the anchors of headings.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

# Two hyphens begin an option.
smartquotes = False

# Docstrings name code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Nothing is fetched from elsewhere when a page is opened: browsers draw MathML themselves.
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "conr_ray"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_copy_source = False
# Excerpts would be fetched, which browsers deny to pages that are files.
html_show_search_summary = False
html_show_sourcelink = False
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
