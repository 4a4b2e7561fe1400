"""Env shards move from one actor to another, or back to where they stood before a ticket, and go on exactly."""

from __future__ import annotations

from typing import Any

from rollcall.actors.envs.env_config import EnvConfig


def test_a_shard_goes_on_exactly_with_the_actor_that_took_it_over(make_actor: Any, make_ticket: Any) -> None:
    reference, one, two = (
        make_actor("CartPole-v1", num_shards=2, actor_id=name) for name in ("gym-r", "gym-0", "gym-1")
    )
    expected = [reference.produce(make_ticket(i, shard=i % 2))[1].digest() for i in range(6)]
    found = [one.produce(make_ticket(i, shard=i % 2))[1].digest() for i in range(4)]
    moves, state = one.shard_state(1)
    assert moves and state is not None
    one.take_over(1, None)
    two.take_over(1, state)
    found += [one.produce(make_ticket(4, shard=0))[1].digest(), two.produce(make_ticket(5, shard=1))[1].digest()]
    assert found == expected
    assert [list(actor.shard_states()[1]) for actor in (one, two)] == [["0"], ["1"]], "nobody has it twice"
    assert two.shard_state(0) == (True, None), "of a shard that it never had there is nothing to move"


def test_a_shard_whose_envs_cannot_be_restored_stays(make_actor: Any, make_ticket: Any) -> None:
    actor = make_actor(EnvConfig(id="CartPole-v1", vectorization="async"), num_envs=2)
    actor.produce(make_ticket(0))
    assert actor.shard_state(0) == (False, None)
    actor.close()


def test_shards_are_given_as_they_were_before_the_tickets_that_are_undone(make_actor: Any, make_ticket: Any) -> None:
    actor, again = (make_actor("CartPole-v1", num_shards=2, can_go_back=True) for _ in "ab")
    digests = [actor.produce(make_ticket(i, shard=i % 2))[1].digest() for i in range(4)]
    again.restore_shards(*actor.shard_states({3}))
    following = actor.produce(make_ticket(4, shard=0))[1].digest()
    assert again.produce(make_ticket(4, shard=0))[1].digest() == following, "ticket 2 counts"
    assert again.produce(make_ticket(3, shard=1))[1].digest() == digests[3], "ticket 3 comes anew"
