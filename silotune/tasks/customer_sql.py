"""SQL of the customer tasks: events in, one row per (customer, date) out.

A row looks at one customer from one date of a public calendar: what they bought before it, and
what they bought in the weeks after it. Every statement reads, for a row of user u, only u's own
events and the merchant's `items`. Whether u has a row at a date depends on u's past alone, never
on what came after. Nothing is computed over users, so that adding or removing one user adds or
removes that user's rows and changes no other row: this is what user-level differential privacy
of the training assumes.
"""

__all__ = ["STATEMENTS"]

_BOUGHT = """
CREATE OR REPLACE TEMP TABLE item_family AS
SELECT item_id,
       string_split(category, ' > ')[
           greatest(1, least($level - 1, len(string_split(category, ' > '))))
       ] AS family
FROM items;

CREATE OR REPLACE TEMP TABLE bought AS
SELECT e.user_id, e.visit_id, e.time, f.family, e.kind,
       -- Whole numbers: a sum of floats depends on how threads share out the rows, and so on
       -- who else is there.
       round(1e4 * least(1e9, coalesce(e.quantity, 1)
           * (coalesce(e.price, 0) - coalesce(e.discount, 0))))::BIGINT AS paid,
       (e.price > 0 AND coalesce(e.discount, 0) > 0)::INT AS deal
FROM events e LEFT JOIN item_family f USING (item_id)
WHERE e.kind IN ('purchase', 'redeem');
"""

_DATES = """
-- Training dates: so early that the weeks after them end by the split. Test dates: from the
-- split on, so early that those end by the end of the data.
CREATE OR REPLACE TEMP TABLE dates AS
SELECT unnest(range($first, $split - to_days($horizon) + INTERVAL 1 MICROSECOND,
                    to_days($step))) AS date, FALSE AS test
UNION ALL
SELECT unnest(range($split, $last - to_days($horizon) + INTERVAL 1 MICROSECOND,
                    to_days($step))) AS date, TRUE AS test;

CREATE OR REPLACE TEMP TABLE candidates AS
SELECT b.user_id, d.date, d.test
FROM bought b JOIN dates d ON b.time < d.date
GROUP BY b.user_id, d.date, d.test
HAVING count(DISTINCT b.visit_id) >= $least_visits
   AND max(b.time) >= d.date - to_days($active);

-- The cap is per user and per split, never over users.
CREATE OR REPLACE TEMP TABLE snapshots AS
SELECT row_number() OVER (ORDER BY user_id, date) AS row, *
FROM (
    SELECT * FROM candidates
    QUALIFY row_number() OVER (
        PARTITION BY user_id, test ORDER BY hash(user_id, date, $seed), date
    ) <= CASE WHEN test THEN $test_dates ELSE $train_dates END
);
"""

_PAST = """
CREATE OR REPLACE TEMP TABLE past AS
SELECT s.row,
       count(DISTINCT b.visit_id) AS visits,
       count(DISTINCT b.visit_id) FILTER (b.time >= s.date - INTERVAL 28 DAY) AS visits_4,
       count(DISTINCT b.visit_id) FILTER (b.time >= s.date - INTERVAL 84 DAY) AS visits_12,
       -- The first of twelve weeks has one more moment than the others: its beginning.
       count(DISTINCT least(11, date_diff('minute', b.time, s.date) // 10080))
           FILTER (b.time >= s.date - INTERVAL 84 DAY) AS active_weeks,
       coalesce(sum(b.paid), 0) / 1e4 AS spend,
       coalesce(sum(b.paid) FILTER (b.time >= s.date - INTERVAL 28 DAY), 0) / 1e4 AS spend_4,
       coalesce(sum(b.paid) FILTER (b.time >= s.date - INTERVAL 84 DAY), 0) / 1e4 AS spend_12,
       sum(b.deal) / count(*) AS deal_share,
       sum((b.kind = 'redeem')::INT) / count(*) AS coupon_share,
       count(DISTINCT b.family) FILTER (b.time >= s.date - INTERVAL 84 DAY) AS families_12,
       date_diff('minute', max(b.time), any_value(s.date)) / 10080.0 AS weeks_since,
       date_diff('minute', min(b.time), any_value(s.date)) / 10080.0 AS tenure
FROM snapshots s JOIN bought b ON b.user_id = s.user_id AND b.time < s.date
GROUP BY s.row;

CREATE OR REPLACE TEMP TABLE favourites AS
WITH counted AS (
    SELECT s.row, b.family, count(DISTINCT b.visit_id) AS often, max(b.time) AS latest
    FROM snapshots s JOIN bought b ON b.user_id = s.user_id AND b.time < s.date
    WHERE b.family IS NOT NULL
    GROUP BY s.row, b.family
),
ranked AS (
    SELECT *,
           row_number() OVER (PARTITION BY row ORDER BY often DESC, family) AS by_count,
           row_number() OVER (PARTITION BY row ORDER BY latest DESC, family) AS by_time
    FROM counted
)
SELECT row,
       list(family ORDER BY by_count) FILTER (by_count <= $usual) AS usual,
       list(family ORDER BY by_time) FILTER (by_time <= $recent) AS recent
FROM ranked GROUP BY row;
"""

_EXAMPLES = """
CREATE OR REPLACE TEMP TABLE future AS
SELECT s.row, count(DISTINCT b.visit_id) AS visits, sum(b.paid) / 1e4 AS spend
FROM snapshots s JOIN bought b
    ON b.user_id = s.user_id AND b.time >= s.date AND b.time < s.date + to_days($horizon)
GROUP BY s.row;

SELECT s.user_id, s.date, s.test, p.* EXCLUDE (row),
       coalesce(f.usual, []) AS usual, coalesce(f.recent, []) AS recent,
       coalesce(n.visits, 0) AS future_visits, coalesce(n.spend, 0) AS future_spend
FROM snapshots s
JOIN past p USING (row)
LEFT JOIN favourites f USING (row)
LEFT JOIN future n USING (row)
ORDER BY s.row;
"""

STATEMENTS = (_BOUGHT, _DATES, _PAST, _EXAMPLES)
"""Run in order on a silo's connection; the last one yields the rows."""
