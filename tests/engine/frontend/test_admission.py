import pytest

from engine.frontend.admission import Admission
from engine.frontend.errors import Draining, Overloaded


def test_the_last_one_out_tells_that_it_is_idle():
    told = []
    admission = Admission(10, lambda: told.append(admission.num_inside), ignore)
    with admission.entered():
        with admission.entered():
            admission.drain()
        assert told == []
    assert told == [0]


def test_nobody_comes_in_while_draining():
    admission = Admission(10, lambda: None, ignore)
    admission.drain()
    with pytest.raises(Draining), admission.entered():
        pass
    assert admission.num_inside == 0


def test_an_empty_place_is_idle_at_once_and_again_when_asked_again():
    told = []
    admission = Admission(10, lambda: told.append("idle"), ignore)
    admission.drain()
    admission.drain()
    assert told == ["idle", "idle"]


def test_it_opens_again():
    admission = Admission(10, lambda: None, ignore)
    admission.drain()
    admission.open()
    with admission.entered():
        assert admission.num_inside == 1


def test_every_change_of_the_number_inside_is_told():
    told: list[int] = []
    admission = Admission(10, lambda: None, told.append)
    with admission.entered(), admission.entered():
        pass
    assert told == [1, 2, 1, 0]


def test_the_place_has_an_end():
    admission = Admission(2, lambda: None, ignore)
    with admission.entered():
        with admission.entered():
            with pytest.raises(Overloaded) as caught, admission.entered():
                pass
            assert caught.value.message == "2 requests are in flight: frontend.max_requests."
            assert (caught.value.status, caught.value.code) == (429, "overloaded")
            assert caught.value.headers["Retry-After"] == "1"
        with admission.entered():
            assert admission.num_inside == 2


def ignore(num_inside: int) -> None:
    pass
