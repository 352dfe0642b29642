"""The date that chat templates print.

Templates ask transformers for today's date by `strftime_now`. A run that is resumed on another day would then have
other prompts. transformers makes text of every argument of a template, functions included, so the date can't be handed
over. It is written into the template instead, as a macro of that name."""

import re
from datetime import date, datetime, time

NAME = "strftime_now"
_DIRECTIVE = re.compile(r"%[-_0^#]?[A-Za-z]")


def today() -> str:
    """As YYYY-MM-DD."""
    return date.today().isoformat()


def with_date(template: str, day: str, options: str = "") -> str:
    """The template, for which it is midnight of `day` (YYYY-MM-DD); unchanged where it doesn't ask for the date.
    `options`: a text that holds formats which come from elsewhere."""
    if NAME not in template:
        return template
    moment = datetime.combine(date.fromisoformat(day), time())
    directives = sorted({*_DIRECTIVE.findall(template + options)}, key=lambda found: (-len(found), found))
    known = [(directive, moment.strftime(directive)) for directive in directives]
    filters = "".join(f" | replace({directive!r}, {text!r})" for directive, text in [*known, ("%%", "%")])
    # On a line of its own, whose end Jinja takes away: the template begins at the beginning of a line, as before.
    return f"{{% macro {NAME}(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n{template}"
