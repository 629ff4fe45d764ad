"""What is known of images that cannot be read."""

from __future__ import annotations

from ssmsam.service import images as module
from ssmsam.service.images import RETRY_S, SetAside


def test_a_file_is_tried_again_when_it_changes() -> None:
    state = {"a": 1}
    aside = SetAside(state.get)
    aside.note("a", "damaged")
    assert aside.reason("a") == "damaged" and aside.reason("b") == ""
    state["a"] = 2
    assert aside.reason("a") == "" and aside.as_json() == []
    state["a"] = 1  # it was forgotten: what comes back is looked at anew
    assert aside.reason("a") == ""


def test_what_has_no_state_is_tried_again_after_a_while() -> None:
    now = [100.0]
    aside = SetAside(lambda image: None, clock=lambda: now[0])
    aside.note("1.2.3", "the archive does not send it")
    now[0] += RETRY_S - 1
    assert aside.reason("1.2.3")
    assert aside.as_json() == [{"image": "1.2.3", "reason": "the archive does not send it", "since": 100.0}]
    now[0] += 2
    assert aside.reason("1.2.3") == ""


def test_what_was_read_is_cleared() -> None:
    aside = SetAside(lambda image: 1)
    aside.note("a", "damaged")
    aside.clear("a")
    aside.clear("never seen")
    assert aside.reason("a") == ""


def test_not_more_than_so_many_are_remembered(monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    aside = SetAside(lambda image: 1)
    for number in range(5):
        aside.note(str(number), "damaged")
    assert [one["image"] for one in aside.as_json()] == ["4", "3", "2"]
