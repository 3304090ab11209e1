"""What the templates of this package have alike."""

import jinja2


def environment(*, autoescape: bool) -> jinja2.Environment:
    """Reads this package's templates, and stops at a value that is not given.

    Args:
        autoescape: Whether values are text in HTML.
    """
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("distill.run_report", ""),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters["percent"] = _percent
    return made


def _percent(share: float) -> str:
    return f"{share:.2%}"
