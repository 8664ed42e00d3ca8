"""HTML pages, from the templates in the folder ``templates`` beside this file."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).with_name('templates')


def render(template_name: str, **values) -> str:
    """The page as text. Templates extend ``base_page.html``, which has the style of all pages.

    Values are escaped, so that ``<`` in a name is shown as such.

    Raises:
        jinja2.TemplateNotFound: there is no template of that name.
        jinja2.UndefinedError: the template uses a value that is not given.
    """
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template_name).render(**values)
