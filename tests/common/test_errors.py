"""Bad input: one error with every problem, across process borders too."""

from __future__ import annotations

import errno
import pickle

import pytest

from common.errors import InputError, Problems, problems_of, shown


def fail(*problems: str) -> None:
    raise InputError(*problems)


def test_an_error_holds_each_problem_and_prints_one_a_line() -> None:
    error = InputError("a: is missing", "b: is 3")
    assert error.problems == ("a: is missing", "b: is 3")
    assert str(error) == "a: is missing\nb: is 3"


def test_it_keeps_its_problems_when_it_comes_from_another_process() -> None:
    again = pickle.loads(pickle.dumps(InputError("a", "b")))
    assert type(again) is InputError and again.problems == ("a", "b")


def test_a_prefix_goes_before_each_problem_and_keeps_the_kind_of_error() -> None:
    class Newer(InputError):
        pass

    error = Newer("a", "b").prefixed("--data: ")
    assert type(error) is Newer and error.problems == ("--data: a", "--data: b")


def test_problems_of_several_steps_are_raised_together_each_once() -> None:
    problems = Problems()
    reached = []
    for step in (("a", "b"), ("b", "c")):
        with problems.collecting():
            fail(*step)
        reached.append(step)
    with problems.collecting(prefix="--data: "):
        fail("a")
    problems.add("c", "d")
    assert len(reached) == 2 and problems and len(problems) == 5
    with pytest.raises(InputError) as caught:
        problems.check()
    assert caught.value.problems == ("a", "b", "c", "--data: a", "d")


def test_no_problem_raises_nothing() -> None:
    problems = Problems()
    with problems.collecting():
        pass
    problems.check()
    assert not problems and list(problems) == []


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EACCES, "no"), KeyError("k")])
def test_a_mistake_of_ours_is_not_taken_for_bad_input(error: Exception) -> None:
    problems = Problems()
    with pytest.raises(type(error)), problems.collecting():
        raise error
    assert problems_of(error) is None and not problems


def test_a_name_that_no_file_can_have_is_bad_input() -> None:
    error = OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000)
    (told,) = problems_of(error) or ()
    assert "no file of so long a name" in told and len(told) < 400
    problems = Problems()
    with problems.collecting():
        open("y" * 5000)  # noqa: SIM115
    assert len(problems) == 1


def test_the_middle_of_a_long_path_is_left_out() -> None:
    assert shown("a" * 200) == "a" * 200
    assert (
        shown("a" * 100 + "b" * 801 + "c" * 100) == f"{'a' * 100}...{'c' * 100} (1,001 characters)"
    )
