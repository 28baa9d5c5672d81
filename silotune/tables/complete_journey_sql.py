"""Statements that turn the Complete Journey files into canonical tables, in order of use.

`complete_journey` says what they mean. The last four are templates: ``{silo}`` is a number.
"""

__all__ = [
    "ABBREVIATIONS",
    "CAMPAIGNS",
    "CATALOG",
    "DISPLAYS",
    "EVENTS",
    "ITEMS",
    "LINES",
    "MAILERS",
    "OFFERS",
    "PROMOTIONS",
    "READABLE",
    "STRAYS",
    "TOTAL",
    "USERS",
    "VALUE",
]

DISPLAYS = {
    "1": "store front",
    "2": "store rear",
    "3": "front end cap",
    "4": "mid-aisle end cap",
    "5": "rear end cap",
    "6": "side-aisle end cap",
    "7": "in-aisle",
    "9": "secondary location display",
    "A": "in-shelf",
}
MAILERS = {
    "A": "interior page feature",
    "C": "interior page line item",
    "D": "front page feature",
    "F": "back page feature",
    "H": "wrap front feature",
    "J": "wrap interior coupon",
    "L": "wrap back feature",
    "P": "interior page coupon",
    "X": "free on interior page",
    "Z": "free on front page, back page or wrap",
}
ABBREVIATIONS = {
    "bg": "bag",
    "bkd": "baked",
    "brkfst": "breakfast",
    "btl": "bottle",
    "btr": "butter",
    "carb": "carbonated",
    "cleang": "cleaning",
    "crbntd": "carbonated",
    "crmd": "creamed",
    "crystl": "crystal",
    "dnr": "dinner",
    "dnrs": "dinners",
    "drnk": "drink",
    "drnking": "drinking",
    "drnks": "drinks",
    "drsng": "dressing",
    "dsh": "dish",
    "fd": "food",
    "flvrd": "flavored",
    "frz": "frozen",
    "frzn": "frozen",
    "gds": "goods",
    "gm": "general merchandise",
    "hbc": "health and beauty care",
    "liq": "liquid",
    "mlk": "milk",
    "mneral": "mineral",
    "mw": "microwave",
    "mx": "mix",
    "mxs": "mixes",
    "pckgd": "packaged",
    "pkg": "package",
    "pkld": "pickled",
    "prem": "premium",
    "pwdr": "powder",
    "pwdrs": "powders",
    "refrgratd": "refrigerated",
    "sald": "salad",
    "sft": "soft",
    "sgl": "single",
    "sherbts": "sherbets",
    "sndwch": "sandwich",
    "sngl": "single",
    "sply": "supply",
    "sprd": "spread",
    "srv": "serve",
    "sv": "serve",
    "sw": "sweet",
    "trsh": "trash",
    "veg": "vegetable",
    "vend": "vending",
    "whl": "whole",
    "whlsm": "wholesome",
    "wtr": "water",
}
"""The product table's own abbreviations that occur often. A language model knows the words."""

STRAYS = """
SELECT count(*) FROM transactions LEFT JOIN weeks USING (week)
WHERE (transaction_timestamp >= start AND transaction_timestamp < stop) IS NOT TRUE
"""

_SPELLED = ", ".join(f"'{code}': '{word}'" for code, word in ABBREVIATIONS.items())
READABLE = rf"""
CREATE MACRO readable(phrase) AS nullif(trim(regexp_replace(array_to_string(
    [coalesce(MAP {{{_SPELLED}}}[part], part) FOR part IN
     regexp_extract_all(lower(regexp_replace(phrase, '\([^)]*$', '')), '[a-z]+|[^a-z]+')],
    ''), '\s+', ' ', 'g')), '')
"""
"""Lower case, abbreviations spelled out. Texts are cut at 30 characters: an opening parenthesis
without its partner goes too."""

# 4,836 lines name a product that the product table does not have.
CATALOG = """
CREATE TABLE catalog AS
WITH words AS (
    SELECT product_id, readable(department) AS department, readable(product_category) AS middle,
           readable(product_type) AS narrow, lower(brand) AS brand, readable(package_size) AS size
    FROM products
)
SELECT product_id::INTEGER AS product_id,
       -- "premium" says little without "ice cream"; "kids cereal" needs no "cold cereal".
       concat_ws(', ', CASE WHEN narrow IS NULL OR NOT list_has_any(
           regexp_extract_all(narrow, '[a-z]{3,}'), regexp_extract_all(middle, '[a-z]{3,}')
       ) THEN middle END, coalesce(narrow, CASE WHEN middle IS NULL THEN department END), size)
           AS title,
       concat_ws(' > ', department, middle, CASE WHEN middle IS NOT NULL THEN narrow END)
           AS category,
       concat_ws(' > ', department, middle) AS level2, brand, size
FROM words
UNION ALL
SELECT DISTINCT product_id::INTEGER, 'unlisted item', 'unlisted', 'unlisted', NULL, NULL
FROM transactions ANTI JOIN products USING (product_id)
"""

LINES = """
CREATE TABLE lines AS
SELECT silo, week::SMALLINT AS week, household_id::INTEGER AS household_id, basket_id,
       product_id::INTEGER AS product_id, transaction_timestamp AS time, level2,
       -- Pumped gasoline comes in thousandths of a gallon, prepaid gasoline as quantity 1.
       CASE WHEN category LIKE '%> gasoline%' AND quantity >= 100 THEN quantity / 1000
            ELSE quantity END AS quantity,
       round(100 * (sales_value + retail_disc + coupon_match_disc))::BIGINT AS list_cents,
       least(list_cents, round(100 * (retail_disc + coupon_match_disc + coupon_disc))::BIGINT)
           AS off_cents,
       coupon_disc > 0 AS redeemed
FROM transactions LEFT JOIN chosen USING (store_id) JOIN catalog USING (product_id)
WHERE quantity > 0
ORDER BY silo
"""

VALUE = """
CREATE TABLE value AS
SELECT silo, level2, week, sum(list_cents)::BIGINT AS list, sum(off_cents)::BIGINT AS off
FROM lines GROUP BY ALL ORDER BY silo
"""

# Every category of the catalog in every week: which rows exist tells nothing about any receipt.
TOTAL = """
CREATE TABLE total AS
SELECT level2, week, coalesce(sum(list), 0)::BIGINT AS list, coalesce(sum(off), 0)::BIGINT AS off
FROM (SELECT DISTINCT level2 FROM catalog) CROSS JOIN weeks LEFT JOIN value USING (level2, week)
GROUP BY ALL
"""

OFFERS = """
CREATE TABLE offers AS
SELECT silo, product_id::INTEGER AS product_id, week::SMALLINT AS week,
       display_location AS display, mailer_location AS mailer
FROM promotions JOIN chosen USING (store_id)
WHERE display_location <> '0' OR mailer_location <> '0'
ORDER BY silo
"""

CAMPAIGNS = """
SELECT campaign_id, campaign_type, start_date, end_date FROM campaign_descriptions
"""

EVENTS = """
SELECT household_id AS user_id, product_id AS item_id,
       CASE WHEN redeemed THEN 'redeem' ELSE 'purchase' END AS kind,
       time, basket_id AS visit_id, quantity,
       list_cents / 100 / quantity AS price, off_cents / 100 / quantity AS discount
FROM lines WHERE silo = {silo}
"""

ITEMS = """
SELECT product_id AS item_id, title, category, brand, size FROM catalog
WHERE product_id IN (SELECT product_id FROM lines WHERE silo = {silo}
                     UNION ALL SELECT product_id FROM offers WHERE silo = {silo})
"""

PROMOTIONS = """
WITH own AS (SELECT * FROM value WHERE silo = {silo}),
others AS (
    SELECT level2, week, t.list - coalesce(own.list, 0) AS list, t.off - coalesce(own.off, 0) AS off
    FROM total t LEFT JOIN own USING (level2, week)
),
overall AS (
    SELECT week, sum(sum(off)) OVER so_far / nullif(sum(sum(list)) OVER so_far, 0) AS share
    FROM others GROUP BY week WINDOW so_far AS (ORDER BY week)
),
by_category AS (
    SELECT level2, week, list, off,
           (sum(off) OVER so_far + {pseudo} * share) / (sum(list) OVER so_far + {pseudo}) AS share
    FROM others JOIN overall USING (week) WINDOW so_far AS (PARTITION BY level2 ORDER BY week)
),
depths AS (
    SELECT level2, week, round((off + {pseudo} * share) / (list + {pseudo}), 2) AS depth
    FROM by_category
)
SELECT product_id AS item_id, start, stop AS "end",
       concat_ws(' and ', d.words, m.words) AS placement,
       CASE WHEN m.words LIKE '%coupon%' THEN 'coupon' WHEN m.words LIKE 'free%' THEN 'free item'
            WHEN d.words IS NULL THEN 'mailer' WHEN m.words IS NULL THEN 'display'
            ELSE 'display and mailer' END AS mechanic,
       depth
FROM (SELECT DISTINCT * FROM offers WHERE silo = {silo})
JOIN weeks USING (week) JOIN catalog USING (product_id) JOIN depths USING (level2, week)
LEFT JOIN displays d ON display = d.code LEFT JOIN mailers m ON mailer = m.code
UNION ALL
SELECT DISTINCT product_id, start, stop, name, 'campaign', NULL
FROM coupons JOIN sent_campaigns USING (campaign_id)
WHERE product_id IN (SELECT product_id FROM lines WHERE silo = {silo}
                     UNION ALL SELECT product_id FROM offers WHERE silo = {silo})
"""

USERS = """
SELECT h.household_id AS user_id, d.* EXCLUDE (household_id), a.campaigns
FROM (SELECT DISTINCT household_id FROM lines WHERE silo = {silo}) h
LEFT JOIN demographics d ON d.household_id = h.household_id
LEFT JOIN (
    SELECT household_id, string_agg(DISTINCT name, '; ' ORDER BY name) AS campaigns
    FROM campaigns JOIN sent_campaigns USING (campaign_id) GROUP BY household_id
) a ON a.household_id = h.household_id
WHERE d.household_id IS NOT NULL OR a.household_id IS NOT NULL
"""
