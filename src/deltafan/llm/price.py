"""What tokens cost."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final

Number = Decimal | float | str

_MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True, init=False)
class Price:
    """US dollars per million tokens, as providers publish them. `None` is unknown, which 0 is not.

    :raises ValueError: a price is not a number of 0 or more.
    """

    input: Decimal | None
    output: Decimal | None
    """Reasoning tokens are output tokens."""
    cached: Decimal | None
    """Input that the provider had in its cache. Without it, cached tokens cost what others do."""

    def __init__(self, input: Number | None = None, output: Number | None = None, cached: Number | None = None) -> None:  # noqa: A002 - what providers call it
        for name, value in (("input", input), ("output", output), ("cached", cached)):
            object.__setattr__(self, name, None if value is None else _amount(name, value))

    def cost(self, *, prompt: int, cached: int, completion: int) -> Decimal | None:
        """US dollars. `None` where tokens were used whose price is not known.

        :param cached: of `prompt`.
        """
        total = Decimal(0)
        cached_price = self.input if self.cached is None else self.cached
        for count, price in ((prompt - cached, self.input), (cached, cached_price), (completion, self.output)):
            if count and price is None:
                return None
            total += count * (price or Decimal(0))
        return total / _MILLION

    @property
    def input_per_token(self) -> float | None:
        """US dollars."""
        return _per_token(self.input)

    @property
    def output_per_token(self) -> float | None:
        """US dollars."""
        return _per_token(self.output)

    @property
    def cached_per_token(self) -> float | None:
        """US dollars."""
        return _per_token(self.cached)


def _amount(name: str, value: Number) -> Decimal:
    try:
        amount = Decimal(str(value))  # of a float, the number that was written
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"price: {name} must be a number of 0 or more, in US dollars per million tokens")
    return amount


def _per_token(price: Decimal | None) -> float | None:
    return None if price is None else float(price / _MILLION)
