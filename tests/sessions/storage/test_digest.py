"""The digest of a state: equal exactly where the bits are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curvserve.sessions.storage import digest

W = torch.arange(6, dtype=torch.float32)
PINNED = "cc30aaa0000ee5f38dcf6824a8351a19"
Groups = dict[str, dict[str, Tensor]]


def test_the_digest_is_what_it_always_was() -> None:
    """A change here would have every journal that exists told as damaged."""
    assert digest({"parameters": {"w": W}, "buffers": {}}, {"damping": 0.5}) == PINNED


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_names_does_not_matter(names: list[str]) -> None:
    tensors = {name: W + ord(name) for name in names}
    alphabetic = {name: tensors[name] for name in sorted(names)}
    assert digest({"parameters": tensors}) == digest({"parameters": alphabetic})


@pytest.mark.parametrize(
    "other",
    [
        {"parameters": {"v": W}},
        {"buffers": {"w": W}},
        {"parameters": {"w": W}, "rule": {}},
        {"parameters": {"w": W.double()}},
        {"parameters": {"w": W.view(torch.int32)}},
        {"parameters": {"w": W.view(2, 3)}},
        {"parameters": {"w": W[:5]}},
        {"parameters": {"w": W, "empty": torch.empty(0)}},
        {"parameters": {"w": torch.cat([-W[:1], W[1:]])}},
    ],
    ids=["name", "group", "empty group", "dtype", "bits", "shape", "length", "empty", "-0.0"],
)
def test_whatever_differs_changes_the_digest(other: Groups) -> None:
    assert digest(other) != digest({"parameters": {"w": W}})


def test_the_scalars_belong_to_the_state() -> None:
    state = {"parameters": {"w": W}}
    assert digest(state, {"damping": 0.1}) != digest(state, {"damping": 0.1 + 2**-53})
    assert digest(state, {}) == digest(state)


@given(st.integers(0, 6 * 32 - 1))
def test_a_single_bit_changes_the_digest(bit: int) -> None:
    other = W.clone()
    other.view(torch.uint8)[bit // 8] ^= 1 << bit % 8
    assert digest({"parameters": {"w": other}}) != digest({"parameters": {"w": W}})


def test_strides_do_not_matter() -> None:
    matrix = torch.arange(6.0).view(2, 3)
    assert digest({"p": {"w": matrix.t()}}) == digest({"p": {"w": matrix.t().contiguous()}})
