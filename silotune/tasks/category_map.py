"""A merchant's own categories, mapped to the federation's public classes.

The file ``tasks/product-category.toml`` in the silo folder belongs to the merchant and is read
nowhere else:

```
local = ["Drinks > Beer"]       # stays here, whatever the table below says

[categories]
"Drinks" = "beverages"          # with everything below it
"Dairy > Milk" = "dairy"
```

The longest path that a product's category begins with decides. What no path covers stays local.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

from silotune.config import config, from_toml
from silotune.errors import ConfigError
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import own_settings

__all__ = ["LOCAL", "category_paths"]

LOCAL = ""
"""Stands for the class of products that are not the federation's."""

_STEP = " > "


@config
class _File:
    categories: dict[str, str] = field(default_factory=dict)
    """Own category path, or the beginning of one, and the public class it belongs to."""
    local: tuple[str, ...] = ()
    """Own paths whose products are no examples, though a shorter path is mapped."""

    def __post_init__(self) -> None:
        """Check that a path is named once. Raises ConfigError."""
        both = sorted(set(self.categories) & set(self.local))
        if both:
            raise ConfigError(f"local holds '{both[0]}', which [categories] maps. Keep one.")


def category_paths(
    silo: SiloFolder, task: str, classes: Sequence[str], level: int
) -> dict[str, str]:
    """Return the class, or `LOCAL`, of each path of ``silo`` that has one.

    Without a file of the merchant's own, a category whose name at ``level`` of its path is that
    of a class belongs to it; capital letters do not count.

    Args:
        silo: whose ``items`` are read.
        task: name of the task.
        classes: the federation's.
        level: 1 is the widest.

    Raises:
        ConfigError: the file maps to a class that there is not, or from a category that no item
            has; names the file and the key.
    """
    path = own_settings(silo, task)
    own = _own_paths(silo)
    if not path.exists():
        return _by_name(own, classes, level)
    file = from_toml(_File, path)
    for category, public in file.categories.items():
        if public not in classes:
            raise ConfigError(
                f"{path}: [categories] '{category}' is '{public}', which is no class of the "
                f"task; {_nearest(public, classes, 'classes')}"
            )
    for key, paths in (("[categories]", file.categories), ("local", file.local)):
        unknown = [p for p in paths if p not in own]
        if unknown:
            raise ConfigError(
                f"{path}: {key} holds '{unknown[0]}', which no category in items.parquet begins "
                f"with; {_nearest(unknown[0], own, 'categories')}"
            )
    return file.categories | dict.fromkeys(file.local, LOCAL)


def _own_paths(silo: SiloFolder) -> list[str]:
    """Return every category of the silo's items, and what each begins with, sorted."""
    with silo.connect() as connection:
        rows = connection.execute("SELECT DISTINCT category FROM items").fetchall()
    whole = [category.split(_STEP) for (category,) in rows]
    return sorted({_STEP.join(p[:n]) for p in whole for n in range(1, len(p) + 1)})


def _by_name(own: Iterable[str], classes: Sequence[str], level: int) -> dict[str, str]:
    public: Mapping[str, str] = {name.casefold(): name for name in classes}
    steps = {path: path.split(_STEP) for path in own}
    return {
        path: public[parts[-1].casefold()]
        for path, parts in steps.items()
        if len(parts) == level and parts[-1].casefold() in public
    }


def _nearest(wanted: str, known: Sequence[str], what: str) -> str:
    near = difflib.get_close_matches(wanted, known, n=1)
    some = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
    return f"did you mean '{near[0]}'?" if near else f"known {what}: {some}."
