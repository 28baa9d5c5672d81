"""Campaigns of Complete Journey: what they are for, when they run, whom they were sent."""

from silotune.tables import complete_journey
from silotune.tables.keyed_hash import hash_id
from silotune.tables.staging import sql_path
from tests.tables.journey import DATA, SOURCE, ask, source_of


def campaigns_source():
    names = ("campaigns", "campaign_descriptions", "coupons", "coupon_redemptions")
    return {name: f"read_parquet({sql_path(DATA / f'{name}.parquet')})" for name in names}


def test_campaigns_name_their_items_their_days_and_whom_they_were_sent(store):
    source = campaigns_source()
    with store.connect() as con:
        rows = con.execute(
            'SELECT placement, min(start), max("end"), count(*), count(DISTINCT item_id), '
            "count(depth) FROM promotions WHERE mechanic = 'campaign' GROUP BY placement"
        ).fetchall()
        sold = {item for (item,) in con.execute("SELECT item_id FROM items").fetchall()}
        sent = {
            (user, name)
            for user, names in con.execute(
                "SELECT user_id, campaigns FROM users WHERE campaigns IS NOT NULL"
            ).fetchall()
            for name in names.split("; ")
        }
    described = ask(
        "SELECT campaign_id, campaign_type, start_date, end_date, "
        "(SELECT list(DISTINCT product_id::VARCHAR) FROM "
        f"{source['coupons']} c WHERE c.campaign_id = d.campaign_id) "
        f"FROM {source['campaign_descriptions']} d"
    )
    names = {number: f"{kind.lower()} campaign {number}" for number, kind, *_ in described}
    found = {name: values for name, *values in rows}
    assert set(found) == {names[n] for n, *_, items in described if sold.intersection(items)}
    for number, _, first, last, items in described:
        start, end, count, distinct, depths = found[names[number]]
        assert count == distinct == len(sold.intersection(items))
        assert depths == 0
        # Whole days of the east coast: the last one belongs to it.
        assert (end - start).days in ((last - first).days, (last - first).days + 1)
        assert start.date() == first.date()
        assert (end - last).days == 1
        assert {start.hour, end.hour} <= {4, 5}
    summer = found["type a campaign 13"]
    assert (str(summer[0]), str(summer[1])) == ("2017-08-08 04:00:00", "2017-09-25 04:00:00")
    key = (store.path / "user.key").read_bytes()
    households = {row[0] for row in source_of(store, "DISTINCT household_id")}
    assert sent == {
        (hash_id(str(household), key=key), names[number])
        for number, household in ask(f"SELECT campaign_id, household_id FROM {source['campaigns']}")
        if household in households
    }


def test_what_lines_tell_of_redemptions_is_what_the_module_says():
    source = campaigns_source()
    hits = (
        "SELECT DISTINCT a.household_id, a.campaign_id "
        f"FROM {source['campaigns']} a "
        f"JOIN {source['campaign_descriptions']} d USING (campaign_id) "
        f"JOIN (SELECT DISTINCT campaign_id, product_id FROM {source['coupons']}) c "
        "USING (campaign_id) "
        f"JOIN (FROM {SOURCE} WHERE coupon_disc > 0 AND quantity > 0) t "
        "ON t.household_id = a.household_id AND t.product_id = c.product_id "
        "AND t.transaction_timestamp BETWEEN start_date AND end_date + INTERVAL 1 DAY"
    )
    listed = f"SELECT DISTINCT household_id, campaign_id FROM {source['coupon_redemptions']}"
    [(both,)] = ask(f"SELECT count(*) FROM ({hits} INTERSECT {listed})")
    [(others,)] = ask(f"SELECT count(*) FROM ({hits} EXCEPT {listed})")
    [(pairs,)] = ask(f"SELECT count(*) FROM ({listed})")
    said = " ".join(complete_journey.__doc__.split())
    assert f"{both} of its {pairs} redeemed pairs" in said
    assert f"{others} others" in said
