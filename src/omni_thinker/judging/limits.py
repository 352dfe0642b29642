"""What judging may cost: requests, tokens and money, counted as they are spent."""

import threading
from dataclasses import dataclass, replace

from omni_thinker.recipe import BudgetSpec, PriceSpec


class BudgetReached(Exception):
    """One more request could go over the budget."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Cost so far. `money` in the currency of the price table."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    money: float = 0.0


class Meter:
    """Counts what is spent, and refuses requests that could go over the budget.

    A request in flight is counted as its estimate, so that concurrent ones can't pass the limit together. One whose
    reply never arrived keeps its estimate against the budget (the server may have worked on it), but isn't counted as
    spent."""

    def __init__(self, budget: BudgetSpec, price: PriceSpec) -> None:
        self.budget, self.price = budget, price
        self._lock = threading.Lock()
        self._spent = Usage()
        self._reserved: dict[int, tuple[int, int]] = {}
        self._lost = (0, 0)
        self._next = 0
        self.reached = False

    def reserve(self, input_tokens: int, output_tokens: int) -> int:
        """A number for `settle` or `release`. Tokens are upper estimates. Raises BudgetReached."""
        with self._lock:
            pending_in = sum(reserved[0] for reserved in self._reserved.values()) + self._lost[0] + input_tokens
            pending_out = sum(reserved[1] for reserved in self._reserved.values()) + self._lost[1] + output_tokens
            spent, budget = self._spent, self.budget
            tokens = spent.input_tokens + spent.output_tokens + pending_in + pending_out
            money = spent.money + self._money(pending_in, pending_out)
            over = [
                budget.requests is not None and spent.requests + 1 > budget.requests,
                budget.tokens is not None and tokens > budget.tokens,
                budget.money is not None and money > budget.money + 1e-12,
            ]
            if any(over):
                self.reached = True
                raise BudgetReached("the judge's budget is spent")
            self._next += 1
            self._reserved[self._next] = (input_tokens, output_tokens)
            self._spent = replace(spent, requests=spent.requests + 1)
            return self._next

    def settle(self, number: int, input_tokens: int, output_tokens: int) -> None:
        """The request's reply has arrived and says what it used."""
        with self._lock:
            del self._reserved[number]
            money = self._spent.money + self._money(input_tokens, output_tokens)
            tokens = self._spent.input_tokens + input_tokens, self._spent.output_tokens + output_tokens
            self._spent = Usage(self._spent.requests, *tokens, money)

    def release(self, number: int, *, lost: bool, sent: bool = True) -> None:
        """The request has failed. `lost`: nobody knows whether it was worked on. Not `sent`: it never got there."""
        with self._lock:
            tokens = self._reserved.pop(number)
            if not sent:
                self._spent = replace(self._spent, requests=self._spent.requests - 1)
            elif lost:
                self._lost = (self._lost[0] + tokens[0], self._lost[1] + tokens[1])

    @property
    def usage(self) -> Usage:
        with self._lock:
            return self._spent

    def restore(self, spent: Usage) -> None:
        """Count on from what an earlier process has spent."""
        with self._lock:
            self._spent = spent

    def _money(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * self.price.input + output_tokens * self.price.output) / 1e6
