"""How bandits turn what they think of tasks, or of pools within one, into shares of what comes next."""

from collections.abc import Mapping
from math import exp


def softmax(values: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Shares in proportion to exp(value / temperature)."""
    most = max(values.values())
    weights = {name: exp((value - most) / temperature) for name, value in values.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
