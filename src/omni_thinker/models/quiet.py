"""Keep libraries that print on every load from printing."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import transformers
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings from transformers inside; what was set before comes back.

    Standard error is caught as well, because some bars know no switch. Exceptions pass untouched."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
