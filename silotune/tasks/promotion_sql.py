"""SQL of promotion response and outcome: canonical tables in, one row per (visit, offer) out.

An *offer* is what a customer sees of the promotions of one category in one period: the
promoted items, their placements, mechanics and depth. Every statement below reads, for a
row of user u, only u's own events before the visit and the merchant's `items` and
`promotions`. Nothing is computed over users, so that adding or removing one user adds or
removes that user's rows and changes no other row: this is what user-level differential
privacy of the training assumes.
"""

__all__ = [
    "ASKED",
    "BOUGHT",
    "CATEGORIES",
    "EXAMPLES",
    "HABITS",
    "OFFERS",
    "PAST",
    "STATEMENTS",
    "STATEMENTS_AT",
    "VISITS",
]

CATEGORIES = """
CREATE OR REPLACE TEMP TABLE item_category AS
SELECT item_id, lower(coalesce(brand, '')) AS brand, title,
       array_to_string(list_slice(string_split(category, ' > '), 1, $level), ' > ') AS category,
       -- One level up: short names for the profile, as a customer would say them.
       string_split(category, ' > ')[
           greatest(1, least($level - 1, len(string_split(category, ' > '))))
       ]
           AS family
FROM items;

CREATE OR REPLACE TEMP TABLE all_promoted AS
SELECT c.category, c.family, p.start, p."end", c.item_id, c.brand, c.title,
       p.placement, p.mechanic, p.depth
FROM promotions p JOIN item_category c ON p.item_id = c.item_id
UNION ALL
SELECT c.category, c.family, p.start, p."end", c.item_id, c.brand, c.title,
       p.placement, p.mechanic, p.depth
FROM promotions p
JOIN items i ON p.item_id IS NULL
    AND (i.category = p.category OR starts_with(i.category, p.category || ' > '))
JOIN item_category c ON c.item_id = i.item_id;
"""

_OFFERS = """
-- A campaign is for its audience; what follows is for everyone.
CREATE OR REPLACE TEMP TABLE promoted AS
SELECT * FROM all_promoted WHERE mechanic IS DISTINCT FROM 'campaign';

CREATE OR REPLACE TEMP TABLE offers AS
SELECT row_number() OVER (ORDER BY category, start, "end") AS offer_id,
       category, start, "end",
       count(DISTINCT item_id) AS item_count,
       mode(brand ORDER BY brand) AS brand,
       mode(title ORDER BY title) AS title,
       mode(placement ORDER BY placement) AS placement,
       mode(mechanic ORDER BY mechanic) AS mechanic,
       max(depth) AS depth
FROM promoted GROUP BY category, start, "end";

CREATE OR REPLACE TEMP TABLE offer_items AS
SELECT DISTINCT o.offer_id, p.item_id
FROM promoted p JOIN offers o USING (category, start, "end");
"""

OFFERS = CATEGORIES + _OFFERS

BOUGHT = """
CREATE OR REPLACE TEMP TABLE bought AS
SELECT e.user_id, e.visit_id, e.time, e.item_id, c.category, c.family, c.brand, e.kind,
       -- Whole ten-thousandths and millionths. A sum of floats depends on how threads share out
       -- the rows, and so on who else is there; a sum of whole numbers does not.
       round(1e4 * least(1e9, coalesce(e.quantity, 1)
           * (coalesce(e.price, 0) - coalesce(e.discount, 0))))::BIGINT AS paid,
       round(1e6 * CASE WHEN e.price > 0 THEN least(1, coalesce(e.discount, 0) / e.price)
           ELSE 0 END)::BIGINT AS depth
FROM events e JOIN item_category c USING (item_id)
WHERE e.kind IN ('purchase', 'redeem');
"""

_VISITS = """
CREATE OR REPLACE TEMP TABLE visits AS
SELECT user_id, visit_id, min(time) AS time FROM events GROUP BY user_id, visit_id;

-- The cap is per user and per split. A cap over all users would let one user push out
-- another's rows, and one user could then change the training by more than its clip.
CREATE OR REPLACE TEMP TABLE chosen AS
SELECT user_id, visit_id, time, test FROM (
    SELECT *, time >= $split AS test FROM visits WHERE time >= $first AND time < $last
)
QUALIFY row_number() OVER (
    PARTITION BY user_id, test ORDER BY hash(visit_id, $seed), visit_id
) <= CASE WHEN test THEN $test_visits ELSE $train_visits END;
"""

VISITS = BOUGHT + _VISITS

_SLATES = """
CREATE OR REPLACE TEMP TABLE slates AS
WITH candidate AS (
    SELECT v.user_id, v.visit_id, v.time, v.test, o.offer_id
    FROM chosen v JOIN offers o ON o.start <= v.time AND v.time < o."end"
),
hit AS (
    SELECT b.user_id, b.visit_id, oi.offer_id,
           max(CASE WHEN b.kind = 'redeem' THEN 3 WHEN b.depth > 0 THEN 2 ELSE 1 END) AS level
    FROM bought b JOIN offer_items oi USING (item_id)
    GROUP BY b.user_id, b.visit_id, oi.offer_id
),
-- 0: nothing of it was bought. Else the most that happened: bought, at a discount, with a coupon.
labelled AS (
    SELECT c.*, coalesce(h.level, 0) AS label
    FROM candidate c LEFT JOIN hit h USING (user_id, visit_id, offer_id)
)
SELECT row_number() OVER (ORDER BY user_id, time, visit_id, offer_id) AS row, *
FROM (
    SELECT * FROM labelled
    QUALIFY row_number() OVER (
        PARTITION BY user_id, visit_id, label > 0
        ORDER BY hash(visit_id, offer_id, $seed), offer_id
    ) <= CASE WHEN label > 0 THEN $positives WHEN test THEN $test_negatives ELSE $negatives END
);
"""

# For a date whose future nobody knows: everyone's offers, of what they bought most often first.
ASKED = """
CREATE OR REPLACE TEMP TABLE slates AS
WITH habit AS (
    SELECT user_id, category, count(DISTINCT visit_id) AS times FROM bought GROUP BY ALL
),
candidate AS (
    SELECT v.user_id, v.visit_id, v.time, v.test, o.offer_id, 0 AS label
    FROM chosen v JOIN offers o ON o.start <= v.time AND v.time < o."end"
    LEFT JOIN habit h ON h.user_id = v.user_id AND h.category = o.category
    WHERE coalesce(h.times, 0) >= $least_purchases
    QUALIFY row_number() OVER (
        PARTITION BY v.user_id
        ORDER BY coalesce(h.times, 0) DESC, hash(v.user_id, o.category, $seed), o.offer_id
    ) <= $most
)
SELECT row_number() OVER (ORDER BY user_id, time, visit_id, offer_id) AS row, * FROM candidate;
"""

_RELATION = """
CREATE OR REPLACE TEMP TABLE relation AS
SELECT s.row,
       count(DISTINCT b.visit_id) AS category_visits,
       date_diff('minute', max(b.time), any_value(s.time)) / 10080.0 AS weeks_since,
       sum(b.depth) / count(*) / 1e6 AS usual_depth,
       count(DISTINCT b.visit_id) FILTER (oi.item_id IS NOT NULL) AS item_visits,
       avg((b.brand = o.brand)::INT) AS brand_share
FROM slates s
JOIN offers o USING (offer_id)
JOIN bought b ON b.user_id = s.user_id AND b.category = o.category AND b.time < s.time
LEFT JOIN offer_items oi ON oi.offer_id = s.offer_id AND oi.item_id = b.item_id
GROUP BY s.row;
"""

HABITS = """
CREATE OR REPLACE TEMP TABLE visit_past AS
SELECT v.user_id, v.visit_id,
       count(DISTINCT b.visit_id) AS past_visits,
       coalesce(sum(b.paid) / count(DISTINCT b.visit_id) / 1e4, 0) AS spend,
       coalesce(avg((b.depth > 0)::INT), 0) AS deal_share,
       coalesce(avg((b.kind = 'redeem')::INT), 0) AS coupon_share
FROM chosen v LEFT JOIN bought b ON b.user_id = v.user_id AND b.time < v.time
GROUP BY v.user_id, v.visit_id;

CREATE OR REPLACE TEMP TABLE favourites AS
WITH counted AS (
    SELECT v.user_id, v.visit_id, b.family AS category,
           count(DISTINCT b.visit_id) AS often, max(b.time) AS latest
    FROM chosen v JOIN bought b ON b.user_id = v.user_id AND b.time < v.time
    GROUP BY v.user_id, v.visit_id, b.family
),
ranked AS (
    SELECT *,
           row_number() OVER (
               PARTITION BY user_id, visit_id ORDER BY often DESC, category
           ) AS by_often,
           row_number() OVER (
               PARTITION BY user_id, visit_id ORDER BY latest DESC, often DESC, category
           ) AS by_latest
    FROM counted
)
SELECT user_id, visit_id,
       array_agg(category ORDER BY by_often) FILTER (by_often <= $usual) AS usual,
       array_agg(category ORDER BY by_latest) FILTER (by_latest <= $recent) AS recent
FROM ranked GROUP BY user_id, visit_id;
"""

PAST = _RELATION + HABITS

EXAMPLES = """
SELECT s.user_id, s.visit_id, s.time, s.test, s.label,
       o.start AS offer_start, o."end" AS offer_end,
       o.category, o.item_count, o.brand, o.title, o.placement, o.mechanic,
       coalesce(o.depth, 0) AS depth,
       coalesce(r.category_visits, 0) AS category_visits, r.weeks_since,
       coalesce(r.usual_depth, 0) AS usual_depth,
       coalesce(r.item_visits, 0) AS item_visits,
       coalesce(r.brand_share, 0) AS brand_share,
       p.past_visits, p.spend, p.deal_share, p.coupon_share,
       coalesce(f.usual, []) AS usual, coalesce(f.recent, []) AS recent
FROM slates s
JOIN offers o USING (offer_id)
LEFT JOIN relation r USING (row)
JOIN visit_past p USING (user_id, visit_id)
LEFT JOIN favourites f USING (user_id, visit_id)
ORDER BY s.row;
"""

STATEMENTS = (OFFERS, VISITS, _SLATES, PAST, EXAMPLES)
"""Run in order on a silo's connection; the last one yields the rows."""
STATEMENTS_AT = (OFFERS, VISITS, ASKED, PAST, EXAMPLES)
"""The same on a `SiloAsOf` with visits, where no label is known."""
