"""One user's worst case on the real path: what a release's mean may move by."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import client.trainer

WORDS, NUMERIC, LONGEST = 50, 3, 12


class Silent:
    """Everybody sampled, no noise: the sum that the noise would hide."""

    is_private = False

    def uniform(self, count):
        return np.linspace(0, 0.999, count) if count else np.empty(0)

    def gaussian(self, count):
        return np.zeros(count)


ODD = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e20, 1e-40, 0.0]
NUMBERS = st.one_of(st.sampled_from(ODD), st.floats(-1e4, 1e4, width=32))
EXAMPLE = st.tuples(
    st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=LONGEST),
    st.lists(NUMBERS, min_size=NUMERIC, max_size=NUMERIC),
    NUMBERS,
)
PATHS = {
    f"{family} {precision}": (family, precision)
    for family in ("Bert", "Llama")
    for precision in ("float32", "bfloat16")
}


@pytest.fixture(scope="module")
def known_models(small):
    return {name: small.tiny(*how) for name, how in PATHS.items()}


def moved_by(small, model, user, clip, group):
    """Update with the user minus update without, in units of clip over normaliser."""
    tokens, numeric, label, who = small.crowd()
    extra = [list(part) for part in zip(*user, strict=True)]
    both = small.examples_of(
        [*tokens, *extra[0]],
        np.concatenate([numeric, np.array(extra[1])]),
        np.concatenate([label, np.array(extra[2])]),
        [*who, *[99] * len(user)],
    )
    start = model.adapter()
    gone = replace(both, examples=replace(both.examples, test_E=both.examples.user_E == 99))
    found = []
    with pytest.MonkeyPatch.context() as patch:
        # Parts of whole users, so that the user is in one of its own or among others.
        patch.setattr(client.trainer, "_ROW_NUMBERS", group * model.layout.size)
        for data in (both, gone):
            model.load_adapter(start)
            found.append(small.private(model, data, Silent(), clip_norm=clip).double())
    model.load_adapter(start)
    assert all(torch.isfinite(f).all() for f in found)
    return float((found[0] - found[1]).norm() / (clip / 20)), start


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    user=st.integers(1, 64).flatmap(lambda n: st.lists(EXAMPLE, min_size=n, max_size=n)),
    clip=st.sampled_from([0.01, 0.3, 5.0]),
)
def test_one_users_worst_case_moves_the_update_by_at_most_clip_over_normaliser(
    small, known_models, path, user, clip
):
    moved, start = moved_by(small, known_models[path], user, clip, group=1)
    # The update is read off as the difference of two float32 adapters.
    reading = 4 * float(torch.finfo(torch.float32).eps * start.double().norm()) / (clip / 20)
    assert moved <= 1 + reading


@pytest.mark.parametrize("path", PATHS)
def test_the_bound_is_reached_by_a_user_of_many_examples(small, known_models, path):
    """The bound above is not met because nothing moves."""
    user = [([k % WORDS] * (1 + k % LONGEST), [50.0, -50.0, 50.0], 1e3) for k in range(64)]
    moved, _ = moved_by(small, known_models[path], user, 0.3, group=1)
    assert moved == pytest.approx(1, abs=1e-3)
