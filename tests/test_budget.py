"""How many tasks a process may still begin."""

from __future__ import annotations

from background_task.worker.budget import Budget


def test_what_was_taken_and_has_not_begun_is_not_spent() -> None:
    budget = Budget(3)
    begun = 0
    with budget.grant(5) as grant:
        assert (grant.most, budget.left, budget.is_spent) == (3, 3, False)
        grant.taken, grant.begun = 3, lambda: begun
    assert (budget.left, budget.is_spent) == (3, False)
    begun = 2
    assert (budget.left, budget.is_spent) == (1, False)
    begun = 3
    assert (budget.left, budget.is_spent) == (0, True)


def test_what_will_not_begin_may_be_taken_anew() -> None:
    budget = Budget(3)
    with budget.grant(3) as grant:
        grant.taken, grant.begun = 3, lambda: 1
    with budget.grant(3) as another:
        assert another.most == 0
    for _ in range(2):  # more often is no more than once
        budget.close(grant)
    with budget.grant(3) as another:
        assert another.most == 2
        another.taken = 2
    assert budget.is_spent


def test_what_was_not_found_may_be_taken_later() -> None:
    budget = Budget(3)
    with budget.grant(3) as grant:
        grant.taken = 1
    assert budget.left == 2
    assert Budget().left is None


def test_a_grant_goes_on_to_tell_how_many_might_have_been_taken() -> None:
    for most in (None, 5):
        with Budget(most).grant(3) as grant:
            grant.taken = 1
        assert grant.most == 3
