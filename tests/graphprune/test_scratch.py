"""Room for intermediate results: the same memory each time, but for what does not fit or is of another kind."""

from __future__ import annotations

import torch

from graphprune.scratch import Scratch


def test_room_is_used_again_where_the_result_fits_and_is_of_the_same_kind() -> None:
    room, like = Scratch(6), torch.zeros(1)
    first = room.of((2, 3), like)
    again, wider, half = room.of((4,), like), room.of((7,), like), room.of((2, 3), like, torch.float16)
    assert first.shape == (2, 3) and first.data_ptr() == again.data_ptr()
    assert wider.shape == (7,) and wider.data_ptr() != first.data_ptr()
    assert half.dtype == torch.float16 and half.data_ptr() != first.data_ptr()
