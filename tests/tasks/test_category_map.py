"""A merchant's own categories and the public classes: what is mapped, what stays, what is wrong."""

import dataclasses

import pytest

from client.prepared import load_or_prepare
from silotune.errors import ConfigError, DataError
from silotune.models.text_model import ModelConfig, TextModel
from tests.tasks.products import ITEMS, TASK, WARES


@pytest.fixture
def mapped(shop):
    """Return a silo of everything twice, and a function that gives it a mapping file."""
    events = [shop.bought("ann", item, day, f"{day}") for item, *_ in ITEMS for day in (1, 60)]
    silo = shop.silo_of(events, [], ITEMS)

    def write(text):
        path = silo.path / "tasks" / "product-category.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return silo

    return write


def classes_of(task, silo):
    return {r["item_id"].split("-")[0]: r["class"] for r in task.catalogue(silo)}


def test_the_longest_path_of_the_merchants_own_mapping_decides(mapped):
    silo = mapped(
        'local = ["Drinks > Kind C"]\n[categories]\n"Drinks" = "bakery"\n'
        '"Drinks > Kind E" = "dairy"\n"Toys > Kind K" = "drinks"\n'
    )
    expected = dict.fromkeys((n.lower() for some in WARES.values() for n in some), None)
    expected |= dict.fromkeys(("green tea", "stout", "lemonade", "tonic", "juice"), "bakery")
    expected |= {"espresso": "dairy", "kite": "drinks"}
    assert classes_of(TASK, silo) == expected
    examples = TASK.build(silo)
    kept = {name: public for name, public in expected.items() if public}
    labels = TASK.objective.outcomes(examples.label_EK)["label"]
    assert dict(zip(examples.group, labels, strict=True)) == kept
    # Of all public classes, whichever the merchant has.
    assert examples.label_EK.shape[1] == 3


def test_without_a_mapping_names_at_the_level_are_the_classes(mapped):
    silo = mapped("")
    with pytest.raises(DataError, match=r"0 of 64 products are mapped\. Map own categories in .*t"):
        TASK.build(silo)
    (silo.path / "tasks" / "product-category.toml").unlink()
    found = classes_of(TASK, silo)
    assert (found["quark"], found["bun"], found["puzzle"]) == ("dairy", "bakery", None)
    deep = dataclasses.replace(TASK, category_level=2, classes=("kind q", "Kind B", "toys"))
    found = classes_of(deep, silo)
    assert (found["quark"], found["bun"], found["brie"]) == ("kind q", "Kind B", "Kind B")
    assert found["puzzle"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[categories]\n"Dairy" = "dary"', r"'Dairy' is 'dary'.*did you mean 'dairy'"),
        ('[categories]\n"Dairy" = "x"', r"'Dairy' is 'x'.*known classes: dairy, bakery, drinks"),
        ('[categories]\n"Diary" = "dairy"', r"\[categories\] holds 'Diary'.*mean 'Dairy'"),
        ('local = ["Dairy > Kind"]', r"local holds 'Dairy > Kind', which no category in items"),
        ('local = ["Toys"]\n[categories]\n"Toys" = "dairy"', "local holds 'Toys', which"),
        ("[categories]\nDairy = 3", "'categories.Dairy' is 3"),
        ("[category]\nDairy = 3", "unknown key 'category'; did you mean 'categories'"),
        ("[categories", "not valid TOML"),
    ],
)
def test_what_is_wrong_in_a_mapping_is_named_with_file_and_key(mapped, text, message):
    silo = mapped(text)
    for use in (TASK.build, TASK.catalogue):
        with pytest.raises(ConfigError, match=rf"tasks/product-category\.toml: .*{message}"):
            use(silo)


def test_another_mapping_is_another_cache(mapped):
    silo = mapped('[categories]\n"Dairy" = "dairy"\n"Bakery" = "bakery"')
    model = TextModel(ModelConfig(use_text=False), numeric_size=4, outputs=3)

    def labels():
        return load_or_prepare(silo, TASK, model).examples.label_EK.sum(0).astype(int).tolist()

    assert labels() == [8, 8, 0]
    mapped('[categories]\n"Dairy" = "drinks"\n"Bakery" = "bakery"')
    assert labels() == [0, 8, 8]


def test_merchants_without_a_mapping_may_hold_some_classes_each_others(mapped):
    silo = mapped("")
    mapping = silo.path / "tasks" / "product-category.toml"
    mapping.unlink()
    task = dataclasses.replace(TASK, classes_held=2)
    held = set()
    for name in "abcdefgh":
        named = dataclasses.replace(silo, info=dataclasses.replace(silo.info, name=name))
        own = frozenset(classes_of(task, named).values()) - {None}
        assert len(own) == 2
        assert own == frozenset(classes_of(dataclasses.replace(task, seed=3), named).values()) - {
            None
        }
        held.add(own)
    assert len(held) == 3
    mapping.write_text('[categories]\n"Dairy" = "dairy"\n"Bakery" = "bakery"\n"Drinks" = "drinks"')
    assert set(classes_of(task, silo).values()) == {"dairy", "bakery", "drinks", None}
