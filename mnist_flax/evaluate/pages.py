"""Self-contained HTML pages in one style, from the templates and scripts in `assets/`."""

from pathlib import Path

import jinja2

ASSETS = Path(__file__).with_name("assets")


def render_page(template: str, **values: object) -> str:
    """A page of a template in `assets/`, which may include the styles and scripts there."""
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(ASSETS),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(values)
