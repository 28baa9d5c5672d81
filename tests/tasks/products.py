"""Goods of four departments, and the task on three of them: for tests of product category."""

import datetime as dt

from silotune.tasks.product_category import ProductCategory

DAY = dt.timedelta(days=1)
START = dt.datetime.fromisoformat("2024-01-01T09:00")
TASK = ProductCategory(
    first=START,
    split=START + 50 * DAY,
    last=START + 100 * DAY,
    classes=("dairy", "bakery", "drinks"),
    held_out=0.5,
    train_products=99,
    test_products=99,
)
WARES = {
    "Dairy": ("Whole milk", "Skim milk", "Butter", "Quark", "Cream", "Kefir", "Gouda", "Brie"),
    "Bakery": ("Rye bread", "Bun", "Baguette", "Pretzel", "Muffin", "Toast", "Rusk", "Bagel"),
    "Drinks": ("Green tea", "Cola", "Stout", "Lemonade", "Cider", "Espresso", "Tonic", "Juice"),
    "Toys": ("Puzzle", "Doll", "Kite", "Ball", "Robot", "Cards", "Yoyo", "Drum"),
}
ITEMS = [
    (f"{name.lower()}-{size}", f"{name}, {size}", f"{top} > Kind {name[0]}", "Farm", size)
    for top, names in WARES.items()
    for name in names
    for size in ("1 l", "2 l")
]
USERS = ("ann", "bob", "cid", "dot")
