"""The stock recipe of federated private LoRA: Flower, peft and Opacus as documented.

What a message does follows the public examples step by step; where they differ, the faster way
was taken:

- Flower's Opacus example (github.com/adap/flower, examples/opacus, `client_app.py` in its Message
  API form; the same at flower.ai/apps/flwrlabs/opacus-fl): the train function loads the
  partition, builds the model, sets the weights of the message, makes an optimiser, a new
  `PrivacyEngine` and `make_private`, trains, asks for ε, and sends the weights back with the
  number of examples. FlowerTune (examples/flowertune-llm) does the same with peft: only the
  adapter travels, by `get_peft_model_state_dict` and `set_peft_model_state_dict`.
- Opacus' tutorial on text classifiers (opacus.ai/tutorials/building_text_classifier): AdamW, texts
  padded to the maximum, `MAX_SEQ_LENGHT = 128`, LoRA by peft, `make_private` with its Poisson
  sampling of examples and its default hooks.
- The tutorial's `BatchMemoryManager` is left out: these batches fit, and it would cost time.
- Flower's client evaluation in each round is switched off: silotune has none either.

The unit of privacy is one example, which is weaker than one user.
"""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from silotune.config import config, from_mapping
from silotune.models.adapter import LoraSettings
from silotune.models.base import resolve_base

__all__ = [
    "STOCK_VARIABLE",
    "Recipe",
    "app",
    "build_model",
    "logits",
    "merchant_file",
    "tokenise",
    "train_merchant",
]

STOCK_VARIABLE = "SILOTUNE_STOCK_RECIPE"
"""Environment variable with the path of a recipe file, for Ray's worker processes."""

State = dict[str, Tensor]


@config
class Recipe:
    """What the clients need to know."""

    folder: str
    """Holds examples and results."""
    base: str
    """Base model, as `resolve_base` takes it."""
    lora: LoraSettings
    length: int
    """Tokens that every text is padded or cut to."""
    learning_rate: float
    """Of AdamW."""
    clip_norm: float
    noise_multiplier: float
    """Of every merchant."""
    delta: float


app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one merchant for one round, from nothing: model, tokeniser, data, engine."""
    path = Path(os.environ[STOCK_VARIABLE])
    recipe = from_mapping(Recipe, json.loads(path.read_text(encoding="utf-8")), where=str(path))
    index = int(context.node_config["partition-id"])
    arrays = message.content["arrays"]
    if not isinstance(arrays, ArrayRecord):
        raise TypeError("the message holds no arrays")
    state, seen = train_merchant(recipe, index, arrays.to_torch_state_dict())
    # One line a message: how many examples were seen, for the comparison's own check.
    with (Path(recipe.folder) / "seen.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"merchant": index, **seen}) + "\n")
    metrics = MetricRecord({"num-examples": int(seen["num-examples"]), "epsilon": seen["epsilon"]})
    return Message(
        content=RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message
    )


def merchant_file(folder: Path, index: int) -> Path:
    """Where the examples of merchant ``index`` lie."""
    return folder / "examples" / f"{index:04d}.npz"


def build_model(recipe: Recipe) -> Any:
    """Load the base with a classification head and wrap it with peft, as documented."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        resolve_base(recipe.base), num_labels=2
    )
    layers = int(model.config.num_hidden_layers)
    top = layers if recipe.lora.top_layers is None else recipe.lora.top_layers
    with warnings.catch_warnings():
        # peft asks transformers for an attribute under its old name.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        return get_peft_model(
            model,
            LoraConfig(
                task_type=TaskType.SEQ_CLS,
                r=recipe.lora.rank,
                lora_alpha=recipe.lora.alpha,
                target_modules=list(recipe.lora.targets),
                layers_to_transform=list(range(layers - top, layers)),
                lora_dropout=0.0,
            ),
        )


def tokenise(recipe: Recipe, texts: list[str], contexts: list[str], padding: str | bool) -> Any:
    """Return token ids and masks of pairs of text and context."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_base(recipe.base))
    return tokenizer(
        texts,
        contexts,
        padding=padding,
        truncation=True,
        max_length=recipe.length,
        return_tensors="pt" if padding else None,
    )


def load_data(recipe: Recipe, index: int, *, test: bool) -> TensorDataset:
    """Read a merchant's examples, tokenise them, pad them to the maximum."""
    with np.load(merchant_file(Path(recipe.folder), index)) as saved:
        rows = np.flatnonzero(saved["test"] == test)
        texts, contexts = saved["text"][rows].tolist(), saved["context"][rows].tolist()
        label_E = torch.from_numpy(saved["label"][rows]).long()
    encoded = tokenise(recipe, texts, contexts, "max_length")
    return TensorDataset(encoded["input_ids"], encoded["attention_mask"], label_E)


def train_merchant(recipe: Recipe, index: int, state: State) -> tuple[State, dict[str, float]]:
    """Train the adapter ``state`` on one merchant's examples for one round.

    Returns:
        The new state; and how many examples and steps there were, and the round's ε.
    """
    from opacus import PrivacyEngine
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    with np.load(merchant_file(Path(recipe.folder), index)) as saved:
        steps, batch_size = int(saved["steps"]), int(saved["batch_size"])
    dataset = load_data(recipe, index, test=False)
    model = build_model(recipe)
    set_peft_model_state_dict(model, state)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = torch.optim.AdamW(trained, lr=recipe.learning_rate)
    # As Flower's example does: secure mode, and hooks on inputs that need no gradient.
    warnings.filterwarnings("ignore", category=UserWarning)
    engine = PrivacyEngine()
    private, optimizer, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(dataset, batch_size=batch_size),
        noise_multiplier=recipe.noise_multiplier,
        max_grad_norm=recipe.clip_norm,
    )
    seen = _steps(private, optimizer, loader, steps)
    epsilon = engine.get_epsilon(recipe.delta)
    # Opacus hooks the model in place: what it wraps is the one from above.
    new = {k: v.detach().clone() for k, v in get_peft_model_state_dict(model).items()}
    return new, {
        "num-examples": len(dataset),
        "seen": seen,
        "steps": steps,
        "epsilon": float(epsilon),
    }


def _steps(model: Any, optimizer: Any, loader: Any, steps: int) -> int:
    done = seen = 0
    while done < steps:
        for ids_ET, mask_ET, label_E in loader:
            # Hugging Face models cannot run an empty Poisson batch: it passes.
            if len(label_E):
                optimizer.zero_grad()
                model(input_ids=ids_ET, attention_mask=mask_ET, labels=label_E).loss.backward()
                optimizer.step()
            seen += len(label_E)
            done += 1
            if done == steps:
                break
    return seen


@torch.inference_mode()
def logits(
    recipe: Recipe,
    state: State,
    index: int,
    model: Any = None,
    *,
    test: bool = True,
) -> NDArray[np.float32]:
    """Return the log odds of merchant ``index``'s rows after (or before) the split, in order."""
    from peft import set_peft_model_state_dict

    model = build_model(recipe) if model is None else model
    set_peft_model_state_dict(model, state)
    model.eval()
    parts = []
    for ids_ET, mask_ET, _ in DataLoader(load_data(recipe, index, test=test), batch_size=64):
        out_E2 = model(input_ids=ids_ET, attention_mask=mask_ET).logits.float()
        parts.append((out_E2[:, 1] - out_E2[:, 0]).numpy())
    return np.concatenate(parts)
