"""The canonical tables of a merchant, as typed definitions.

Four tables: what customers did (`EVENTS`), what is sold (`ITEMS`), what is promoted
(`PROMOTIONS`) and, optionally, who the customers are (`USERS`). Readers, checks, the silo
folder and every generator use these definitions and nothing else. The silo folder keeps what
customers gave as ratings in a table of its own (`RATINGS`).
"""

from dataclasses import dataclass, replace
from typing import Literal

__all__ = [
    "CAMPAIGNS",
    "EVENTS",
    "EVENT_KINDS",
    "ITEMS",
    "PROMOTIONS",
    "RATE",
    "RATINGS",
    "STORED",
    "TABLES",
    "USERS",
    "Column",
    "Table",
]

Kind = Literal["text", "number", "time"]

RATE = "rate"
EVENT_KINDS = ("view", "click", "cart", "purchase", "redeem", RATE)
"""What a customer can do with an item. `redeem` is a purchase paid with a coupon; `rate` says
what they think of it, wherever they are: it is no visit."""

CAMPAIGNS = "campaigns"
"""Column of `USERS` that says what a customer was sent; every other one says what they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column: its type, whether it must be there, and which values are allowed."""

    name: str
    kind: Kind
    """`text`: VARCHAR; `number`: DOUBLE; `time`: TIMESTAMP without zone, in UTC."""
    meaning: str
    required: bool = True
    """The column must be there and hold no empty value."""
    minimum: float | None = None
    maximum: float | None = None
    allowed: tuple[str, ...] = ()

    @property
    def sql_type(self) -> str:
        """Type of the column in DuckDB."""
        return {"text": "VARCHAR", "number": "DOUBLE", "time": "TIMESTAMP"}[self.kind]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One table: its columns, its key, and whether other columns may stand beside them."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    """Columns whose values must be unique together; empty: no key."""
    required: bool = True
    extra_text_columns: bool = False
    """Further columns are kept, as text (attributes of a user)."""

    def column(self, name: str) -> Column:
        """Return the column called ``name``. Raises KeyError."""
        return next(c for c in self.columns if c.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the defined columns, in order."""
        return tuple(c.name for c in self.columns)


EVENTS = Table(
    name="events",
    columns=(
        Column(name="user_id", kind="text", meaning="customer; a keyed hash once imported"),
        Column(name="item_id", kind="text", meaning="item of the `items` table"),
        Column(name="kind", kind="text", meaning="what was done", allowed=EVENT_KINDS),
        Column(name="time", kind="time", meaning="when, UTC"),
        Column(
            name="visit_id",
            kind="text",
            meaning="basket or session; where empty, a user's day is a visit",
            required=False,
        ),
        Column(
            name="quantity",
            kind="number",
            meaning="units; empty for views and clicks",
            required=False,
            minimum=0,
        ),
        Column(
            name="price",
            kind="number",
            meaning="list price of one unit, before any discount",
            required=False,
            minimum=0,
        ),
        Column(
            name="discount",
            kind="number",
            meaning="money off one unit, at most `price`",
            required=False,
            minimum=0,
        ),
        # Any scale, down to thumbs of -1 and 1: its ends are those of the task that reads it.
        Column(
            name="rating",
            kind="number",
            meaning="what a `rate` event gives the item; empty for every other kind",
            required=False,
        ),
    ),
)

ITEMS = Table(
    name="items",
    columns=(
        Column(name="item_id", kind="text", meaning="the merchant's own id"),
        Column(name="title", kind="text", meaning="what a customer reads"),
        Column(
            name="category",
            kind="text",
            meaning="path from wide to narrow, levels separated by ' > '",
        ),
        Column(name="brand", kind="text", meaning="brand", required=False),
        Column(name="size", kind="text", meaning="package size, as printed", required=False),
    ),
    key=("item_id",),
)

PROMOTIONS = Table(
    name="promotions",
    columns=(
        Column(
            name="item_id",
            kind="text",
            meaning="promoted item; empty where a whole category is promoted",
            required=False,
        ),
        Column(
            name="category",
            kind="text",
            meaning="promoted category path (or a prefix of it); empty where an item is",
            required=False,
        ),
        Column(name="start", kind="time", meaning="first moment, UTC"),
        Column(name="end", kind="time", meaning="first moment after it, UTC; later than `start`"),
        Column(name="placement", kind="text", meaning="where: shelf, page, slot", required=False),
        Column(
            name="mechanic",
            kind="text",
            meaning="how: display, mailer, coupon, price cut, bundle; campaign: only for the "
            "customers whose `campaigns` in `users` name its placement",
            required=False,
        ),
        Column(
            name="depth",
            kind="number",
            meaning="share of the list price taken off; empty where unknown",
            required=False,
            minimum=0,
            maximum=1,
        ),
    ),
)

USERS = Table(
    name="users",
    columns=(Column(name="user_id", kind="text", meaning="customer, as in `events`"),),
    key=("user_id",),
    required=False,
    extra_text_columns=True,
)

RATINGS = Table(
    name="ratings",
    columns=(
        *(EVENTS.column(name) for name in ("user_id", "item_id", "time")),
        Column(name="rating", kind="number", meaning="on the merchant's own scale"),
    ),
    required=False,
)

TABLES = (EVENTS, ITEMS, PROMOTIONS, USERS)
"""What a merchant has."""

STORED = (
    replace(EVENTS, columns=tuple(c for c in EVENTS.columns if c.name != "rating")),
    *(ITEMS, PROMOTIONS, USERS, RATINGS),
)
"""What a silo folder holds. Ratings lie apart, so that no count of visits or purchases, old or
new, ever meets one."""
