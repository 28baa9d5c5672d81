"""SQL of coupon redemption: canonical tables in, one row per (customer, campaign) out.

A *campaign* is the promotions of mechanic 'campaign' with one placement, its name, and one period.
Its audience is the users whose ``campaigns`` name it; where the silo knows no such column,
everyone. For a row of user u the statements read u's own events before the campaign begins, u's
own campaigns, the merchant's `items` and `promotions`, and for the label what u redeemed while
it ran. Nothing is computed over users, so that adding or removing one user adds or removes that
user's rows and changes no other row: this is what user-level differential privacy of the
training assumes.
"""

from silotune.tasks.promotion_sql import BOUGHT, CATEGORIES, HABITS

__all__ = ["EVERYONE", "NAMED", "STATEMENTS", "STATEMENTS_AT"]

NAMED = """
CREATE OR REPLACE TEMP TABLE sent AS
SELECT DISTINCT user_id, trim(name) AS name
FROM (SELECT user_id, unnest(string_split(campaigns, ';')) AS name FROM users);
"""
EVERYONE = """
CREATE OR REPLACE TEMP TABLE sent AS
SELECT DISTINCT e.user_id, p.placement AS name
FROM events e CROSS JOIN (SELECT DISTINCT placement FROM promotions WHERE mechanic = 'campaign') p;
"""

_CAMPAIGNS = """
CREATE OR REPLACE TEMP TABLE campaigns AS
SELECT row_number() OVER (ORDER BY start, placement, "end") AS campaign,
       trim(placement) AS name, start, "end",
       -- What a coupon is used for later says little of the campaign.
       least("end", start + to_days($horizon)) AS stop,
       count(DISTINCT item_id) AS items
FROM all_promoted WHERE mechanic = 'campaign' AND placement IS NOT NULL
GROUP BY placement, start, "end";

CREATE OR REPLACE TEMP TABLE campaign_items AS
SELECT DISTINCT c.campaign, p.item_id, p.category, p.family
FROM all_promoted p JOIN campaigns c
    ON trim(p.placement) = c.name AND p.start = c.start AND p."end" = c."end"
WHERE p.mechanic = 'campaign';

CREATE OR REPLACE TEMP TABLE themes AS
SELECT campaign, list(family ORDER BY items DESC, family)[1:$themes] AS themes
FROM (SELECT campaign, family, count(*) AS items FROM campaign_items GROUP BY campaign, family)
GROUP BY campaign;

-- When a customer was first seen: who is new says nothing of what they redeem.
CREATE OR REPLACE TEMP TABLE since AS
SELECT user_id, min(time) AS since FROM events GROUP BY user_id;
"""

_CHOSEN = """
-- Training: campaigns that are over by the split. Test: those that begin from it on. The cap is
-- per user and per split, never over users.
CREATE OR REPLACE TEMP TABLE chosen AS
SELECT user_id, campaign::VARCHAR AS visit_id, campaign, start AS time, test FROM (
    SELECT s.user_id, c.*, c.start >= $split AS test
    FROM sent s JOIN campaigns c USING (name)
    JOIN since f ON f.user_id = s.user_id AND f.since < c.start
    WHERE (c.start >= $first AND c.stop <= $split) OR (c.start >= $split AND c.stop <= $last)
)
QUALIFY row_number() OVER (
    PARTITION BY user_id, test ORDER BY hash(user_id, name, start, $seed), campaign
) <= CASE WHEN test THEN $test_campaigns ELSE $train_campaigns END;
"""

_CHOSEN_AT = """
-- What runs or is to come, as of now.
CREATE OR REPLACE TEMP TABLE chosen AS
WITH known AS (
    SELECT b.user_id, i.campaign, count(DISTINCT b.visit_id) AS times
    FROM bought b JOIN campaign_items i USING (item_id) GROUP BY b.user_id, i.campaign
)
SELECT s.user_id, c.campaign::VARCHAR AS visit_id, c.campaign, $now::TIMESTAMP AS time, TRUE AS test
FROM sent s JOIN campaigns c USING (name)
JOIN since f ON f.user_id = s.user_id AND f.since < $now::TIMESTAMP
LEFT JOIN known k ON k.user_id = s.user_id AND k.campaign = c.campaign
WHERE c."end" > $now::TIMESTAMP
QUALIFY row_number() OVER (
    PARTITION BY s.user_id
    ORDER BY coalesce(k.times, 0) DESC, hash(s.user_id, c.name, c.start, $seed), c.campaign
) <= $most;
"""

_PAST = """
CREATE OR REPLACE TEMP TABLE relation AS
SELECT h.user_id, h.campaign,
       count(DISTINCT b.visit_id) AS item_visits,
       count(DISTINCT b.item_id) AS items_known,
       date_diff('minute', max(b.time), any_value(h.time)) / 10080.0 AS item_weeks,
       list(DISTINCT b.family) AS families
FROM chosen h
JOIN campaign_items i USING (campaign)
JOIN bought b ON b.user_id = h.user_id AND b.item_id = i.item_id AND b.time < h.time
GROUP BY h.user_id, h.campaign;

CREATE OR REPLACE TEMP TABLE category_relation AS
SELECT h.user_id, h.campaign, count(DISTINCT b.visit_id) AS category_visits
FROM chosen h
JOIN (SELECT DISTINCT campaign, category FROM campaign_items) i USING (campaign)
JOIN bought b ON b.user_id = h.user_id AND b.category = i.category AND b.time < h.time
GROUP BY h.user_id, h.campaign;

CREATE OR REPLACE TEMP TABLE coupons AS
SELECT h.user_id, h.campaign,
       count(DISTINCT b.visit_id) FILTER (b.kind = 'redeem') AS coupon_visits,
       date_diff('minute', max(b.time) FILTER (b.kind = 'redeem'), any_value(h.time)) / 10080.0
           AS coupon_weeks,
       count(DISTINCT b.visit_id) FILTER (b.time >= h.time - INTERVAL 56 DAY) AS visits_8,
       date_diff('minute', max(b.time), any_value(h.time)) / 10080.0 AS visit_weeks
FROM chosen h JOIN bought b ON b.user_id = h.user_id AND b.time < h.time
GROUP BY h.user_id, h.campaign;

CREATE OR REPLACE TEMP TABLE redemptions AS
SELECT s.user_id, c.campaign, min(b.time) AS time
FROM sent s JOIN campaigns c USING (name)
JOIN campaign_items i ON i.campaign = c.campaign
JOIN bought b ON b.user_id = s.user_id AND b.item_id = i.item_id AND b.kind = 'redeem'
    AND b.time >= c.start AND b.time < c.stop
GROUP BY s.user_id, c.campaign;

CREATE OR REPLACE TEMP TABLE earlier AS
SELECT h.user_id, h.campaign, count(*) AS sent, count(r.campaign) AS redeemed
FROM chosen h
JOIN sent s ON s.user_id = h.user_id
JOIN campaigns c ON c.name = s.name AND c.start < h.time AND c.campaign <> h.campaign
LEFT JOIN redemptions r ON r.user_id = h.user_id AND r.campaign = c.campaign AND r.time < h.time
GROUP BY h.user_id, h.campaign;
"""

_EXAMPLES = """
SELECT h.user_id, c.name, c.start, c."end", h.time, h.test, r.campaign IS NOT NULL AS label,
       date_diff('minute', c.start, c.stop) / 10080.0 AS weeks, c.items, t.themes,
       coalesce(i.item_visits, 0) AS item_visits, coalesce(i.items_known, 0) AS items_known,
       i.item_weeks, coalesce(k.category_visits, 0) AS category_visits,
       -- Of what the coupons are for, what this customer knows, the largest first.
       list_filter(t.themes, lambda x: list_contains(i.families, x)) AS known,
       coalesce(u.coupon_visits, 0) AS coupon_visits, u.coupon_weeks,
       coalesce(u.visits_8, 0) AS visits_8, u.visit_weeks,
       coalesce(e.sent, 0) AS sent, coalesce(e.redeemed, 0) AS redeemed,
       p.past_visits, p.spend, p.deal_share, p.coupon_share,
       coalesce(f.usual, []) AS usual, coalesce(f.recent, []) AS recent
FROM chosen h
JOIN campaigns c USING (campaign)
JOIN themes t USING (campaign)
LEFT JOIN relation i ON i.user_id = h.user_id AND i.campaign = h.campaign
LEFT JOIN category_relation k ON k.user_id = h.user_id AND k.campaign = h.campaign
LEFT JOIN coupons u ON u.user_id = h.user_id AND u.campaign = h.campaign
LEFT JOIN earlier e ON e.user_id = h.user_id AND e.campaign = h.campaign
LEFT JOIN redemptions r ON r.user_id = h.user_id AND r.campaign = h.campaign
JOIN visit_past p ON p.user_id = h.user_id AND p.visit_id = h.visit_id
LEFT JOIN favourites f ON f.user_id = h.user_id AND f.visit_id = h.visit_id
ORDER BY h.user_id, h.campaign;
"""

STATEMENTS = (CATEGORIES, BOUGHT, _CAMPAIGNS, _CHOSEN, _PAST, HABITS, _EXAMPLES)
"""Run in order on a silo's connection, after `NAMED` or `EVERYONE`; the last yields the rows."""
STATEMENTS_AT = (CATEGORIES, BOUGHT, _CAMPAIGNS, _CHOSEN_AT, _PAST, HABITS, _EXAMPLES)
"""The same on a `SiloAsOf`, where no label is known."""
