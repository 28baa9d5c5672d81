"""SQL of the discount tasks: canonical tables in, one row per (visit, category or offer) out.

Visits, relations and habits are those of `promotion_sql`, and its rule holds here: for a row of
user u a statement reads u's own events before the visit, the merchant's `items` and
`promotions`, and what u bought at the visit, which is the label. Only what u has bought before
is asked about. Nothing is computed over users.
"""

from silotune.tasks.promotion_sql import EXAMPLES, OFFERS, PAST, STATEMENTS_AT, VISITS

__all__ = [
    "DEPTH_STATEMENTS",
    "DEPTH_STATEMENTS_AT",
    "RESPONSE_STATEMENTS",
    "RESPONSE_STATEMENTS_AT",
]

_KNOWN = """
CREATE OR REPLACE TEMP TABLE known AS
SELECT v.user_id, v.visit_id, b.category, count(DISTINCT b.visit_id) AS times
FROM chosen v JOIN bought b ON b.user_id = v.user_id AND b.time < v.time
GROUP BY v.user_id, v.visit_id, b.category
HAVING count(DISTINCT b.visit_id) >= $least_purchases;
"""

# Drawn without a look at what was bought: a chance that is learned from the rows is a chance.
_ASKED = """
CREATE OR REPLACE TEMP TABLE hit AS
SELECT DISTINCT b.user_id, b.visit_id, oi.offer_id
FROM bought b JOIN offer_items oi USING (item_id);

CREATE OR REPLACE TEMP TABLE slates AS
WITH candidate AS (
    SELECT v.user_id, v.visit_id, v.time, v.test, o.offer_id
    FROM chosen v
    JOIN offers o ON o.start <= v.time AND v.time < o."end"
    JOIN known k ON k.user_id = v.user_id AND k.visit_id = v.visit_id AND k.category = o.category
    QUALIFY row_number() OVER (
        PARTITION BY v.user_id, v.visit_id ORDER BY hash(v.visit_id, o.offer_id, $seed), o.offer_id
    ) <= CASE WHEN v.test THEN $test_offers ELSE $train_offers END
)
SELECT row_number() OVER (ORDER BY c.user_id, c.time, c.visit_id, c.offer_id) AS row, c.*,
       h.offer_id IS NOT NULL AS label
FROM candidate c LEFT JOIN hit h USING (user_id, visit_id, offer_id);
"""

_CATEGORIES = """
CREATE OR REPLACE TEMP TABLE item_category AS
SELECT item_id, lower(coalesce(brand, '')) AS brand,
       array_to_string(list_slice(string_split(category, ' > '), 1, $level), ' > ') AS category,
       string_split(category, ' > ')[
           greatest(1, least($level - 1, len(string_split(category, ' > '))))
       ] AS family
FROM items;

-- A category takes the place of an offer. What it is sold with this week is not said: the
-- question is at which depth the customer buys, not which depth there is.
CREATE OR REPLACE TEMP TABLE offers AS
SELECT row_number() OVER (ORDER BY category) AS offer_id, category,
       NULL::TIMESTAMP AS start, NULL::TIMESTAMP AS "end", count(*) AS item_count,
       '' AS brand, '' AS title, '' AS placement, '' AS mechanic, 0.0 AS depth
FROM item_category GROUP BY category;

CREATE OR REPLACE TEMP TABLE offer_items AS
SELECT o.offer_id, c.item_id FROM offers o JOIN item_category c USING (category);
"""

_BASKETS = """
CREATE OR REPLACE TEMP TABLE lines AS
SELECT e.user_id, e.visit_id, c.category,
       -- Whole ten-thousandths, as in `bought`.
       round(1e4 * least(1e9, coalesce(e.quantity, 1) * e.price))::BIGINT AS listed,
       round(1e4 * least(1e9, coalesce(e.quantity, 1)
           * least(e.price, greatest(0, coalesce(e.discount, 0)))))::BIGINT AS off
FROM events e JOIN item_category c USING (item_id)
WHERE e.kind IN ('purchase', 'redeem') AND e.price > 0;

CREATE OR REPLACE TEMP TABLE baskets AS
SELECT user_id, visit_id, category, sum(off) / sum(listed) AS depth
FROM lines GROUP BY user_id, visit_id, category HAVING sum(listed) > 0;

CREATE OR REPLACE TEMP TABLE slates AS
WITH candidate AS (
    SELECT v.user_id, v.visit_id, v.time, v.test, o.offer_id, b.depth AS label
    FROM chosen v
    JOIN baskets b USING (user_id, visit_id)
    JOIN known k USING (user_id, visit_id, category)
    JOIN offers o USING (category)
    QUALIFY row_number() OVER (
        PARTITION BY v.user_id, v.visit_id ORDER BY hash(v.visit_id, o.category, $seed), o.offer_id
    ) <= CASE WHEN v.test THEN $test_purchases ELSE $train_purchases END
)
SELECT row_number() OVER (ORDER BY user_id, time, visit_id, offer_id) AS row, * FROM candidate;
"""

# For a date whose future nobody knows: every category that a customer knows.
_KNOWN_CATEGORIES = """
CREATE OR REPLACE TEMP TABLE slates AS
WITH candidate AS (
    SELECT v.user_id, v.visit_id, v.time, v.test, o.offer_id, NULL::DOUBLE AS label
    FROM chosen v JOIN known k USING (user_id, visit_id) JOIN offers o USING (category)
    QUALIFY row_number() OVER (
        PARTITION BY v.user_id ORDER BY k.times DESC, hash(v.user_id, o.category, $seed), o.offer_id
    ) <= $most
)
SELECT row_number() OVER (ORDER BY user_id, time, visit_id, offer_id) AS row, * FROM candidate;
"""

_HABIT = """
CREATE OR REPLACE TEMP TABLE habit AS
SELECT s.user_id, s.visit_id, o.category,
       sum((b.depth > 0)::INT) / count(*) AS category_deals,
       coalesce(sum(b.depth) FILTER (b.time >= s.time - INTERVAL 84 DAY)
           / count(*) FILTER (b.time >= s.time - INTERVAL 84 DAY), 0) / 1e6 AS recent_depth,
       max(b.depth) / 1e6 AS deepest
FROM slates s
JOIN offers o USING (offer_id)
JOIN bought b ON b.user_id = s.user_id AND b.category = o.category AND b.time < s.time
GROUP BY s.user_id, s.visit_id, o.category;

"""

_DESCRIBED = "\nCREATE OR REPLACE TEMP TABLE described AS " + EXAMPLES.strip() + "\n"

_BOTH = """
SELECT d.*, h.* EXCLUDE (user_id, visit_id, category)
FROM described d JOIN habit h USING (user_id, visit_id, category)
ORDER BY d.user_id, d.time, d.visit_id, d.category;
"""

_SAID = (PAST, _HABIT, _DESCRIBED, _BOTH)
DEPTH_STATEMENTS = (_CATEGORIES, VISITS, _KNOWN, _BASKETS, *_SAID)
"""Run in order on a silo's connection; the last one yields what was bought, and how deep."""
DEPTH_STATEMENTS_AT = (_CATEGORIES, VISITS, _KNOWN, _KNOWN_CATEGORIES, *_SAID)
"""The same on a `SiloAsOf` with visits, where no label is known."""
RESPONSE_STATEMENTS = (OFFERS, VISITS, _KNOWN, _ASKED, PAST, EXAMPLES)
"""Run in order on a silo's connection; the last one yields offers of known categories."""
RESPONSE_STATEMENTS_AT = STATEMENTS_AT
"""The same on a `SiloAsOf` with visits, where no label is known."""
