import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import StreamingMean
from silotune.errors import MessageError


@given(st.permutations(range(6)))
def test_the_order_of_arrival_does_not_show(order):
    generator = torch.Generator().manual_seed(0)
    updates = torch.randn(6, 50, generator=generator) * 10 ** torch.linspace(-3, 3, 6)[:, None]
    mean = StreamingMean(50)
    for index in order:
        mean.add(updates[index])
    assert torch.equal(mean.value(), updates.double().mean(0).float())


def test_nothing_and_another_length_are_refused():
    mean = StreamingMean(3)
    with pytest.raises(MessageError):
        mean.value()
    with pytest.raises(MessageError):
        mean.add(torch.zeros(4))
    assert mean.count == 0
