"""A silo of a few customers, three tasks, and adapters of them: for tests of scores."""

import datetime as dt

import duckdb
import pyarrow.parquet as pq
import pytest
import torch

from client.score import Asked, score_silo
from client.score_file import write_scores
from client.score_settings import score_settings
from silotune.models.export import export_adapter
from silotune.models.text_model import ModelConfig, TextModel
from silotune.tables.silo_folder import SiloFolder, list_silos
from silotune.tables.synthetic import SyntheticConfig, generate
from silotune.tasks.customers import CustomerChurn, CustomerSegment
from silotune.tasks.promotion_response import PromotionResponse
from silotune.tasks.registry import task_mapping

SPAN = {
    "first": dt.datetime.fromisoformat("2024-02-12"),
    "split": dt.datetime.fromisoformat("2024-04-01"),
    "last": dt.datetime.fromisoformat("2024-05-20"),
}
CHURN = CustomerChurn(**SPAN, horizon_days=7)
SEGMENT = CustomerSegment(**SPAN, horizon_days=14, at_risk_below=5.0, high_value_from=40.0)
PROMOTION = PromotionResponse(**SPAN, category_level=2)
TASKS = {t.name: t for t in (CHURN, SEGMENT, PROMOTION)}
DATE = dt.datetime.fromisoformat("2024-04-10T08:00")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score") / "silos"
    settings = SyntheticConfig(merchants=1, users_per_merchant=18, weeks=20, rated=0.3, seed=5)
    generate(settings, folder)
    made = list_silos(folder)[0]
    promotions = made.path / "promotions.parquet"
    with duckdb.connect() as connection:
        # Every coupon is sent to everyone once more, as a campaign.
        connection.execute(
            f"COPY (FROM read_parquet('{promotions}') UNION ALL SELECT * REPLACE ('mail ' || "
            "week(start) AS placement, 'campaign' AS mechanic) "
            f"FROM read_parquet('{promotions}') WHERE mechanic = 'coupon') "
            f"TO '{promotions}.new' (FORMAT parquet)"
        )
    promotions.with_name("promotions.parquet.new").replace(promotions)
    return made


@pytest.fixture
def silo(made, tmp_path):
    """A silo of this test's own."""
    for file in made.path.iterdir():
        if file.is_file():
            target = tmp_path / "silo" / file.name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    return SiloFolder.open(tmp_path / "silo")


def exported(task, folder, seed=0, **cfg):
    model = TextModel(
        ModelConfig(**{"use_text": False} | cfg),
        numeric_size=len(task.numeric_names),
        outputs=task.outputs,
        public_texts=task.public_texts(),
    )
    generator = torch.Generator().manual_seed(seed)
    model.load_adapter(torch.randn(model.layout.size, generator=generator))
    mapping = task_mapping(task)
    export_adapter(model, folder, numeric_names=task.numeric_names, task=mapping)
    return model


def score(silo, task, adapter, out=None, *, labels=False, **options):
    settings = score_settings(silo.path, task, adapter=adapter)
    scored = score_silo(settings, silo, Asked(own_examples=labels, **options))
    if out is not None:
        write_scores([scored], settings, out, with_labels=labels)
        return pq.read_table(out)
    return scored
