"""One adapter with several heads: tasks whose examples of a user are drawn and clipped together.

A table of a file that holds a task may hold ``tasks`` in place of it, a list of tasks.

Shape suffixes: E examples, F numeric features, K outputs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from silotune.config import config, from_mapping
from silotune.errors import ConfigError, DataError, NoExamplesError
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples, Task
from silotune.tasks.names import joint_name
from silotune.tasks.registry import AnyTask, read_task
from silotune.tasks.several_objective import SeveralObjectives

__all__ = ["OneOrSeveral", "SeveralTasks", "part_of", "parts_of", "read_tasks", "seeded"]


@config
class SeveralTasks:
    """Several tasks that one adapter learns, each with its own head."""

    tasks: tuple[AnyTask, ...]
    """In the order of the heads. The first is the one that runs are judged by."""
    weights: tuple[float, ...] = ()
    """Factors of the tasks' losses. Empty: 1 each."""

    def __post_init__(self) -> None:
        """Check the tasks. Raises ConfigError."""
        names = [task.name for task in self.tasks]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(f"tasks is {', '.join(names)}; give two or more different tasks.")
        if self.weights and len(self.weights) != len(names):
            raise ConfigError(
                f"weights has {len(self.weights)} values for {len(names)} tasks; give one for "
                "each, or none."
            )
        if not all(weight > 0 and math.isfinite(weight) for weight in self.weights):
            raise ConfigError(f"weights is {self.weights}; each must be > 0 and finite.")

    @property
    def name(self) -> str:
        """Names of all tasks: what a request says, and a policy checks one by one."""
        return joint_name([task.name for task in self.tasks])

    @property
    def objective(self) -> SeveralObjectives:
        """The tasks' own, beside each other."""
        return SeveralObjectives(
            names=tuple(task.name for task in self.tasks),
            parts=tuple(task.objective for task in self.tasks),
            weights=self.weights or (1.0,) * len(self.tasks),
        )

    @property
    def outputs(self) -> int:
        """Of all heads together."""
        return sum(task.outputs for task in self.tasks)

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """Those of every task, each under its name."""
        return tuple(f"{task.name}: {n}" for task in self.tasks for n in task.numeric_names)

    @property
    def simple_methods(self) -> tuple[str, ...]:
        """Those that every one of the tasks names."""
        first, *others = (task.simple_methods for task in self.tasks)
        return tuple(method for method in first if all(method in o for o in others))

    def public_texts(self) -> list[str]:
        """Those of all tasks; each head is whitened by those of its own."""
        return [text for task in self.tasks for text in task.public_texts()]

    def build(self, silo: SiloFolder) -> Examples:
        """Build the examples of every task and put them below each other.

        A user of one task is the user of another with the same keyed hash: there is one index
        for all of them, so that sampling, cap and clip are over all of a user's examples.

        A task that the silo has no example of has no rows: its head learns from other merchants.

        Raises:
            NoExamplesError: no task has an example.
            DataError: a task does not say whose its examples are.
        """
        parts: list[Examples] = []
        missing: list[NoExamplesError] = []
        for task in self.tasks:
            try:
                parts.append(task.build(silo))
            except NoExamplesError as error:
                missing.append(error)
                parts.append(_nothing_of(task))
        if len(missing) == len(parts):
            raise missing[0]
        return joined(self, parts)


class _OneOrSeveral:
    """Annotation: a table with the key ``tasks`` means `SeveralTasks`, any other one task."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import Discriminator, Tag

        del source
        one, several = Annotated[AnyTask, Tag("one")], Annotated[SeveralTasks, Tag("tasks")]
        union: Any = Annotated[one | several, Discriminator(_which)]
        return handler.generate_schema(union)


def _which(raw: Any) -> Literal["one", "tasks"]:
    several = "tasks" in raw if isinstance(raw, Mapping) else isinstance(raw, SeveralTasks)
    return "tasks" if several else "one"


OneOrSeveral = Annotated[AnyTask | SeveralTasks, _OneOrSeveral()]
"""Type of a config field that holds a task, or several for one adapter."""


def read_tasks(raw: Mapping[str, Any], *, where: str) -> "AnyTask | SeveralTasks":
    """Return what ``raw`` describes: a task, or several. Raises ConfigError as `read_task`."""
    if "tasks" in raw:
        return from_mapping(SeveralTasks, raw, where=where)
    return read_task(raw, where=where)


def parts_of(task: Task) -> tuple[Task, ...]:
    """Return the tasks that ``task`` is made of: itself, unless it is several."""
    return task.tasks if isinstance(task, SeveralTasks) else (task,)


def seeded(task: "AnyTask | SeveralTasks", seed: int) -> "AnyTask | SeveralTasks":
    """Return ``task`` with ``seed`` added to its own: other visits and offers are drawn."""
    if isinstance(task, SeveralTasks):
        return replace(task, tasks=tuple(replace(t, seed=t.seed + seed) for t in task.tasks))
    return replace(task, seed=task.seed + seed)


def joined(task: SeveralTasks, parts: Sequence[Examples]) -> Examples:
    """Put the examples of a silo's tasks below each other; see `SeveralTasks.build`."""
    for own, part in zip(task.tasks, parts, strict=True):
        if "user_id" not in part.keys:
            raise DataError(
                f"task '{own.name}' does not say whose its examples are (Examples.keys); it "
                "cannot share an adapter with another task."
            )
    users: dict[Any, int] = {}
    for part in parts:
        for user in part.keys["user_id"]:
            users.setdefault(user, len(users))
    user_ids = [user for part in parts for user in part.keys["user_id"]]
    visits = np.cumsum([0] + [int(p.visit_E.max(initial=-1)) + 1 for p in parts])
    names = [t.name for t, p in zip(task.tasks, parts, strict=True) for _ in range(len(p))]
    return Examples(
        text=[text for part in parts for text in part.text],
        context=[context for part in parts for context in part.context],
        numeric_EF=_diagonal([p.numeric_EF for p in parts], 0.0),
        label_EK=_diagonal([p.label_EK for p in parts], np.nan),
        user_E=np.array([users[u] for u in user_ids], dtype=np.int64),
        visit_E=np.concatenate([p.visit_E + v for p, v in zip(parts, visits, strict=False)]),
        group=[f"{t.name}: {g}" for t, p in zip(task.tasks, parts, strict=True) for g in p.group],
        test_E=np.concatenate([part.test_E for part in parts]),
        objective=task.objective,
        keys={"user_id": user_ids, "task": names},
    )


def part_of(examples: Examples, task: SeveralTasks, number: int) -> tuple[Examples, NDArray[Any]]:
    """Return the examples of one of several tasks as it would build them, and their rows."""
    objective, own = task.objective, task.tasks[number]
    rows = np.flatnonzero(objective.rows_of(number, examples.label_EK))
    of = rows.tolist()
    first = sum(len(t.numeric_names) for t in task.tasks[:number])
    part = Examples(
        text=[examples.text[r] for r in of],
        context=[examples.context[r] for r in of] if examples.context else [],
        numeric_EF=examples.numeric_EF[rows, first : first + len(own.numeric_names)],
        label_EK=examples.label_EK[rows][:, objective.columns(number)],
        user_E=examples.user_E[rows],
        visit_E=examples.visit_E[rows],
        group=[examples.group[r] for r in of],
        test_E=examples.test_E[rows],
        objective=own.objective,
        keys={name: [values[r] for r in of] for name, values in examples.keys.items()},
    )
    return part, rows


def _nothing_of(task: Task) -> Examples:
    return Examples(
        text=[],
        context=[],
        numeric_EF=np.empty((0, len(task.numeric_names)), dtype=np.float32),
        label_EK=np.empty((0, task.outputs), dtype=np.float32),
        user_E=np.empty(0, dtype=np.int64),
        visit_E=np.empty(0, dtype=np.int64),
        group=[],
        test_E=np.empty(0, dtype=np.bool_),
        objective=task.objective,
        keys={"user_id": []},
    )


def _diagonal(blocks: Sequence[NDArray[np.float32]], fill: float) -> NDArray[np.float32]:
    """Return the blocks along the diagonal of one array, ``fill`` elsewhere."""
    rows, columns = (sum(b.shape[axis] for b in blocks) for axis in (0, 1))
    out = np.full((rows, columns), fill, dtype=np.float32)
    row = column = 0
    for block in blocks:
        out[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return out
