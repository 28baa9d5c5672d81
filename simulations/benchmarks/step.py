"""Time and memory of one private training step over the same step without privacy.

Run: ``python -m simulations.benchmarks.step``. MiniLM, LoRA of rank 8 on every linear layer, both
factors trained, 32 users with one example each, up to 64 tokens, padded alike, float32, one
thread. Each step ends with the same SGD update:

- plain: backward pass.
- private: per-user gradients, clip, cryptographic noise (`privacy.dp_sgd.noisy_mean`).
- Opacus: `GradSampleHooks` without wrapping, `DPOptimizer`, its default noise.

Times are processor seconds of the process, so that other work on the machine counts less;
every repetition runs all three, in turning order, and the figure is the median of the
ratios within a repetition. Memory is the largest resident size (VmHWM) of a fresh process per
kind.
"""

import copy
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from privacy.dp_sgd import DPConfig, noisy_mean
from privacy.gradients import UserGradients
from privacy.randomness import SecureSource
from silotune.models.adapter import LoraSettings
from silotune.models.text_model import ModelConfig, TextModel

__all__ = ["main"]

_EXAMPLES, _TOKENS, _NUMERIC = 32, 64, 2
_CLIP, _NOISE, _RATE, _LEARNING_RATE = 1.0, 1.0, 0.1, 1e-3
_KINDS = ("plain", "private", "opacus")

Step = Callable[[], None]
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def main(
    repeats: Annotated[int, typer.Option(help="Repetitions of each kind of step.")] = 24,
    users: Annotated[int, typer.Option(help="Users the examples belong to.")] = _EXAMPLES,
    only: Annotated[str, typer.Option(help="Run this kind alone and print its memory.")] = "",
) -> None:
    """Measure, and print ratios."""
    torch.set_num_threads(1)
    if only:
        print(*_memory(only, users))
        return
    times = _times(repeats, users)
    memory = {kind: _memory_of_fresh_process(kind, users) for kind in _KINDS}
    for over in ("plain", "opacus"):
        ratios = [p / o for p, o in zip(times["private"], times[over], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"time, private over {over}: median {middle:.3f}, quartiles {low:.3f} to {high:.3f}")
        whole, above = (memory["private"][k] / memory[over][k] for k in (0, 1))
        print(
            f"memory, private over {over}: {whole:.3f} whole process, {above:.3f} above its start"
        )
    for kind in ("private", "opacus"):
        first = _by_order(times, kind)
        print(f"{kind} over plain, run before it / after it: {first[0]:.3f} / {first[1]:.3f}")


def _times(repeats: int, users: int) -> dict[str, list[float]]:
    model, batch = _model(), _batch()
    steps = {kind: _step(kind, copy.deepcopy(model), batch, users) for kind in _KINDS}
    for _ in range(2):
        for step in steps.values():
            step()
    times: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    for repeat in range(repeats):
        # Even: plain, private, Opacus. Odd: the other way round.
        for kind in _KINDS if repeat % 2 == 0 else reversed(_KINDS):
            start = time.process_time()
            steps[kind]()
            times[kind].append(time.process_time() - start)
    return times


def _by_order(times: dict[str, list[float]], kind: str) -> tuple[float, float]:
    ratios = [k / p for k, p in zip(times[kind], times["plain"], strict=True)]
    return statistics.median(ratios[1::2]), statistics.median(ratios[::2])


def _memory_of_fresh_process(kind: str, users: int) -> tuple[float, float]:
    command = [sys.executable, "-m", "simulations.benchmarks.step", "--only", kind]
    command += ["--users", str(users)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)  # noqa: S603
    whole, above = done.stdout.split()
    return float(whole), float(above)


def _memory(kind: str, users: int) -> tuple[int, int]:
    """Return the largest resident size, and by how much the steps raised it, in KiB."""
    step = _step(kind, _model(), _batch(), users)
    held = _status("VmRSS")
    for _ in range(3):
        step()
    return _status("VmHWM"), _status("VmHWM") - held


def _status(field: str) -> int:
    # Not ru_maxrss: a child starts with that of the process that started it.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _model() -> TextModel:
    lora = LoraSettings(targets=("all-linear",), rank=8, train_a=True)
    model = TextModel(
        ModelConfig(lora=lora, precision="float32"),
        numeric_size=_NUMERIC,
        outputs=1,
        public_texts=["milk, national brand", "bread. bought often", "coffee, mailer"] * 4,
    )
    generator = torch.Generator().manual_seed(0)
    model.load_adapter(0.02 * torch.randn(model.layout.size, generator=generator))
    return model


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    shape = (_EXAMPLES, _TOKENS)
    ids_ET = torch.randint(1000, 20_000, shape, generator=generator)
    length_E = torch.randint(_TOKENS // 2, _TOKENS + 1, (_EXAMPLES,), generator=generator)
    mask_ET = (torch.arange(_TOKENS) < length_E[:, None]).long()
    numeric_EF = torch.rand(_EXAMPLES, _NUMERIC, generator=generator)
    label_EK = (torch.rand(_EXAMPLES, 1, generator=generator) < 0.5).float()
    return ids_ET, mask_ET, numeric_EF, label_EK


def _loss(model: TextModel, batch: Batch) -> Tensor:
    ids_ET, mask_ET, numeric_EF, label_EK = batch
    logits_EK = model(ids_ET, mask_ET, numeric_EF)
    return nn.functional.binary_cross_entropy_with_logits(logits_EK, label_EK, reduction="sum")


def _step(kind: str, model: TextModel, batch: Batch, users: int) -> Step:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=_LEARNING_RATE, momentum=0.9)
    makers = {"plain": _plain, "private": _private, "opacus": _opacus}
    return makers[kind](model, batch, optimizer, users)


def _plain(model: TextModel, batch: Batch, optimizer: torch.optim.Optimizer, users: int) -> Step:
    del users

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(_loss(model, batch))
        optimizer.step()

    return step


def _private(model: TextModel, batch: Batch, optimizer: torch.optim.Optimizer, users: int) -> Step:
    settings = DPConfig(clip_norm=_CLIP, noise_multiplier=_NOISE, sampling_rate=_RATE)
    source, gradients = SecureSource(), UserGradients(model)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    user_E = torch.arange(_EXAMPLES) % users

    def step() -> None:
        with gradients.collect(user_E, users):
            torch.autograd.backward(_loss(model, batch))
        mean_D = noisy_mean([gradients.take()], model.layout.size, settings, 320, source)
        for name, gradient in model.layout.split(mean_D).items():
            parameters[name].grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    return step


def _opacus(model: TextModel, batch: Batch, optimizer: torch.optim.Optimizer, users: int) -> Step:
    from opacus.grad_sample import prepare_module
    from opacus.optimizers import DPOptimizer

    del users  # its unit is the example
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    # Its hooks work in training mode only; everything else, dropout too, stays as it is.
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad:
            layer.train()
    prepare_module(model, "hooks", wrap_model=False, strict=False, loss_reduction="sum")
    private = DPOptimizer(
        optimizer,
        noise_multiplier=_NOISE,
        max_grad_norm=_CLIP,
        expected_batch_size=_EXAMPLES,
        loss_reduction="sum",
    )

    def step() -> None:
        private.zero_grad(set_to_none=True)
        torch.autograd.backward(_loss(model, batch))
        private.step()

    return step


if __name__ == "__main__":
    typer.run(main)
