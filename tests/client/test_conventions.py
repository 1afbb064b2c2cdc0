"""What people put around an optimizer gives, in each way, the parameters of the local loop."""

from functools import cache

import pytest
import torch
from curvserve_client import RemoteSession

from .conventions import CONVENTIONS
from .ways import WAYS, Local, Weights, seeded_network


@cache
def local(convention: str, joined: bool = True) -> Weights:
    """The parameters that the loop comes to in this process."""
    return CONVENTIONS[convention].run(Local(joined=joined))


def different(left: Weights, right: Weights, within: float = 0.0) -> list[str]:
    """The parameters that differ by more than a share of how far they have come."""
    assert left.keys() == right.keys()
    if not within:
        return [name for name in left if not torch.equal(left[name], right[name])]
    start = seeded_network()
    come = {name: (right[name] - start.get_parameter(name)).norm() for name in right}
    return [n for n in left if not (left[n] - right[n]).norm() <= within * come[n]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_convention_gives_the_parameters_of_the_local_loop_or_says_why_not(
    name: str, way: str, session: RemoteSession
) -> None:
    convention = CONVENTIONS[name]
    if way in convention.refused:
        with pytest.raises(RuntimeError, match=convention.refused[way]):
            convention.run(WAYS[way](session))
    else:
        found = convention.run(WAYS[way](session))
        expected = local(name, joined=way != "mirror")
        assert different(found, expected, convention.within.get(way, 0.0)) == []


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_convention_changes_what_it_is_for(name: str) -> None:
    assert (different(local(name), local("plain")) == []) is CONVENTIONS[name].like_plain
