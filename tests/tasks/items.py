"""A task of few candidates, and whom it asks about what: for tests of item interest."""

import datetime as dt

from silotune.tasks.item_interest import ItemInterest

DAY = dt.timedelta(days=1)
START = dt.datetime.fromisoformat("2024-01-01T09:00")
TASK = ItemInterest(
    first=START,
    split=START + 56 * DAY,
    last=START + 112 * DAY,
    active_days=28,
    train_dates=99,
    test_dates=99,
    habits=2,
    slate=4,
    train_candidates=99,
)
USERS = ("ann", "bob", "cid", "dot", "eva")


def asked(shop, task, silo):
    """Return {(user, day of the date, candidate): index of the example}, in their order."""
    names = {shop.user(u): u for u in USERS}
    rows = task._rows(silo)
    found = {
        (names[r["user_id"]], (r["date"] - START) // DAY, r["thing"]): i for i, r in enumerate(rows)
    }
    assert len(found) == len(rows)
    return found
