"""The adapter that a job starts from: that of an earlier one."""

from pathlib import Path

from torch import Tensor

from silotune.errors import ConfigError, ModelError
from silotune.federation import Job
from silotune.models.stored import adapter_file, read_adapter
from silotune.models.text_model import TextModel

__all__ = ["start_of"]


def start_of(job: Job, model: TextModel, rounds: Path) -> Tensor | None:
    """Return the adapter that ``job.start`` names, (D,) float32; None: the model's own.

    Args:
        job: whose start.
        model: that it is for; base, layout and frozen factors are checked.
        rounds: folder with the rounds of other jobs, one folder each. A job of that name there
            comes before a path.

    Raises:
        ConfigError: there is no such job or file, or it is for another model.
    """
    if job.start is None:
        return None
    own = rounds / job.start
    # A name, not a path out of the folder.
    inside = own.parent == rounds and own.is_dir()
    try:
        return read_adapter(adapter_file(own if inside else Path(job.start)), model)
    except ModelError as error:
        raise ConfigError(f"job '{job.name}': start: {error}") from error
