"""Time of an epoch from stored activations of the frozen layers over one without them.

Run: ``python -m simulations.benchmarks.prefix``. MiniLM, LoRA of rank 8 on query and value of the
top layers, plain training in batches of 16, one thread, made-up examples about as long as
those of Complete Journey (36 to 64 tokens, mean 58, of which 47% are pooled). The training is
the same to the last batch. "Without" differs in ``prefix_cache`` only; "plain" runs every token
through the last layer too, as training without silotune would (`silotune.models.last_layer`).

Times are processor seconds of the process, so that other work on the machine counts less;
repetitions turn the order round, and the figure is the median of the ratios within one. Then
the start: preparing a silo without a cache, over preparing it from the cache that is there.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from client.prepared import PreparedExamples, prepare
from client.trainer import PlainConfig, train_plain
from silotune.models.adapter import LoraSettings
from silotune.models.text_model import ModelConfig, TextModel
from silotune.tasks.base import Examples

__all__ = ["main"]

_WORDS = ("milk", "bread", "pizza", "coffee", "frozen", "brand", "private", "display", "mailer")
_NUMERIC = 2
_POOLED = 0.47


def main(
    examples: Annotated[int, typer.Option(help="Examples of an epoch.")] = 320,
    repeats: Annotated[int, typer.Option(help="Repetitions, each of both kinds.")] = 6,
    layers: Annotated[int, typer.Option(help="Layers that are trained, of six.")] = 2,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or auto.")] = "auto",
) -> None:
    """Measure, and print ratios."""
    torch.set_num_threads(1)
    model = _model(layers, precision)
    data = _examples(examples)
    with tempfile.TemporaryDirectory() as folder:
        first = _seconds(lambda: prepare(data, model, Path(folder)))
        again = [_seconds(lambda: prepare(data, model, Path(folder))) for _ in range(repeats)]
        stored = prepare(data, model, Path(folder))
        _epochs(model, stored, repeats)
    print(
        f"start: {first:.2f} s without a cache, {statistics.median(again):.3f} s from the stored "
        f"one, {first / statistics.median(again):.0f} times as fast"
    )


def _epochs(model: TextModel, stored: PreparedExamples, repeats: int) -> None:
    if stored.stored_NH is None:
        raise RuntimeError(f"nothing was stored: {stored.choice}")
    bare = replace(stored, stored_NH=None)
    kinds = {"stored": stored, "without": bare, "plain": bare}
    start_D = model.adapter()

    def epoch(kind: str) -> float:
        model.load_adapter(start_D)
        with _whole_last_layer(model) if kind == "plain" else nullcontext():
            return _seconds(
                lambda: train_plain(model, kinds[kind], PlainConfig(), epochs=1, seed=0)
            )

    for kind in kinds:
        epoch(kind)
    seconds = []
    for repeat in range(repeats):
        order = list(kinds) if repeat % 2 == 0 else list(reversed(kinds))
        seconds.append({kind: epoch(kind) for kind in order})
    for kind in ("without", "plain"):
        ratios = [times[kind] / times["stored"] for times in seconds]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"epoch, {kind} over stored ({model.precision}): median {middle:.2f}, quartiles "
            f"{low:.2f} to {high:.2f}; stored first {statistics.median(ratios[::2]):.2f}, "
            f"stored last {statistics.median(ratios[1::2]):.2f}"
        )


@contextmanager
def _whole_last_layer(model: TextModel) -> Iterator[None]:
    cut = model.last_layer.only
    model.last_layer.only = lambda _: nullcontext()  # type: ignore[method-assign,assignment,return-value]
    try:
        yield
    finally:
        model.last_layer.only = cut  # type: ignore[method-assign]


def _seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def _model(layers: int, precision: str) -> TextModel:
    if precision not in ("auto", "float32", "bfloat16"):
        raise typer.BadParameter("float32, bfloat16 or auto", param_hint="--precision")
    cfg = ModelConfig(
        lora=LoraSettings(rank=8, top_layers=layers),
        precision=precision,  # type: ignore[arg-type]  # checked above
        prefix_cache="on",
    )
    texts = [f"{one} and {other}" for one in _WORDS for other in _WORDS]
    return TextModel(cfg, numeric_size=_NUMERIC, outputs=1, public_texts=texts)


def _examples(count: int) -> Examples:
    generator = np.random.default_rng(0)
    length_E = np.minimum(64, generator.integers(36, 74, count)) - 3

    def words(number: int) -> str:
        return " ".join(generator.choice(_WORDS, number))

    return Examples(
        text=[words(int(_POOLED * length)) for length in length_E],
        context=[words(length - int(_POOLED * length)) for length in length_E],
        numeric_EF=generator.random((count, _NUMERIC)).astype(np.float32),
        label_EK=generator.integers(0, 2, (count, 1)).astype(np.float32),
        user_E=np.arange(count) // 4,
        visit_E=np.arange(count) // 2,
        group=["made up"] * count,
        test_E=np.zeros(count, dtype=bool),
    )


if __name__ == "__main__":
    typer.run(main)
