"""Every task by its name: what ``[task]`` of a scenario, run or client file may hold."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from silotune.config import ByKey, from_mapping
from silotune.errors import ConfigError
from silotune.tasks.coupon_redemption import CouponRedemption
from silotune.tasks.customers import CustomerChurn, CustomerSegment
from silotune.tasks.discounts import DiscountDepth, DiscountResponse
from silotune.tasks.item_interest import ItemInterest
from silotune.tasks.product_category import ProductCategory
from silotune.tasks.product_rating import ProductRating
from silotune.tasks.promotion_outcome import PromotionOutcome
from silotune.tasks.promotion_response import PromotionResponse

__all__ = ["DEFAULT", "TASKS", "AnyTask", "read_task", "task_mapping"]

DEFAULT = "promotion-response"
"""What a table without a ``name`` means: files that were written before there were others."""

TASKS: Mapping[
    str,
    type[
        PromotionResponse
        | CustomerChurn
        | CustomerSegment
        | DiscountDepth
        | DiscountResponse
        | ItemInterest
        | ProductCategory
        | ProductRating
        | CouponRedemption
        | PromotionOutcome
    ],
] = {
    DEFAULT: PromotionResponse,
    "customer-churn": CustomerChurn,
    "customer-segment": CustomerSegment,
    "discount-depth": DiscountDepth,
    "discount-response": DiscountResponse,
    "item-interest": ItemInterest,
    "product-category": ProductCategory,
    "product-rating": ProductRating,
    "coupon-redemption": CouponRedemption,
    "promotion-outcome": PromotionOutcome,
}

AnyTask = Annotated[
    PromotionResponse
    | CustomerChurn
    | CustomerSegment
    | DiscountDepth
    | DiscountResponse
    | ItemInterest
    | ProductCategory
    | ProductRating
    | CouponRedemption
    | PromotionOutcome,
    ByKey("name", default=DEFAULT),
]
"""Type of a config field that holds a task; its ``name`` says which."""


def read_task(raw: Mapping[str, Any], *, where: str) -> AnyTask:
    """Return the task that ``raw`` describes; ``where`` stands in front of every error.

    Raises:
        ConfigError: no such task, an unknown key, a value of the wrong type or out of range.
    """
    name = raw.get("name", DEFAULT)
    if not isinstance(name, str) or name not in TASKS:
        raise ConfigError(f"{where}: name is {name!r}; known tasks: {', '.join(TASKS)}.")
    return from_mapping(TASKS[name], raw, where=where)


def task_mapping(task: AnyTask) -> dict[str, Any]:
    """Return plain values that `read_task` makes the same task of."""
    return asdict(task)
