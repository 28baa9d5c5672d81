"""The round loop: train, fold the updates in, make the round durable, measure what came out."""

import time
from collections.abc import Callable

from flwr.app import RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from server.aggregation import StreamingMean
from server.evaluation import is_due, measure_round
from server.exchange import RoundOptions, Tally, ask_all, refuse_below_quorum, wait_for
from server.run_store import RunStore
from silotune.encoding import encoded_size
from silotune.errors import MessageError
from silotune.federation import Job
from silotune.messages import TrainRequest, read_reply, request
from silotune.models.text_model import TextModel

__all__ = ["RoundOptions", "run_job"]

_HEADER_BYTES = 512


def run_job(
    grid: Grid,
    job: Job,
    model: TextModel,
    store: RunStore,
    options: RoundOptions,
    on_reply: Callable[[str, int, int], None] = lambda *_: None,
    *,
    task: str = "promotion-response",
    start_D: Tensor | None = None,
) -> Tensor:
    """Run all rounds of ``job`` that ``store`` does not hold yet; return the last adapter.

    Rounds whose metrics the job asks for are measured once; what ``store`` holds stands.

    Args:
        grid: Flower's, or the inline one.
        job: what to train and how long.
        model: gives the layout, the base's digest and the adapter to start from.
        store: durable state.
        options: quorum and deadline.
        on_reply: called with job name, round and updates so far.
        task: name of what is learned.
        start_D: adapter to start from, in place of the model's own; what ``store`` keeps of a
            start that was made before stands.

    Raises:
        QuorumError: fewer valid replies than the quorum arrived before the deadline.
        ConfigError: the job's metrics are no plan, or the state is damaged.
        StorageError: the disk does not take a round.
    """
    start = store.resume()
    first_D = model.adapter() if start_D is None else store.start(start_D)
    adapter_D = first_D if start == 0 else store.load(start - 1)
    # Momentum needs no state of its own: the last movement is in the store.
    before_D = store.load(start - 2) if start > 1 else first_D

    def measure(round_: int, adapter_D: Tensor) -> None:
        if is_due(job, round_) and store.metrics(round_) is None:
            nodes = wait_for(grid, options, options.enough)
            measure_round(grid, nodes, job, round_, adapter_D, model, store, options, task=task)

    # An aggregator may have been killed between a round and its metrics.
    for round_ in range(min(start, job.rounds)):
        measure(round_, store.load(round_))
    for round_ in range(start, job.rounds):
        began = time.monotonic()
        what = TrainRequest(
            job=job.name,
            round=round_,
            task=task,
            model=job.model,
            base_digest=model.base_digest,
            layout_digest=model.layout.digest,
            private=job.private,
            plain=job.plain,
            encoding=job.encoding,
        )
        # Merchants come and go between rounds.
        nodes = wait_for(grid, options, options.enough if round_ else options.nodes)
        mean, tally = _one_round(grid, nodes, what, adapter_D, options, on_reply)
        moved_D = mean.value() + job.server_momentum * (adapter_D - before_D)
        ahead_D = adapter_D + moved_D
        # Towards the start again: what it knew of older data is forgotten more slowly.
        before_D, adapter_D = adapter_D, ahead_D + job.keep_start * (first_D - ahead_D)
        numbers = adapter_D.numel()
        store.save(
            round_,
            adapter_D,
            {
                "seconds": time.monotonic() - began,
                "bytes_up": (encoded_size(numbers, job.encoding) + _HEADER_BYTES) * mean.count,
                "bytes_down": (4 * numbers + _HEADER_BYTES) * (tally.asked + tally.again),
                **tally.record(),
            },
            releases=tally.releases,
        )
        measure(round_, adapter_D)
    return adapter_D


def _one_round(
    grid: Grid,
    nodes: list[int],
    what: TrainRequest,
    adapter_D: Tensor,
    options: RoundOptions,
    on_reply: Callable[[str, int, int], None],
) -> tuple[StreamingMean, Tally]:
    mean = StreamingMean(adapter_D.numel())

    def fold(content: RecordDict) -> None:
        update_D = read_reply(content, mean.size, "update", what.encoding)
        if not update_D.double().norm() <= options.update_norm_max:
            raise MessageError("the update's norm is above update_norm_max.")
        mean.add(update_D)

    tally = ask_all(
        grid,
        nodes,
        "train",
        lambda: request(what, adapter_D),
        fold,
        options,
        lambda answered: on_reply(what.job, what.round, answered),
    )
    where = f"{what.job}, round {what.round}"
    refuse_below_quorum(where, "updates", tally, options)
    return mean, tally
