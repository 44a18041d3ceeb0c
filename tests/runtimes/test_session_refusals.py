"""What a session refuses, and an interrupted step: it stays as it was, or never holds more than it has room for."""

import numpy as np
import pytest
from session_cases import CLOSE, CONTEXT, VOCABULARY, after, each_runtime, executables

from mlperf_opt.errors import GraphError, SessionError


@each_runtime
def test_a_refused_call_leaves_the_session_as_it_was(runtime):
    session = executables(runtime)[1].start(2, 4)
    session.prefill(np.array([[1, 2, 3], [4, 5, 6]]), np.array([3, 2]))
    for refused in (
        lambda: session.prefill(np.array([[1, 1], [1, 1]])),
        lambda: session.prefill(np.array([[1], [1]]), np.array([1, 2])),
        lambda: session.decode(np.array([1])),
        lambda: session.truncate(np.array([3, 3])),
        lambda: session.truncate(np.array([1, 1, 1])),
        lambda: session.truncate(-1),
    ):
        with pytest.raises(SessionError):
            refused()
    assert session.positions.tolist() == [3, 2]
    found = session.decode(np.array([7, 8]))
    np.testing.assert_allclose(found, [after([1, 2, 3, 7], runtime), after([4, 5, 8], runtime)], **CLOSE)
    with pytest.raises(SessionError, match="the cache is full: row 0 holds 4 of 4 tokens, 1 more"):
        session.decode(np.array([7, 8]))


@each_runtime
def test_a_token_that_does_not_exist_is_refused(runtime):
    session = executables(runtime)[1].start(1, 4)
    for tokens in ([[VOCABULARY]], [[-1]], [[1, -(2**40)]]):
        with pytest.raises(GraphError, match=r"token ids must be 0\.\.8"):
            session.prefill(np.array(tokens))


@each_runtime
def test_a_token_that_does_not_exist_moves_no_row_of_any_chunk(runtime):
    rows = 70
    session = executables(runtime)[1].start(rows, 4)
    session.prefill(np.full((rows, 2), 3))
    wrong = np.ones(rows, np.int64)
    wrong[-1] = VOCABULARY
    for refused in (lambda: session.decode(wrong), lambda: session.prefill(np.stack([wrong, wrong], axis=1))):
        with pytest.raises(GraphError, match=r"token ids must be 0\.\.8"):
            refused()
    assert session.positions.tolist() == [2] * rows
    expected = np.tile(after([3, 3, 5], runtime), (rows, 1))
    np.testing.assert_allclose(session.decode(np.full(rows, 5)), expected, **CLOSE)


@each_runtime
def test_an_interrupted_step_takes_room_but_never_more_than_there_is(runtime):
    session = executables(runtime)[1].start(1, 4)
    session.prefill(np.array([[1]]))
    whole = session._run

    def interrupted(*given):
        whole(*given)
        raise KeyboardInterrupt

    session._run = interrupted
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            session.decode(np.array([2]))
    session._run = whole
    for _ in range(4 - int(session.positions[0])):
        session.decode(np.array([3]))
    assert session.positions.tolist() == [4]
    with pytest.raises(SessionError, match="the cache is full: row 0 holds 4 of 4 tokens"):
        session.decode(np.array([3]))
    assert session.positions.tolist() == [4]


@each_runtime
@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool])
def test_tokens_that_are_no_whole_numbers_are_refused(runtime, dtype):
    session = executables(runtime)[1].start(1, CONTEXT)
    with pytest.raises(SessionError, match="tokens are whole numbers, got"):
        session.prefill(np.zeros((1, 3), dtype))
    assert session.positions.tolist() == [0]
