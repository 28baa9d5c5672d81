"""Segments: found where they are, never too small, and described by what many have in common."""

import dataclasses
from collections import Counter

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.customer_space import public_space
from client.prepared import prepare
from client.score import load_model
from client.score_settings import score_settings
from client.segment_profiles import markdown, profiles_of
from client.segments import SegmentSettings, clustered, find_segments, merged
from silotune.errors import ConfigError
from silotune.tables.silo_folder import list_silos
from silotune.tables.synthetic import SyntheticConfig, generate
from silotune.tasks.base import Traits
from tests.client.scoring import CHURN, DATE, PROMOTION, SEGMENT, exported


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """A silo with enough customers for segments of twenty; tests do not write to it."""
    folder = tmp_path_factory.mktemp("crowd") / "silos"
    generate(SyntheticConfig(merchants=1, users_per_merchant=130, weeks=18, seed=3), folder)
    return list_silos(folder)[0]


def model_of(task, silo, folder, **cfg):
    exported(task, folder, **cfg)
    return load_model(score_settings(silo.path, task.name, adapter=folder))


def test_planted_clusters_are_found():
    generator = np.random.default_rng(0)
    true = np.repeat(np.arange(4), 30)
    points = 10 * np.eye(4)[true] + generator.normal(size=(120, 4))
    found = clustered(points, 4, starts=10, seed=0)
    assert len({(int(a), int(b)) for a, b in zip(true, found, strict=True)}) == 4
    assert len(set(found.tolist())) == 4


def test_where_points_are_fewer_than_clusters_each_is_one():
    points = np.array([[0.0], [1.0], [0.0]])
    found = clustered(points, 8, starts=1, seed=0)
    assert found[0] == found[2] != found[1]


@given(
    st.lists(st.tuples(st.integers(0, 6), st.floats(-9, 9)), min_size=1, max_size=60),
    st.integers(1, 25),
)
def test_no_segment_is_smaller_than_the_minimum_but_one_that_is_all(drawn, least):
    labels = np.array([label for label, _ in drawn])
    points = np.array([[value] for _, value in drawn])
    found = merged(points, labels, least)
    sizes = [int((found == n).sum()) for n in range(1, found.max() + 1)]
    assert sum(sizes) == len(drawn)
    assert len(sizes) == 1 or min(sizes) >= least
    assert sizes == sorted(sizes, reverse=True)
    # Clusters join whole.
    for label in set(labels.tolist()):
        assert len(set(found[labels == label].tolist())) == 1


def test_a_small_cluster_joins_the_nearest_one():
    points = np.array([[0.0]] * 5 + [[10.0]] * 6 + [[7.0]] * 2)
    labels = np.repeat([0, 1, 2], [5, 6, 2])
    assert merged(points, labels, 5).tolist() == [2] * 5 + [1] * 8


BANDS, NAMES = ("low", "middle", "high"), ("milk", "bread", "tea", "soap")


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3), st.sampled_from(BANDS), st.lists(st.sampled_from(NAMES), max_size=4)
        ),
        min_size=1,
        max_size=90,
    ),
    st.integers(2, 20),
)
def test_whatever_a_profile_says_is_true_of_the_minimum_of_its_customers(drawn, least):
    _, segment = np.unique([s for s, _, _ in drawn], return_inverse=True)
    segment = segment + 1
    traits = Traits(
        user_id=[str(i) for i in range(len(drawn))],
        words={"spend": [b for _, b, _ in drawn]},
        habits=[h for _, _, h in drawn],
    )
    for profile in profiles_of(traits, segment, least):
        own = [d for d, s in zip(drawn, segment, strict=True) if s == profile.segment]
        if len(own) < least:
            assert (profile.users, profile.words, profile.usual) == (None, (), ())
            assert not profile.stands_out
            assert "too few" in profile.sentence()
            continue
        assert profile.users == len(own)
        ((_, said),) = profile.words
        counts = Counter(b for _, b, _ in own)
        if said == "mixed":
            assert max(counts.values()) < least
        else:
            how, band = said.split()
            assert counts[band] == max(counts.values()) >= least
            assert (how == "mostly") == (2 * counts[band] >= len(own))
        for category in (*profile.usual, *profile.stands_out):
            assert sum(category in h for _, _, h in own) >= least


def test_what_stands_out_is_what_others_buy_less():
    habits = [["milk", "tea"]] * 30 + [["milk"]] * 70
    segment = np.repeat([2, 1], [30, 70])
    traits = Traits(user_id=[str(i) for i in range(100)], words={}, habits=habits)
    first, second = profiles_of(traits, segment, 20)
    assert (second.usual, second.stands_out) == (("milk", "tea"), ("tea",))
    assert (first.usual, first.stands_out) == (("milk",), ())
    page = markdown([first, second], "T", 20)
    assert "## Segment 1: 70 customers, 70%" in page
    assert "- **more than others**: tea" in page
    # Nineteen who buy tea are too few to say so.
    few = dataclasses.replace(traits, habits=[["milk", "tea"]] * 19 + [["milk"]] * 81)
    assert "tea" not in markdown(profiles_of(few, segment, 20), "T", 20)


def test_a_minimum_below_the_floor_is_refused():
    with pytest.raises(ConfigError, match="least_users is 19; it must be at least 20"):
        SegmentSettings(least_users=19)


def test_every_customer_who_is_asked_about_has_one_segment(crowd, tmp_path):
    model = model_of(SEGMENT, crowd, tmp_path / "a")
    found = find_segments(SegmentSettings(clusters=4), SEGMENT, model, crowd, as_of=DATE)
    assert found.user_id == list(SEGMENT.build_at(crowd, DATE).keys["user_id"])
    sizes = np.bincount(found.segment_U)[1:]
    assert [p.users for p in found.profiles] == sizes.tolist()
    assert len(sizes) > 1
    assert sizes.min() >= 20
    # They differ in what they are like, and say it.
    assert len({p.sentence() for p in found.profiles}) == len(sizes)
    assert found.profiles[0].usual


def test_what_happens_later_changes_no_segment(silo, tmp_path):
    model = model_of(CHURN, silo, tmp_path / "a")
    settings = SegmentSettings(clusters=3)
    before = find_segments(settings, CHURN, model, silo, as_of=DATE)
    events = silo.path / "events.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT * FROM read_parquet('{events}') WHERE time < TIMESTAMP '{DATE}') "
            f"TO '{events}.new' (FORMAT parquet)"
        )
    events.with_name("events.parquet.new").replace(events)
    after = find_segments(settings, CHURN, model, silo, as_of=DATE)
    assert after.user_id == before.user_id
    assert after.segment_U.tolist() == before.segment_U.tolist()
    # Eighteen customers are fewer than twenty: one segment, and nothing said of it.
    assert [p.users for p in before.profiles] == [None]


def test_a_customers_place_depends_on_that_customer_alone(silo, tmp_path):
    model = model_of(SEGMENT, silo, tmp_path / "a")
    space = public_space(model, SEGMENT, 6)
    places = []
    for _ in range(2):
        examples = SEGMENT.build_at(silo, DATE)
        points = space.coordinates(model, prepare(examples, model))
        places.append(dict(zip(examples.keys["user_id"], points.tolist(), strict=True)))
        gone = examples.keys["user_id"][0]
        events = silo.path / "events.parquet"
        with duckdb.connect() as connection:
            connection.execute(
                f"COPY (SELECT * FROM read_parquet('{events}') WHERE user_id <> '{gone}') "
                f"TO '{events}.new' (FORMAT parquet)"
            )
        events.with_name("events.parquet.new").replace(events)
    first, second = places
    assert len(first) == len(second) + 1 > 8
    assert all(second[user] == first[user] for user in second)


def test_the_space_is_made_of_public_things_and_holds_nobody(silo, tmp_path):
    model = model_of(SEGMENT, silo, tmp_path / "a")
    space = public_space(model, SEGMENT, 6)
    reach = np.linalg.norm(space.made_up_EP, axis=1)
    assert np.quantile(reach, 0.9) == pytest.approx(1)
    assert np.abs(space.made_up_EP.mean(0)).max() < 1e-9
    assert np.array_equal(public_space(model, SEGMENT, 6).axes_XP, space.axes_XP)
    with pytest.raises(ConfigError, match="axes is 500"):
        public_space(model, SEGMENT, 500)


def test_embeddings_are_what_the_head_reads(small):
    model = small.tiny("Bert")
    rows = np.arange(len(small.data.examples))
    pooled = small.data.vectors(model)
    assert pooled.shape == (len(rows), 16)
    head = model.head.folded()
    both = np.concatenate([pooled, small.data.examples.numeric_EF], axis=1)
    expected = both @ head["weight"].numpy().T + head["bias"].numpy()
    np.testing.assert_allclose(small.data.scores(model, rows), expected, atol=1e-4)
    # Adapted: another adapter, other vectors.
    model.load_adapter(2 * model.adapter())
    assert not np.allclose(small.data.vectors(model), pooled, atol=1e-3)


def test_a_task_that_is_not_about_customers_is_refused(silo, tmp_path):
    model = model_of(PROMOTION, silo, tmp_path / "a")
    with pytest.raises(ConfigError, match="take customer-segment"):
        find_segments(SegmentSettings(), PROMOTION, model, silo, as_of=DATE)
