"""Worker processes of a simulation: preparing, training alone, scoring, and a round's messages.

One processor thread each: many small products gain little from threads, and lose much when
another program takes one of the processors.
"""

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.trainer import PlainConfig, make_optimizer, train_plain
from client.worker import Worker
from silotune.errors import WorkerError
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples
from simulations.pool_process import called, start

__all__ = ["Logits", "SiloPool", "prepare", "score", "train_alone", "train_pooled", "with_texts"]

Logits = NDArray[np.float32]
"""On the test rows of one merchant, in their order, (E, K)."""


class SiloPool:
    """Runs functions on the silos of a federation file, in ``workers`` processes.

    Every process has a queue of one: when the system ends one, it is known what it was doing, and
    nothing else is lost.
    """

    def __init__(self, federation: Path, workers: int) -> None:
        self.federation = federation
        self._open = True
        self._calls: list[_Call] = []
        self._changed = threading.Condition()
        self._homes: dict[str, int] = {}
        self._lanes = [
            threading.Thread(target=self._serve, args=(n,), daemon=True) for n in range(workers)
        ]
        for lane in self._lanes:
            lane.start()

    def __enter__(self) -> "SiloPool":
        """Return itself; processes start with the first calls."""
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what has not begun and end the processes."""
        with self._changed:
            self._open = False
            dropped, self._calls = self._calls, []
            self._changed.notify_all()
        for call in dropped:
            call.future.cancel()
        for lane in self._lanes:
            lane.join()

    def submit(
        self, function: Callable[..., Any], *arguments: Any, silo: str | None = None
    ) -> Future[Any]:
        """Run ``function(worker, *arguments)`` once those before it have begun.

        The result is a WorkerError if the system ends the process that runs it.

        Args:
            function: of a module that workers can import.
            arguments: what it gets after the worker.
            silo: folder of the silo it is about. The process that served it last has it loaded,
                and takes it before others; one that has nothing else to do takes it too.
        """
        call = _Call(Future(), function, arguments, silo)
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()
        return call.future

    def each(
        self,
        calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]],
        progress: Callable[[int, int], None],
        *,
        cost: Sequence[float] | None = None,
    ) -> list[Any]:
        """Run ``calls``, (function, arguments) each, and return their results in order.

        Args:
            calls: what to run.
            progress: called with how many are done, and of how many.
            cost: of each call, in any unit. The dearest is begun first, so that no worker is
                left with a long one at the end (Graham 1969: at most 4/3 of the best time).

        Raises:
            WorkerError: the system ended a worker.
        """
        order = range(len(calls)) if cost is None else np.argsort(cost, kind="stable")[::-1]
        started = {int(i): self._submit(*calls[i]) for i in order}
        futures = [started[i] for i in range(len(calls))]
        try:
            for done, future in enumerate(as_completed(futures)):
                future.result()
                progress(done + 1, len(futures))
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return [future.result() for future in futures]

    def _submit(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
        about = arguments[0] if arguments else None
        silo = str(about.path.resolve()) if isinstance(about, SiloFolder) else None
        return self.submit(function, *arguments, silo=silo)

    def _next(self, lane: int) -> "_Call | None":
        with self._changed:
            self._changed.wait_for(lambda: self._calls or not self._open)
            if not self._open:
                return None
            at_home = (i for i, call in enumerate(self._calls) if self._may(call, lane))
            call = self._calls.pop(next(at_home, 0))
            if call.silo is not None:
                self._homes[call.silo] = lane
            return call

    def _may(self, call: "_Call", lane: int) -> bool:
        return call.silo is None or self._homes.get(call.silo, lane) == lane

    def _serve(self, lane: int) -> None:
        executor = self._process()
        while (call := self._next(lane)) is not None:
            future = call.future
            if not future.set_running_or_notify_cancel():
                continue
            try:
                running = executor.submit(called, call.function, call.arguments)
                future.set_result(running.result())
            except BrokenProcessPool:
                executor.shutdown(wait=False)
                executor = self._process()
                future.set_exception(
                    WorkerError(
                        "a worker process was ended by the system, most often because memory or "
                        "disk is full. What is done is kept: free some, or use fewer workers, "
                        "and run the same command again."
                    )
                )
            except BaseException as error:  # noqa: BLE001  # it is the caller's
                future.set_exception(error)
        executor.shutdown(wait=True)

    def _process(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1,
            # Spawned: a fork would copy torch's thread pool in an undefined state.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=start,
            initargs=(self.federation,),
        )


@dataclass(frozen=True, slots=True)
class _Call:
    future: Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    silo: str | None


def prepare(worker: Worker, folder: SiloFolder) -> Examples:
    """Make the examples of a silo, store them and their prefix activations; return them bare."""
    return worker.data(folder, "text").examples


def with_texts(worker: Worker, folder: SiloFolder) -> Examples:
    """Make the examples of a silo again, in the same order: what is stored has lost its texts."""
    return worker.federation.task.build(folder)


def train_alone(
    worker: Worker,
    folder: SiloFolder,
    start_D: Tensor,
    settings: PlainConfig,
    epochs: float,
    seed: int,
    own_D: Tensor | None = None,
    own_share: float = 0.0,
) -> tuple[Tensor, Logits]:
    """Train at one merchant, without privacy; return the adapter and its test logits.

    Args:
        worker: of this process.
        folder: of the merchant.
        start_D: adapter to start from.
        settings: optimiser.
        epochs: passes over the merchant's examples.
        seed: order of the examples.
        own_D: adapter that the merchant trained alone.
        own_share: its share in the result. With A frozen, a mean of adapters is the adapter of
            the mean, B·A and head alike.
    """
    model, data = worker.model("text"), worker.data(folder, "text")
    model.load_adapter(start_D)
    train_plain(model, data, settings, epochs=epochs, seed=seed)
    adapter_D = model.adapter()
    if own_D is not None:
        adapter_D = (1 - own_share) * adapter_D + own_share * own_D
    return adapter_D, score(worker, folder, "text", adapter_D)


def score(worker: Worker, folder: SiloFolder, model_name: str, adapter_D: Tensor) -> Logits:
    """Return the test logits of one merchant under an adapter."""
    model, data = worker.model(model_name), worker.data(folder, model_name)
    model.load_adapter(adapter_D)
    return data.scores(model, data.examples.rows(test=True))


def train_pooled(
    worker: Worker,
    folders: Sequence[SiloFolder],
    start_D: Tensor,
    settings: PlainConfig,
    epochs: float,
    seed: int,
) -> Tensor:
    """Train on all merchants' examples together: the ceiling that nobody may have.

    A step takes one batch of one merchant, merchants drawn by their number of examples.
    """
    generator = np.random.default_rng(seed)
    model = worker.model("text")
    silos = [worker.data(f, "text") for f in folders]
    rows = [p.examples.rows(test=False) for p in silos]
    share = np.array([len(r) for r in rows], dtype=float)
    steps = max(1, round(epochs * share.sum() / settings.batch_size))
    device = next(model.parameters()).device
    model.load_adapter(start_D)
    optimizer, schedule = make_optimizer(model, settings, steps)
    for index in generator.choice(len(silos), size=steps, p=share / share.sum()):
        size = min(settings.batch_size, len(rows[index]))
        batch = silos[index].batch(generator.choice(rows[index], size, replace=False), device)
        objective = silos[index].examples.objective
        loss = objective.loss(batch.logits(model), batch.label_EK) / len(batch.label_EK)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return model.adapter()
