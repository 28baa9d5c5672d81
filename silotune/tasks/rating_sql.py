"""SQL of ratings: canonical tables in, one row per (customer, item) out.

For a row of user u a statement reads u's own ratings and events before the moment it is asked
about, the merchant's `items`, and what u gave then, which is the label. Nothing is computed over
users: what others think of an item is in no row, so that adding or removing one user adds or
removes that user's rows and changes no other row.
"""

__all__ = ["STATEMENTS", "STATEMENTS_AT"]

_RANGE = """
CREATE OR REPLACE TEMP TABLE wares AS
SELECT item_id, title, nullif(brand, '') AS brand, size,
       array_to_string(list_slice(string_split(category, ' > '), 1, $level), ' > ') AS category
FROM items;

CREATE OR REPLACE TEMP TABLE given AS
SELECT r.user_id, r.item_id, r.time, w.brand, w.category,
       -- Whole millionths: a sum of floats depends on how threads share out the rows.
       round(1e6 * least(1, greatest(0, (r.rating - $lowest) / ($highest - $lowest))))::BIGINT
           AS value
FROM ratings r JOIN wares w USING (item_id);

CREATE OR REPLACE TEMP TABLE did AS
SELECT e.user_id, e.item_id, e.visit_id, e.time, w.category,
       e.kind IN ('purchase', 'redeem') AS bought
FROM events e JOIN wares w USING (item_id);
"""

# What was rated once is not asked about again: the answer is known but for a change of mind.
_RATED = """
CREATE OR REPLACE TEMP TABLE asked AS
WITH firsts AS (
    SELECT user_id, item_id, time, value / 1e6 AS label, time >= $split AS test FROM given
    QUALIFY row_number() OVER (PARTITION BY user_id, item_id ORDER BY time, value) = 1
)
SELECT row_number() OVER (ORDER BY user_id, time, item_id) AS row, *
FROM (
    SELECT * FROM firsts WHERE time >= $first AND time < $last
    -- The cap is per user and per side of the split, never over users.
    QUALIFY row_number() OVER (
        PARTITION BY user_id, test ORDER BY hash(user_id, item_id, $seed), item_id
    ) <= CASE WHEN test THEN $test_ratings ELSE $train_ratings END
);
"""

# For a date whose future nobody knows: what a customer has bought most and not rated, then what
# a hash draws from the rest of the range.
_UNRATED = """
CREATE OR REPLACE TEMP TABLE asked AS
WITH people AS (SELECT user_id FROM events UNION SELECT user_id FROM ratings),
candidate AS (
    SELECT user_id, item_id, count(DISTINCT visit_id) AS times FROM did WHERE bought GROUP BY ALL
    UNION ALL
    -- Draws so high that they will not be among the lowest go before the sort: customers times
    -- items do not fit into memory.
    SELECT p.user_id, w.item_id, 0 AS times FROM people p CROSS JOIN wares w
    WHERE hash(p.user_id, w.item_id, $seed) / 1.8446744073709552e19
        <= 5.0 * ($slate + 10) / (SELECT count(*) FROM wares)
),
unrated AS (
    SELECT user_id, item_id, max(times) AS times, hash(user_id, item_id, $seed) AS draw
    FROM candidate ANTI JOIN given USING (user_id, item_id)
    GROUP BY user_id, item_id
),
ranked AS (
    SELECT *, row_number() OVER (
        PARTITION BY user_id ORDER BY times DESC, draw, item_id
    ) <= $habits AS habit
    FROM unrated
)
SELECT row_number() OVER (ORDER BY user_id, item_id) AS row, user_id, item_id,
       $split::TIMESTAMP AS time, NULL::DOUBLE AS label, TRUE AS test
FROM (
    SELECT * FROM ranked
    QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY habit DESC, draw, item_id) <= $slate
);
"""

_PAST = """
CREATE OR REPLACE TEMP TABLE opinion AS
SELECT a.row, count(*) AS ratings, sum(g.value) / 1e6 AS total,
       count(*) FILTER (g.brand = w.brand) AS brand_ratings,
       coalesce(sum(g.value) FILTER (g.brand = w.brand), 0) / 1e6 AS brand_total,
       count(*) FILTER (g.category = w.category) AS category_ratings,
       coalesce(sum(g.value) FILTER (g.category = w.category), 0) / 1e6 AS category_total
FROM asked a JOIN wares w USING (item_id)
JOIN given g ON g.user_id = a.user_id AND g.time < a.time
GROUP BY a.row;

CREATE OR REPLACE TEMP TABLE taste AS
WITH named AS (
    SELECT a.row, concat_ws(' ', g.brand, string_split(g.category, ' > ')[-1]) AS called,
           sum(g.value) // count(*) AS value
    FROM asked a JOIN given g ON g.user_id = a.user_id AND g.time < a.time
    GROUP BY a.row, called
)
SELECT row,
       list_slice(list(called ORDER BY value DESC, called) FILTER (value >= 700000), 1, $named)
           AS liked,
       list_slice(list(called ORDER BY value, called) FILTER (value <= 300000), 1, $named)
           AS disliked
FROM named GROUP BY row;

CREATE OR REPLACE TEMP TABLE habit AS
SELECT a.row,
       count(DISTINCT d.visit_id) FILTER (d.bought) AS visits,
       count(DISTINCT d.visit_id) FILTER (d.bought AND d.category = w.category) AS category_visits,
       count(DISTINCT d.visit_id) FILTER (d.bought AND d.item_id = a.item_id) AS times,
       date_diff('minute', max(d.time) FILTER (d.bought AND d.item_id = a.item_id),
           any_value(a.time)) / 10080.0 AS weeks_since,
       bool_or(NOT d.bought AND d.item_id = a.item_id) AS looked
FROM asked a JOIN wares w USING (item_id)
JOIN did d ON d.user_id = a.user_id AND d.time < a.time
GROUP BY a.row;

SELECT a.user_id, a.item_id, a.time, a.test, a.label, w.title, w.brand, w.size, w.category,
       coalesce(o.ratings, 0) AS ratings, coalesce(o.total, 0) AS total,
       coalesce(o.brand_ratings, 0) AS brand_ratings, coalesce(o.brand_total, 0) AS brand_total,
       coalesce(o.category_ratings, 0) AS category_ratings,
       coalesce(o.category_total, 0) AS category_total,
       coalesce(t.liked, []) AS liked, coalesce(t.disliked, []) AS disliked,
       coalesce(h.visits, 0) AS visits, coalesce(h.category_visits, 0) AS category_visits,
       coalesce(h.times, 0) AS times, h.weeks_since, coalesce(h.looked, FALSE) AS looked
FROM asked a JOIN wares w USING (item_id)
LEFT JOIN opinion o USING (row) LEFT JOIN taste t USING (row) LEFT JOIN habit h USING (row)
ORDER BY a.row;
"""

STATEMENTS = (_RANGE, _RATED, _PAST)
"""Run in order on the connection of a silo with ratings; the last one yields the rows."""
STATEMENTS_AT = (_RANGE, _UNRATED, _PAST)
"""The same on a `SiloAsOf`, where no label is known."""
