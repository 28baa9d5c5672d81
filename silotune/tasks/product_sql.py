"""SQL of product classification: canonical tables in, one row per (user, product) out.

A row of user u reads u's own events and the merchant's `items`; nothing is computed over users.
Adding or removing one user adds or removes that user's rows and changes no other row.
"""

__all__ = ["CATALOGUE", "STATEMENTS"]

PRODUCTS = r"""
CREATE OR REPLACE TEMP TABLE mapped AS
SELECT i.item_id, max_by(m.class, len(m.own)) AS class
FROM items i
JOIN (SELECT unnest($own::VARCHAR[]) AS own, unnest($public::VARCHAR[]) AS class) m
    ON i.category = m.own OR starts_with(i.category, m.own || ' > ')
GROUP BY i.item_id;

-- Words in small letters, without the size: what products of several sizes have in common.
CREATE OR REPLACE TEMP TABLE named AS
SELECT i.*, nullif(m.class, '') AS class,
       CASE WHEN i.size <> '' AND ends_with(i.title, ', ' || i.size)
           THEN left(i.title, len(i.title) - len(i.size) - 2) ELSE i.title END AS bare,
       coalesce(
           nullif(array_to_string(regexp_extract_all(lower(bare), '\p{L}+'), ' '), ''),
           lower(bare)
       ) AS name,
       array_to_string(regexp_extract_all(lower(m.class), '\p{L}+'), ' ') AS class_words
FROM items i LEFT JOIN mapped m USING (item_id);

-- The digest decides by public text alone, so that the same product is on the same side at every
-- merchant, whatever it is called there by id.
CREATE OR REPLACE TEMP TABLE products AS
SELECT item_id, bare AS title, brand, size, category, class, name,
       left(sha256($seed || ':' || name), 8) < $threshold AS test,
       contains(' ' || name || ' ', ' ' || class_words || ' ') AS tells
FROM named;
"""

_TAKEN = """
CREATE OR REPLACE TEMP TABLE taken AS
SELECT e.user_id, e.item_id, p.name, p.class, p.test, e.time
FROM events e JOIN products p USING (item_id)
WHERE e.time >= $first AND e.time < $last AND p.test = (e.time >= $split)
    AND p.class IS NOT NULL AND ($named OR NOT p.tells)
    AND list_contains($kinds::VARCHAR[], e.kind)
QUALIFY row_number() OVER (
    PARTITION BY e.user_id, p.name, p.class ORDER BY e.time, e.item_id
) = 1;

-- The cap is per user and per side of the split, never over users. A user's classes take turns:
-- most of what people buy is of one or two.
WITH turns AS (
    SELECT *, hash(user_id, name, class, $seed) AS draw,
           row_number() OVER (PARTITION BY user_id, test, class ORDER BY draw, name) AS turn
    FROM taken
)
SELECT t.user_id, t.item_id, t.time, t.test, t.class, t.name, p.title, p.brand, p.size
FROM (
    SELECT * FROM turns
    QUALIFY row_number() OVER (
        PARTITION BY user_id, test ORDER BY turn, draw, name, class
    ) <= CASE WHEN test THEN $test_products ELSE $train_products END
) t JOIN products p USING (item_id)
ORDER BY t.user_id, t.time, t.item_id;
"""

_ALL = """
SELECT item_id, title, brand, size, category, class, name, test FROM products ORDER BY item_id;
"""

STATEMENTS = (PRODUCTS, _TAKEN)
"""Run in order on a silo's connection; the last one yields the rows."""
CATALOGUE = (PRODUCTS, _ALL)
"""Likewise; the rows are every product of the merchant, mapped or not."""
