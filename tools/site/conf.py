"""Sphinx builds the site by this, from the folder that gather.py makes: see `make docs`."""

import ast
import os
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / 'convnext_dense'

project = 'convnext_dense'
copyright = 'the authors of convnext_dense. Apache-2.0'
release = re.search(r"__version__ = '(.*)'", (PACKAGE / '__init__.py').read_text())[1]
extensions = ['autoapi.extension', 'myst_parser', 'sphinx.ext.napoleon', 'sphinx_copybutton']
include_patterns = ['*.md', 'api/*', 'docs/**', 'configs/*/README.md', 'CHANGELOG.md']

copybutton_selector = 'div:not(.highlight-text) > div.highlight > pre'  # not of what is printed
myst_heading_anchors = 4  # links to headings, as GitHub has them

# The API is read from the source: neither torch nor the package is in this environment.
autoapi_dirs = [str(PACKAGE)]
autoapi_ignore = [f'*/{room}/*' for room in ('commands', 'demo', 'doctor', 'evaluation', 'export')]
autoapi_generate_api_docs = False  # pages/api/ names what is public
autoapi_python_class_content = 'class'
autoapi_options = ['members', 'imported-members', 'show-inheritance']
suppress_warnings = ['autoapi.python_import_resolution']  # of names that no page is about
napoleon_use_ivar = True
napoleon_custom_sections = [('paramwise_cfg', 'params_style')]


def name_what_is_public(app):
    """AutoAPI does not follow imports within ``try``, as those of the package are."""
    objects = app.env.autoapi_all_objects
    for node in ast.walk(ast.parse((PACKAGE / '__init__.py').read_text('utf-8'))):
        if isinstance(node, ast.ImportFrom):
            module = objects[f'convnext_dense.{node.module}']
            children = {child.name: child for child in module.children}
            for alias in node.names:
                objects[f'convnext_dense.{alias.name}'] = children[alias.name]


def setup(app):
    app.connect('builder-inited', name_what_is_public, priority=900)  # after AutoAPI


python_use_unqualified_type_names = True
python_maximum_signature_line_length = 60

html_theme = 'pydata_sphinx_theme'
html_title = 'convnext_dense'
html_static_path = ['static']
html_css_files = ['site.css']
html_show_sourcelink = False
html_sidebars = {'docs/tutorial': [], 'docs/limits': []}  # pages without others below them
html_theme_options = {
    'header_links_before_dropdown': 8,  # as many as a row holds at 1280 pixels
    'navigation_with_keys': False,
    'show_prev_next': False,
    'show_toc_level': 2,
}
# What GitHub tells a workflow, and all_versions.sh. A site that is built elsewhere stands alone.
if repository := os.environ.get('GITHUB_REPOSITORY'):
    html_theme_options['github_url'] = f'https://github.com/{repository}'
if address := os.environ.get('SITE_URL'):
    html_theme_options |= {
        'check_switcher': False,  # the list is there when the pages are
        'navbar_end': ['version-switcher', 'theme-switcher', 'navbar-icon-links'],
        'switcher': {
            'json_url': f'{address.rstrip("/")}/versions.json',
            'version_match': os.environ['SITE_VERSION'],
        },
    }
