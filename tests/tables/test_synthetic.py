from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from silotune.errors import ConfigError, DataError
from silotune.tables import synthetic
from silotune.tables.keyed_hash import hash_id
from silotune.tables.schema import EVENT_KINDS, PROMOTIONS
from silotune.tables.silo_folder import SiloFolder, list_silos
from silotune.tables.synthetic import SyntheticConfig, generate, raw_user_id
from silotune.tables.synthetic_events import KINDS, PURCHASE, REDEEM, simulate
from silotune.tables.synthetic_words import CATEGORIES
from silotune.tables.synthetic_world import (
    generator,
    make_catalogue,
    make_merchant,
    people_of,
)

SMALL = SyntheticConfig(merchants=3, users_per_merchant=40, items=60, categories=10, weeks=8)
WORLD = SyntheticConfig(merchants=1, users_per_merchant=1000, visits_per_user=30, weeks=30)


def bought(settings, people_change=None):
    """Return catalogue, merchant, people and purchases of one merchant."""
    catalogue = make_catalogue(settings)
    merchant = make_merchant(settings, catalogue, 0)
    people = next(people_of(settings, catalogue, 0))
    if people_change:
        people = replace(people, **people_change(people))
    events = simulate(settings, catalogue, merchant, people, generator(settings, "test"))
    paid = (events.kind_R == PURCHASE) | (events.kind_R == REDEEM)
    return catalogue, merchant, people, events, paid


def files(folder):
    return {p.relative_to(folder): p for p in sorted(folder.glob("*/*.parquet"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "silos"
    generate(SMALL, out, seeded_keys=True)
    return out


def test_the_same_seed_gives_the_same_tables(folder, tmp_path):
    steps = []
    generate(SMALL, tmp_path / "b", lambda *step: steps.append(step), seeded_keys=True)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    ours, theirs = files(folder), files(tmp_path / "b")
    assert list(ours) == list(theirs)
    assert all(pq.read_table(ours[p]).equals(pq.read_table(theirs[p])) for p in ours)


def test_another_seed_gives_other_tables(folder, tmp_path):
    generate(replace(SMALL, seed=1), tmp_path / "b", seeded_keys=True)
    ours, theirs = files(folder), files(tmp_path / "b")
    assert not any(pq.read_table(ours[p]).equals(pq.read_table(theirs[p])) for p in ours)


def test_keys_are_random_unless_seeded(folder, tmp_path):
    generate(SMALL, tmp_path / "b")
    for silo in list_silos(tmp_path / "b"):
        assert (silo.path / "user.key").read_bytes() != (
            folder / silo.info.name / "user.key"
        ).read_bytes()


def test_silos_hold_every_kind_of_event_within_the_schemas_bounds(folder):
    names = [silo.info.name for silo in list_silos(folder)]
    assert names == ["merchant-0001", "merchant-0002", "merchant-0003"]
    assert set(KINDS) == set(EVENT_KINDS)
    for name in names:
        with SiloFolder.open(folder / name).connect() as con:
            [(kinds, odd_looks, odd_sales, early, late, orphans)] = con.execute(
                "SELECT count(DISTINCT kind), "
                "count(*) FILTER (kind IN ('view','click','cart') AND quantity IS NOT NULL), "
                "count(*) FILTER (kind IN ('purchase','redeem') AND "
                "  (price > 0 AND quantity >= 1 AND discount BETWEEN 0 AND price) IS NOT TRUE), "
                "min(time), max(time), "
                "count(*) FILTER (item_id NOT IN (SELECT item_id FROM items)) FROM events"
            ).fetchall()
            depths = con.execute("SELECT min(depth), max(depth) FROM promotions").fetchall()
            halves = con.execute(
                "SELECT count(*) FILTER ((item_id IS NULL) = (category IS NULL)) FROM promotions"
            ).fetchall()
        assert (kinds, odd_looks, odd_sales, orphans) == (5, 0, 0, 0)
        assert synthetic.START <= early < late
        assert (late - synthetic.START).days < 7 * SMALL.weeks
        depth = PROMOTIONS.column("depth")
        assert depth.minimum < depths[0][0] < depths[0][1] < depth.maximum
        assert halves == [(0,)]


def test_the_declared_share_of_users_shops_at_another_merchant(tmp_path):
    settings = replace(SMALL, overlap=0.3)
    generate(settings, tmp_path / "a", seeded_keys=True)
    people = [set() for _ in range(3)]
    for found, silo in zip(people, list_silos(tmp_path / "a"), strict=True):
        key = (silo.path / "user.key").read_bytes()
        known = {hash_id(raw_user_id(n), key=key): n for n in range(3 * 40)}
        found |= {
            known[u] for u in pq.read_table(silo.path / "users.parquet")["user_id"].to_pylist()
        }
    for number, own in enumerate(people):
        others = set().union(*(p for i, p in enumerate(people) if i != number))
        assert len(own) == 40
        assert len(own & others) == 0.3 * 40


def test_a_person_is_the_same_at_both_merchants():
    catalogue = make_catalogue(SMALL)
    blocks = [next(people_of(SMALL, catalogue, 0)), list(people_of(SMALL, catalogue, 1))[1]]
    first, second = (dict(zip(b.number_U, b.taste_UC, strict=True)) for b in blocks)
    shared = first.keys() & second.keys()
    assert len(shared) == SMALL.shared == 4
    assert all(np.array_equal(first[n], second[n]) for n in shared)


def test_one_merchant_has_nobody_to_share_users_with():
    settings = replace(SMALL, merchants=1, overlap=1.0)
    people = list(people_of(settings, make_catalogue(settings), 0))
    assert sum(len(block.number_U) for block in people) == 40


@pytest.mark.parametrize(("heterogeneity", "common"), [(0.0, 1.0), (0.5, 0.45), (1.0, 0.33)])
def test_heterogeneity_sets_assortment_and_taste_apart(heterogeneity, common):
    settings = SyntheticConfig(merchants=2, heterogeneity=heterogeneity)
    catalogue = make_catalogue(settings)
    one, other = (make_merchant(settings, catalogue, number) for number in range(2))
    union = set(one.items_S) | set(other.items_S)
    jaccard = len(set(one.items_S) & set(other.items_S)) / len(union)
    assert jaccard == pytest.approx(common, abs=0.05)
    apart = np.abs(one.popularity_C - other.popularity_C).mean()
    assert (apart == 0) == (heterogeneity == 0)
    assert apart == pytest.approx(heterogeneity * 2 / np.sqrt(np.pi), abs=0.35)


def test_people_buy_the_categories_they_like():
    catalogue, _, people, events, paid = bought(WORLD)
    counts_UC = np.zeros_like(people.taste_UC)
    np.add.at(counts_UC, (events.user_R[paid], catalogue.category_I[events.item_R[paid]]), 1)
    within = [
        np.corrcoef(people.taste_UC[u], counts_UC[u])[0, 1]
        for u in range(len(counts_UC))
        if counts_UC[u].sum() > 50
    ]
    assert np.mean(within) > 0.4
    shuffled = np.random.default_rng(0).permutation(people.taste_UC)
    assert abs(np.corrcoef(shuffled.ravel(), counts_UC.ravel())[0, 1]) < 0.1


def loved_share(loyalty):
    catalogue, _, people, events, paid = bought(
        WORLD, lambda p: {"loyalty_U": np.full_like(p.loyalty_U, loyalty)}
    )
    item_R = events.item_R[paid]
    loved_R = people.favourite_UC[events.user_R[paid], catalogue.category_I[item_R]]
    return (catalogue.brand_I[item_R] == loved_R).mean()


def test_loyal_people_buy_the_brand_they_love():
    assert loved_share(3.0) > 2 * loved_share(0.0)


def mean_dearness(sensitivity):
    catalogue, merchant, _, events, paid = bought(
        WORLD, lambda p: {"price_sensitivity_U": np.full_like(p.loyalty_U, sensitivity)}
    )
    usual_C = np.array(
        [catalogue.price_I[catalogue.category_I == c].mean() for c in range(WORLD.categories)]
    )
    item_R = events.item_R[paid]
    return (merchant.price_I[item_R] / usual_C[catalogue.category_I[item_R]]).mean()


def test_people_who_mind_the_price_buy_cheaper_items():
    assert mean_dearness(2.0) < 0.85 * mean_dearness(0.0)


def promoted_share(effect):
    """Return the share of purchases of promoted items, over the share of items promoted."""
    settings = replace(WORLD, promotion_effect=effect)
    _, merchant, _, events, paid = bought(settings)
    week_R = np.minimum(events.second_R[paid] // (7 * 86400), settings.weeks - 1)
    on_offer = merchant.depth_WI > 0
    return on_offer[week_R, events.item_R[paid]].mean() / on_offer[:, merchant.items_S].mean()


def test_promotions_sell_more_the_stronger_their_effect():
    none, usual = promoted_share(0.0), promoted_share(1.0)
    # At effect 0 only the lower price is left.
    assert 1.0 < none < 2.0
    assert usual > 1.4 * none


def test_deeper_promotions_sell_more():
    _, merchant, _, events, paid = bought(WORLD)
    week_R = np.minimum(events.second_R[paid] // (7 * 86400), WORLD.weeks - 1)
    sold_R = np.round(merchant.depth_WI[week_R, events.item_R[paid]], 2)
    offers = np.round(merchant.depth_WI[:, merchant.items_S], 2)
    rates = [(sold_R == depth).sum() / (offers == depth).sum() for depth in (0.15, 0.5)]
    assert rates[1] > 1.5 * rates[0]


def test_goods_are_bought_again_at_their_own_pace():
    catalogue, _, _, events, paid = bought(WORLD)
    order = np.lexsort((events.second_R[paid], events.user_R[paid]))
    user_R, second_R = events.user_R[paid][order], events.second_R[paid][order]
    category_R = catalogue.category_I[events.item_R[paid][order]]

    def gap(name):
        number = [c.name for c in CATEGORIES].index(name)
        rows = category_R == number
        same = np.diff(user_R[rows]) == 0
        return np.median(np.diff(second_R[rows])[same]) / 86400

    assert gap("milk") < 0.75 * gap("laundry detergent")


@pytest.mark.parametrize(
    "wrong",
    [
        {"merchants": 0},
        {"users_per_merchant": 0},
        {"items": 5, "categories": 6},
        {"categories": 41},
        {"weeks": 0},
        {"visits_per_user": 0.0},
        {"promotions_per_week": 241},
        {"promotion_effect": -1.0},
        {"heterogeneity": 1.5},
        {"overlap": float("nan")},
        {"rated": 1.5},
        {"seed": -1},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} is "):
        SyntheticConfig(**wrong)


@pytest.mark.parametrize("extreme", [{"promotions_per_week": 0}, {"visits_per_user": 0.1}])
def test_the_edges_of_the_ranges_work(tmp_path, extreme):
    settings = replace(SMALL, merchants=1, users_per_merchant=1, **extreme)
    generate(settings, tmp_path / "a")
    SiloFolder.open(tmp_path / "a" / "merchant-0001")


def test_a_failure_leaves_nothing(tmp_path):
    def stop(done, _):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(SMALL, tmp_path / "a", stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="exists already"):
        generate(SMALL, tmp_path / "a")
