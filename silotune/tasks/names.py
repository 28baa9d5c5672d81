"""Names of tasks in requests and policies."""

__all__ = ["joint_name", "names_in"]

_JOINT = "+"


def joint_name(names: "tuple[str, ...] | list[str]") -> str:
    """Return the one name of several tasks that share an adapter.

    >>> joint_name(["customer-churn", "customer-segment"])
    'customer-churn+customer-segment'
    """
    return _JOINT.join(names)


def names_in(name: str) -> tuple[str, ...]:
    """Return the tasks that ``name`` stands for: one, or those that share an adapter.

    >>> names_in("customer-churn+customer-segment")
    ('customer-churn', 'customer-segment')
    """
    return tuple(name.split(_JOINT))
