"""One private step of silotune against one of the `dp-lora` package, same model and batch.

`dp-lora` hooks LoRA layers only: a head that trains beside them gets its plain gradient, without
clip and noise. So the head is frozen here on both sides. Both use their own hooks, clip, noise and
the same SGD; dp-lora as its README shows (`DPLoRAEngine`, ``method="ffa"`` trains B, ``"vanilla"``
A and B), without its data loader. One example a user.
"""

import copy
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from privacy.dp_sgd import DPConfig, noisy_mean
from privacy.gradients import UserGradients
from privacy.randomness import SecureSource
from silotune.models.adapter import AdapterLayout, LoraSettings
from silotune.models.text_model import ModelConfig, TextModel
from simulations.benchmarks.harness import NotInstalledError, Pairs, paired, sample_call

__all__ = ["Method", "compare", "make_batch", "make_model", "ours_step", "rival_step"]

Method = Literal["ffa", "vanilla"]
Step = Callable[[], None]

_CLIP, _NOISE, _RATE = 1.0, 1.0, 1e-3


def compare(method: Method, repeats: int, *, examples: int = 32, tokens: int = 64) -> Pairs:
    """Return samples of dp-lora's step (first) and silotune's (second).

    Raises:
        NotInstalledError: dp-lora is not installed.
    """
    if importlib.util.find_spec("dp_lora") is None:
        raise NotInstalledError("dp-lora is not installed: pip install dp-lora.")
    torch.set_num_threads(1)
    model, batch = make_model(method), make_batch(examples, tokens)
    theirs = rival_step(copy.deepcopy(model), batch, method)
    ours = ours_step(model, batch)
    for step in (theirs, ours, theirs, ours):
        step()
    return paired(lambda: sample_call(theirs), lambda: sample_call(ours), repeats)


def make_model(method: Method, *, noisy: bool = True) -> TextModel:
    """Return MiniLM with LoRA of rank 8 on query and value of every layer, head frozen."""
    lora = LoraSettings(rank=8, train_a=method == "vanilla")
    model = TextModel(
        ModelConfig(lora=lora, precision="float32"),
        numeric_size=1,
        outputs=1,
        public_texts=["milk, national brand", "bread. bought often", "coffee, mailer"] * 4,
    )
    generator = torch.Generator().manual_seed(0)
    if noisy:
        model.load_adapter(0.02 * torch.randn(model.layout.size, generator=generator))
    model.head.requires_grad_(False)
    model.layout = AdapterLayout.of(model)
    return model


def make_batch(examples: int, tokens: int) -> dict[str, torch.Tensor]:
    """Return random tokens, all texts of full length, and labels."""
    generator = torch.Generator().manual_seed(1)
    ids_ET = torch.randint(1000, 20_000, (examples, tokens), generator=generator)
    return {
        "ids_ET": ids_ET,
        "mask_ET": torch.ones_like(ids_ET),
        "numeric_EF": torch.rand(examples, 1, generator=generator),
        "label_EK": (torch.rand(examples, 1, generator=generator) < 0.5).float(),
    }


def loss_of(model: TextModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the sum of the examples' losses."""
    logits_EK = model(batch["ids_ET"], batch["mask_ET"], batch["numeric_EF"])
    return nn.functional.binary_cross_entropy_with_logits(
        logits_EK, batch["label_EK"], reduction="sum"
    )


def ours_step(model: TextModel, batch: dict[str, torch.Tensor], noise: float = _NOISE) -> Step:
    """Return silotune's step: per-user gradients, clip, cryptographic noise, SGD."""
    users = len(batch["ids_ET"])
    settings = DPConfig(clip_norm=_CLIP, noise_multiplier=noise, sampling_rate=1.0)
    source, gradients = SecureSource(), UserGradients(model)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(parameters.values(), lr=_RATE)

    def step() -> None:
        with gradients.collect(torch.arange(users), users):
            torch.autograd.backward(loss_of(model, batch))
        mean_D = noisy_mean([gradients.take()], model.layout.size, settings, users, source)
        for name, gradient in model.layout.split(mean_D).items():
            parameters[name].grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    return step


def rival_step(
    model: TextModel, batch: dict[str, torch.Tensor], method: Method, noise: float = _NOISE
) -> Step:
    """Return dp-lora's step."""
    # Its hooks see token ids, which need no gradient.
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    users = len(batch["ids_ET"])
    # Optional: imported by name, so that no tool misses it.
    engine: Any = importlib.import_module("dp_lora").DPLoRAEngine()
    parameters = [p for p in model.parameters() if p.requires_grad]
    dataset = torch.utils.data.TensorDataset(batch["label_EK"])
    _, optimizer, _ = engine.make_private(
        model=model.backbone,
        optimizer=torch.optim.SGD(parameters, lr=_RATE),
        data_loader=torch.utils.data.DataLoader(dataset, batch_size=users),
        noise_multiplier=noise,
        max_grad_norm=_CLIP,
        method=method,
        poisson_sampling=False,
    )
    # Its sampling rate without Poisson sampling is one over the loader's examples, in batches.
    optimizer.expected_batch_size = users

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(model, batch))
        optimizer.step(engine.grad_sample_module.get_per_sample_grads())
        engine.grad_sample_module.clear_per_sample_grads()

    return step
