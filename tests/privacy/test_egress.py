import hashlib

import pytest
import torch

from privacy.accounting import GaussianEvent
from privacy.egress import Declaration, Gate, Outgoing
from privacy.ledger import Ledger, Reservation
from silotune.errors import EgressError, LedgerError

EVENT = GaussianEvent(sampling_rate=0.25, noise_multiplier=1.5, steps=4)
DECLARED = {"name": "update", "size": 3, "mechanism": "gaussian", "norm_max": 10.0}
GOOD = torch.tensor([1.0, 2.0, 3.0])


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "l.db") as opened:
        yield opened


def _reserve(ledger, request="r"):
    return ledger.reserve(request, [EVENT], {}, epsilon=8.0, delta=1e-4)


def _release(ledger, values, facts=None, **changes):
    return Gate(ledger).release(
        _reserve(ledger),
        Declaration(**DECLARED | changes),
        values,
        private=True,
        facts=facts or {},
    )


def test_what_leaves_is_what_the_receipt_speaks_of(ledger):
    out = _release(ledger, GOOD, {"job": "j", "round": 1})
    assert torch.equal(out.vector(), GOOD)
    receipt = ledger.entries[-1].body
    assert receipt == out.receipt
    assert receipt["sha256"] == hashlib.sha256(out.vector().numpy().tobytes()).hexdigest()
    assert (receipt["name"], receipt["size"], receipt["bytes"]) == ("update", 3, 12)
    assert receipt["private"] is True


@pytest.mark.parametrize(("encoding", "size"), [("bfloat16", 6), ("int8", 7)])
def test_fewer_bits_leave_as_the_receipt_says_and_the_same_every_time(ledger, encoding, size):
    values = torch.tensor([1.003, -2.0007, 3.3])
    out = _release(ledger, values, encoding=encoding)
    sent = out.array()
    assert (sent.dtype, sent.numel()) == (torch.uint8, size)
    assert out.receipt["encoding"] == encoding
    assert out.receipt["bytes"] == size
    assert out.receipt["sha256"] == hashlib.sha256(sent.numpy().tobytes()).hexdigest()
    torch.testing.assert_close(out.vector(), values, atol=0.03, rtol=0)
    again = Gate(ledger).again("r")
    assert torch.equal(again.array(), sent)
    assert torch.equal(again.vector(), out.vector())
    ledger.settle(int(out.receipt["reservation"]))
    other = Gate(ledger).release(
        _reserve(ledger, "other"),
        Declaration(**DECLARED | {"encoding": encoding}),
        values,
        private=True,
        facts={},
    )
    assert torch.equal(other.array(), sent)


def test_rounding_up_does_not_pass_the_norm_limit(ledger):
    # In bfloat16 the next number above 1 is 1.0078: some roundings of this lie above the limit.
    norms, refused = [], 0
    for k in range(40):
        values = torch.tensor([1.0 + k * 2.4e-5])
        reservation = _reserve_cheap(ledger, f"r{k}")
        declared = Declaration(**DECLARED | {"size": 1, "norm_max": 1.001, "encoding": "bfloat16"})
        try:
            out = Gate(ledger).release(reservation, declared, values, private=True, facts={})
            norms.append(float(out.vector().norm()))
        except EgressError:
            refused += 1
    assert all(n <= 1.001 for n in norms)
    assert norms
    assert refused


def _reserve_cheap(ledger, request):
    event = GaussianEvent(sampling_rate=0.01, noise_multiplier=20.0, steps=1)
    return ledger.reserve(request, [event], {}, epsilon=8.0, delta=1e-4)


class _Sly(torch.Tensor):
    """Answers every check as a plain tensor would."""


BAD = {
    "another name": (GOOD, {"name": "gradients"}),
    "too few numbers": (GOOD[:2], {}),
    "another shape": (GOOD.reshape(1, 3), {}),
    "float64": (GOOD.double(), {}),
    "integers": (GOOD.int(), {}),
    "NaN": (torch.tensor([1.0, float("nan"), 0.0]), {}),
    "infinity": (torch.tensor([1.0, float("inf"), 0.0]), {}),
    "norm": (5 * GOOD, {}),
    "another encoding": (GOOD, {"encoding": "float16"}),
    "norm in int8": (5 * GOOD, {"encoding": "int8"}),
    "NaN in bfloat16": (torch.tensor([1.0, float("nan"), 0.0]), {"encoding": "bfloat16"}),
    "norm limit NaN": (GOOD, {"norm_max": float("nan")}),
    "norm limit infinite": (GOOD, {"norm_max": float("inf")}),
    "bytes": (GOOD, {"bytes_max": 8}),
    "no mechanism": (GOOD, {"mechanism": "none"}),
    "unknown mechanism": (GOOD, {"mechanism": "none yet"}),
    "a subclass": (GOOD.as_subclass(_Sly), {}),
    "sparse": (GOOD.to_sparse(), {}),
    "a list": ([1.0, 2.0, 3.0], {}),
    "nothing": (None, {}),
}


@pytest.mark.parametrize("case", BAD)
def test_what_was_not_declared_stays_and_its_cost_is_spent(ledger, tmp_path, case):
    values, changes = BAD[case]
    with pytest.raises(EgressError) as caught:
        _release(ledger, values, **changes)
    assert [e.kind for e in ledger.entries] == ["genesis", "reserve"]
    assert not (tmp_path / "l-releases").exists()
    assert "1.0" not in str(caught.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_named_as_such(ledger, number):
    with pytest.raises(EgressError, match="not finite"):
        _release(ledger, torch.tensor([1.0, number, 0.0]))


def test_a_view_of_more_memory_carries_nothing_along(ledger):
    wide = torch.arange(30, dtype=torch.float32).reshape(3, 10)
    out = _release(ledger, wide[:, 0] / 10)
    assert len(out._payload) == 12


def test_numbers_that_change_after_the_check_do_not_change_what_leaves(ledger):
    values = GOOD.clone()
    out = _release(ledger, values)
    values.fill_(9.0)
    assert torch.equal(out.vector(), GOOD)


def test_a_receipt_takes_plain_facts_only(ledger):
    with pytest.raises(EgressError, match="plain value"):
        _release(ledger, GOOD, {"rows": [1, 2]})


def test_a_closed_or_invented_reservation_opens_nothing(ledger):
    gate, declared = Gate(ledger), Declaration(**DECLARED)
    reservation = _reserve(ledger)
    gate.release(reservation, declared, GOOD, private=True, facts={})
    forged = Reservation(seq=99, request="r", events=(EVENT,))
    free = Reservation(seq=reservation.seq, request="r", events=())
    for wrong, error in ((reservation, LedgerError), (forged, LedgerError), (free, EgressError)):
        with pytest.raises(error):
            gate.release(wrong, declared, GOOD, private=True, facts={})


def test_a_receipt_that_cannot_be_written_lets_nothing_out(ledger, monkeypatch):
    reservation = _reserve(ledger)

    def full(*_, **__):
        raise LedgerError("disk full")

    monkeypatch.setattr(ledger._chain, "append", full)
    with pytest.raises(LedgerError, match="disk full"):
        Gate(ledger).release(reservation, Declaration(**DECLARED), GOOD, private=True, facts={})


def test_only_the_gate_makes_an_outgoing():
    with pytest.raises(EgressError, match="only the egress gate"):
        Outgoing(object(), "update", b"rows", {})


def test_what_carries_no_guarantee_must_be_declared_so(ledger):
    with pytest.raises(EgressError, match="no mechanism"):
        Gate(ledger).release_unprotected(Declaration(**DECLARED), GOOD, facts={})
    out = Gate(ledger).release_unprotected(
        Declaration(**DECLARED | {"mechanism": "none"}), GOOD, facts={}
    )
    assert out.receipt["private"] is False
    assert ledger.events() == ()


def test_a_release_with_seeded_noise_is_marked_in_its_receipt(ledger):
    out = Gate(ledger).release(
        _reserve(ledger), Declaration(**DECLARED), GOOD, private=False, facts={}
    )
    assert out.receipt["private"] is False
