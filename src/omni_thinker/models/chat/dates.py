"""The date that chat templates print.

Templates ask transformers for today's date by `strftime_now`. A run that is resumed on another day would then have
other prompts. transformers makes text of every argument of a template, functions included, so the date can't be handed
over. It is written into the template instead, as a macro of that name."""

from contextlib import suppress
from datetime import date, datetime, time

NAME = "strftime_now"
_LETTERS = "aAbBcdDeFgGhHIjklmMpPrRsSTuUVwWxXyYzZ"
_FLAGS = ("", "-", "_", "0")


def today() -> str:
    """As YYYY-MM-DD."""
    return date.today().isoformat()


def with_date(template: str, day: str) -> str:
    """The template, for which it is midnight of `day` (YYYY-MM-DD); unchanged where it doesn't ask for the date."""
    if NAME not in template:
        return template
    moment = datetime.combine(date.fromisoformat(day), time())
    filters = ""
    for directive in (f"%{flag}{letter}" for flag in _FLAGS for letter in _LETTERS):
        with suppress(ValueError):  # not every system knows every directive
            filters += f" | replace('{directive}', '{moment.strftime(directive)}')"
    filters += " | replace('%%', '%')"
    # On a line of its own, whose end Jinja takes away: the template begins at the beginning of a line, as before.
    return f"{{% macro {NAME}(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n{template}"
