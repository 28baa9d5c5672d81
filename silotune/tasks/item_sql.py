"""SQL of item interest: events in, one row per (customer, date, candidate) out.

A candidate is a category of the merchant's range, or an item. Which candidates a customer is
asked about at a date depends on their past before it, on the range and on a hash, never on what
came after: the candidates say nothing of the labels, and are chosen in training, test and use
alike. For a row of user u only u's own events and the merchant's `items` are read. Nothing is
computed over users, so that adding or removing one user adds or removes that user's rows and
changes no other row: this is what user-level differential privacy of the training assumes.
"""

__all__ = ["STATEMENTS"]

_RANGE = """
CREATE OR REPLACE TEMP TABLE thing_of AS
WITH paths AS (SELECT item_id, title, string_split(category, ' > ') AS path FROM items)
SELECT item_id, title, array_to_string(list_slice(path, 1, $level), ' > ') AS category,
       CASE WHEN $by_item THEN item_id ELSE category END AS thing,
       array_to_string(
           list_slice(path, 1, CASE WHEN $by_item THEN $level ELSE greatest(1, $level - 1) END),
           ' > '
       ) AS family
FROM paths;

CREATE OR REPLACE TEMP TABLE things AS
SELECT thing, any_value(category) AS category, any_value(family) AS family,
       min(title) AS title, count(*) AS items,
       len($candidates::VARCHAR[]) = 0 OR list_contains($candidates::VARCHAR[], thing) AS offered
FROM thing_of GROUP BY thing;

CREATE OR REPLACE TEMP TABLE did AS
SELECT e.user_id, e.visit_id, e.time, t.thing, t.family
FROM events e JOIN thing_of t USING (item_id)
WHERE list_contains($kinds::VARCHAR[], e.kind);

-- What else they did with it: a look where purchases are asked about, a purchase where looks are.
CREATE OR REPLACE TEMP TABLE did_else AS
SELECT e.user_id, e.time, t.thing
FROM events e JOIN thing_of t USING (item_id)
WHERE NOT list_contains($kinds::VARCHAR[], e.kind);
"""

_DATES = """
-- Training dates: so early that the days after them end by the split. Test dates: from the
-- split on, so early that those end by the end of the data.
CREATE OR REPLACE TEMP TABLE dates AS
SELECT unnest(range($first, $split - to_days($horizon) + INTERVAL 1 MICROSECOND,
                    to_days($step))) AS date, FALSE AS test
UNION ALL
SELECT unnest(range($split, $last - to_days($horizon) + INTERVAL 1 MICROSECOND,
                    to_days($step))) AS date, TRUE AS test;

CREATE OR REPLACE TEMP TABLE askable AS
SELECT e.user_id, d.date, d.test,
       count(DISTINCT e.visit_id) AS visits,
       count(DISTINCT e.visit_id) FILTER (e.time >= d.date - INTERVAL 56 DAY) AS visits_8,
       date_diff('minute', max(e.time), d.date) / 10080.0 AS visit_weeks,
       date_diff('minute', min(e.time), d.date) / 10080.0 AS tenure
FROM events e JOIN dates d ON e.time < d.date
GROUP BY e.user_id, d.date, d.test
HAVING max(e.time) >= d.date - to_days($active);

-- The cap is per user and per split, never over users.
CREATE OR REPLACE TEMP TABLE snapshots AS
SELECT row_number() OVER (ORDER BY user_id, date) AS snapshot, *
FROM (
    SELECT * FROM askable
    QUALIFY row_number() OVER (
        PARTITION BY user_id, test ORDER BY hash(user_id, date, $seed), date
    ) <= CASE WHEN test THEN $test_dates ELSE $train_dates END
);
"""

_PAST = """
CREATE OR REPLACE TEMP TABLE relation AS
SELECT s.snapshot, d.thing,
       count(DISTINCT d.visit_id) AS times,
       count(DISTINCT d.visit_id) FILTER (d.time >= s.date - INTERVAL 56 DAY) AS times_8,
       date_diff('minute', max(d.time), any_value(s.date)) / 10080.0 AS weeks_since,
       date_diff('minute', min(d.time), any_value(s.date)) / 10080.0 AS weeks_first
FROM snapshots s JOIN did d ON d.user_id = s.user_id AND d.time < s.date
GROUP BY s.snapshot, d.thing;

CREATE OR REPLACE TEMP TABLE related AS
SELECT s.snapshot, d.family,
       count(DISTINCT d.visit_id) AS times,
       date_diff('minute', max(d.time), any_value(s.date)) / 10080.0 AS weeks_since
FROM snapshots s JOIN did d ON d.user_id = s.user_id AND d.time < s.date
GROUP BY s.snapshot, d.family;

CREATE OR REPLACE TEMP TABLE otherwise AS
SELECT s.snapshot, d.thing,
       date_diff('minute', max(d.time), any_value(s.date)) / 10080.0 AS weeks_since
FROM snapshots s JOIN did_else d ON d.user_id = s.user_id AND d.time < s.date
GROUP BY s.snapshot, d.thing;

CREATE OR REPLACE TEMP TABLE favourites AS
WITH ranked AS (
    SELECT r.snapshot, CASE WHEN $by_item THEN t.title ELSE string_split(thing, ' > ')[-1] END
               AS called,
           row_number() OVER (
               PARTITION BY snapshot ORDER BY times DESC, weeks_since, thing) AS by_count,
           row_number() OVER (
               PARTITION BY snapshot ORDER BY weeks_since, times DESC, thing) AS by_time
    FROM relation r JOIN things t USING (thing)
)
SELECT snapshot, count(*) AS breadth,
       list(called ORDER BY by_count) FILTER (by_count <= $usual) AS usual,
       list(called ORDER BY by_time) FILTER (by_time <= $recent) AS recent
FROM ranked GROUP BY snapshot;
"""

_SLATES = """
CREATE OR REPLACE TEMP TABLE habit AS
SELECT r.snapshot, r.thing FROM relation r JOIN things t USING (thing) WHERE t.offered
QUALIFY row_number() OVER (
    PARTITION BY r.snapshot ORDER BY r.times DESC, r.weeks_since, r.thing
) <= $habits;

-- Drawn without replacement, a category the more likely the more items it holds: keys of
-- Efraimidis and Spirakis (2006). Items are alike: keys so high that they will not be among the
-- lowest go before the sort, since customers times items do not fit into memory.
CREATE OR REPLACE TEMP TABLE sampled AS
WITH keyed AS (
    SELECT s.snapshot, t.thing,
           -ln((hash(s.user_id, s.date, t.thing, $seed) + 0.5) / 1.8446744073709552e19) / t.items
               AS key
    FROM snapshots s CROSS JOIN (SELECT * FROM things WHERE offered) t
    WHERE NOT $by_item
        OR key <= 5.0 * ($slate + $habits) / (SELECT count(*) FROM things WHERE offered)
)
SELECT snapshot, thing, row_number() OVER (PARTITION BY snapshot ORDER BY key, thing) AS rank
FROM keyed ANTI JOIN habit USING (snapshot, thing)
QUALIFY rank <= $slate;

-- As many for everyone who can have them, whatever their habits: who is new is asked about what
-- is drawn. Training takes some of the same slate, by another hash: what is asked is alike.
CREATE OR REPLACE TEMP TABLE slates AS
WITH filled AS (
    SELECT * FROM (SELECT *, 0 AS rank FROM habit UNION ALL SELECT * FROM sampled)
    QUALIFY row_number() OVER (PARTITION BY snapshot ORDER BY rank, thing) <= $slate
)
SELECT row_number() OVER (ORDER BY snapshot, thing) AS row, *
FROM (
    SELECT s.snapshot, s.user_id, s.date, c.thing
    FROM filled c JOIN snapshots s USING (snapshot)
    QUALIFY s.test OR row_number() OVER (
        PARTITION BY s.snapshot ORDER BY hash(s.user_id, s.date, c.thing, $seed + 1), c.thing
    ) <= $train_candidates
);
"""

_EXAMPLES = """
CREATE OR REPLACE TEMP TABLE taken AS
SELECT DISTINCT c.row
FROM slates c JOIN did d
    ON d.user_id = c.user_id AND d.thing = c.thing
    AND d.time >= c.date AND d.time < c.date + to_days($horizon);

SELECT s.user_id, s.date, s.test, c.thing, k.row IS NOT NULL AS label,
       $horizon / 7.0 AS horizon_weeks,
       t.category, CASE WHEN $by_item THEN t.title END AS title, t.items,
       coalesce(r.times, 0) AS times, coalesce(r.times_8, 0) AS times_8,
       r.weeks_since, r.weeks_first,
       coalesce(f.times, 0) AS related_times, f.weeks_since AS related_weeks,
       o.weeks_since AS else_weeks,
       s.visits, s.visits_8, s.visit_weeks, s.tenure,
       coalesce(v.breadth, 0) AS breadth,
       coalesce(v.usual, []) AS usual, coalesce(v.recent, []) AS recent
FROM slates c
JOIN snapshots s USING (snapshot)
JOIN things t ON t.thing = c.thing
LEFT JOIN taken k ON k.row = c.row
LEFT JOIN relation r ON r.snapshot = c.snapshot AND r.thing = c.thing
LEFT JOIN related f ON f.snapshot = c.snapshot AND f.family = t.family
LEFT JOIN otherwise o ON o.snapshot = c.snapshot AND o.thing = c.thing
LEFT JOIN favourites v ON v.snapshot = c.snapshot
ORDER BY c.row;
"""

STATEMENTS = (_RANGE, _DATES, _PAST, _SLATES, _EXAMPLES)
"""Run in order on a silo's connection; the last one yields the rows."""
