import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from silotune.models.batching import token_batches


@given(st.lists(st.integers(1, 40), max_size=40), st.integers(1, 200), st.randoms())
def test_every_row_is_in_one_batch_that_keeps_the_budget(lengths, budget, random):
    length_E = np.array(lengths, dtype=np.int64)
    rows = np.array(random.sample(range(len(lengths)), len(lengths) // 2), dtype=np.int64)
    batches = list(token_batches(rows, length_E, budget))
    assert sorted(np.concatenate([*batches, []]).tolist()) == sorted(rows.tolist())
    for batch in batches:
        assert len(batch) == 1 or len(batch) * length_E[batch].max() <= budget
    longest = [length_E[b].max() for b in batches]
    assert longest == sorted(longest, reverse=True)
