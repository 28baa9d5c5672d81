import pytest

from privacy.accounting import GaussianEvent, epsilon_spent
from privacy.ledger import Ledger
from silotune.errors import BudgetError, LedgerError

EVENT = GaussianEvent(sampling_rate=0.25, noise_multiplier=1.5, steps=4)
BUDGET = {"epsilon": 4.0, "delta": 1e-4}


def _release(ledger, request="r", payload=b"numbers"):
    reservation = ledger.reserve(request, [EVENT], {"job": "j"}, **BUDGET)
    return reservation, ledger.record_release(reservation, payload, {"name": "update"})


def test_spend_composes_over_jobs_kinds_of_event_and_restarts(tmp_path):
    other = GaussianEvent(sampling_rate=1.0, noise_multiplier=20.0, steps=1)
    with Ledger(tmp_path / "l.db") as ledger:
        assert ledger.spent(1e-4) == 0.0
        ledger.reserve("a", [EVENT], {"job": "one"}, **BUDGET)
    with Ledger(tmp_path / "l.db") as ledger:
        ledger.reserve("b", [EVENT, other], {"job": "two"}, **BUDGET)
        assert ledger.events() == (EVENT, EVENT, other)
        assert ledger.spent(1e-4) == epsilon_spent([EVENT, EVENT, other], delta=1e-4)
        assert ledger.entries[-1].body["epsilon_after"] == ledger.spent(1e-4)


def test_the_refusal_says_what_is_spent_and_left_and_records_nothing(tmp_path):
    with Ledger(tmp_path / "l.db") as ledger:
        ledger.reserve("a", [EVENT], {}, **BUDGET)
        count, spent = len(ledger.entries), ledger.spent(1e-4)
        with pytest.raises(
            BudgetError, match=rf"spent ε = {spent:.3f} of 4 .*left {4 - spent:.3f}"
        ):
            ledger.reserve("b", [EVENT] * 40, {}, **BUDGET)
        assert len(ledger.entries) == count


def test_a_reservation_allows_one_release_and_no_second(tmp_path):
    with Ledger(tmp_path / "l.db") as ledger:
        reservation, _ = _release(ledger)
        with pytest.raises(LedgerError, match="not open"):
            ledger.record_release(reservation, b"other numbers", {"name": "update"})
        with pytest.raises(LedgerError, match="answered before"):
            ledger.reserve("r", [EVENT], {}, **BUDGET)
        assert len(ledger.events()) == 1


def test_a_reservation_of_an_earlier_process_is_spent_and_closed(tmp_path):
    with Ledger(tmp_path / "l.db") as ledger:
        reservation = ledger.reserve("r", [EVENT], {}, **BUDGET)
    with Ledger(tmp_path / "l.db") as ledger:
        assert ledger.events() == (EVENT,)
        with pytest.raises(LedgerError, match="not open"):
            ledger.record_release(reservation, b"late", {"name": "update"})
        assert ledger.stored("r") is None


def test_a_release_is_stored_and_given_again(tmp_path):
    with Ledger(tmp_path / "l.db") as ledger:
        reservation, _ = _release(ledger)
        ledger.settle(reservation.seq)
    with Ledger(tmp_path / "l.db") as ledger:
        payload, entry = ledger.stored("r")
        assert payload == b"numbers"
        assert entry.body["bytes"] == 7
        assert ledger.stored("other") is None
        assert [e.kind for e in ledger.entries] == ["genesis", "reserve", "release", "settle"]


def test_old_payloads_are_dropped_and_their_requests_are_not_trained_again(tmp_path):
    with Ledger(tmp_path / "l.db") as ledger:
        wide = {"epsilon": 100.0, "delta": 1e-4}
        for i in range(10):
            reservation = ledger.reserve(f"r{i}", [EVENT], {}, **wide)
            ledger.record_release(reservation, b"x" * i, {"name": "update"})
        assert len(list((tmp_path / "l-releases").iterdir())) == 8
        with pytest.raises(LedgerError, match="no longer kept"):
            ledger.stored("r0")
        with pytest.raises(LedgerError, match="answered before"):
            ledger.reserve("r0", [EVENT], {}, **wide)


def test_the_payload_is_on_disk_before_its_receipt(tmp_path, monkeypatch):
    with Ledger(tmp_path / "l.db") as ledger:
        reservation = ledger.reserve("r", [EVENT], {}, **BUDGET)
        monkeypatch.setattr("privacy.ledger.write_whole", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ledger.record_release(reservation, b"numbers", {"name": "update"})
        assert ledger.entries[-1].kind == "reserve"


def test_a_reservation_without_cost_is_refused(tmp_path):
    with Ledger(tmp_path / "l.db") as ledger, pytest.raises(LedgerError, match="without cost"):
        ledger.reserve("r", [], {}, **BUDGET)


def test_a_budget_that_is_not_a_number_lets_nothing_through(tmp_path):
    with Ledger(tmp_path / "l.db") as ledger, pytest.raises(BudgetError):
        ledger.reserve("r", [EVENT], {}, epsilon=float("nan"), delta=1e-4)
