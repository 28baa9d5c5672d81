"""Customers in plain words: right by hand, and customers of nobody over the whole range."""

import numpy as np
import pytest

from silotune.tasks.base import DescribesCustomers
from silotune.tasks.customer_traits import traits_of
from silotune.tasks.customer_words import made_up_rows, public_texts
from silotune.tasks.customers import CustomerChurn, CustomerSegment
from tests.client.scoring import SPAN

ROW = {
    "user_id": "u",
    "weeks_since": 1.0,
    "visits_12": 12,
    "visits_4": 4,
    "spend_12": 240.0,
    "deal_share": 0.5,
    "coupon_share": 0.0,
    "tenure": 30.0,
    "usual": ["milk", "bread"],
}


@pytest.mark.parametrize(
    ("change", "trait", "band"),
    [
        ({}, "last visit", "one to two weeks ago"),
        ({"weeks_since": 0.9}, "last visit", "within a week"),
        ({"weeks_since": 9.0}, "last visit", "more than four weeks ago"),
        ({}, "visits", "about weekly"),
        ({"visits_12": 2}, "visits", "less than once a month"),
        ({}, "visits lately", "as before"),
        ({"visits_4": 0, "visits_12": 0}, "visits lately", "fewer"),
        ({"visits_4": 8}, "visits lately", "more"),
        ({}, "spend a week", "20 to 45"),
        ({"spend_12": -3.0}, "spend a week", "under 2"),
        ({"spend_12": 1080.0}, "spend a week", "90 or more"),
        ({}, "purchases at a discount", "half or more"),
        ({"deal_share": 0.0}, "purchases at a discount", "under a tenth"),
        ({}, "coupons", "hardly ever"),
        ({"coupon_share": 0.1}, "coupons", "used"),
        ({}, "customer for", "more than half a year"),
    ],
)
def test_a_band_is_as_worked_out_by_hand(change, trait, band):
    found = traits_of([ROW | change])
    assert found.words[trait] == [band]
    assert found.habits == [["milk", "bread"]]


@pytest.mark.parametrize("kind", [CustomerChurn, CustomerSegment])
def test_made_up_customers_are_whole_and_in_range(kind):
    task = kind(**SPAN, horizon_days=7)
    assert isinstance(task, DescribesCustomers)
    made = task.made_up()
    assert made.text == public_texts() == task.public_texts()
    assert made.numeric_EF.shape == (len(made_up_rows()), len(task.numeric_names))
    assert (made.numeric_EF >= 0).all()
    assert (made.numeric_EF <= 1).all()
    # Every feature takes several values: a space of them has every axis.
    assert all(len(np.unique(column)) >= 4 for column in made.numeric_EF.T)
