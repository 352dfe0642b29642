"""A scorer's file as a module. Loaded by scripts inside the sandbox."""

import importlib.util
from types import ModuleType


def load(path: str) -> ModuleType:
    """Run the file. Raises ImportError where it can't be, and whatever it raises itself."""
    spec = importlib.util.spec_from_file_location("handler", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
