"""Sessions of the cache against recomputation by the graph without one: any order of calls, any mix of rows."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as check_state_machine
from session_cases import CLOSE, CONTEXT, VOCABULARY, after, each_runtime, executables

from mlperf_opt.errors import SessionError
from mlperf_opt.runtimes import complete, continuations, stepwise


class AnySession(RuleBasedStateMachine):
    """The model of a session is a list of tokens a row; every answer must be what recomputing that list gives."""

    runtime = "numpy"

    @initialize(rows=st.integers(1, 3), capacity=st.integers(1, CONTEXT))
    def start(self, rows, capacity):
        self.session = executables(self.runtime)[1].start(rows, capacity)
        self.capacity = capacity
        self.rows = [[] for _ in range(rows)]

    def check(self, logits):
        expected = [after(row, self.runtime) for row in self.rows]
        np.testing.assert_allclose(logits, expected, **CLOSE)
        assert self.session.positions.tolist() == [len(row) for row in self.rows]

    @rule(data=st.data(), length=st.integers(1, CONTEXT))
    def prefill(self, data, length):
        rows = len(self.rows)
        tokens = data.draw(st.lists(st.lists(token, min_size=length, max_size=length), min_size=rows, max_size=rows))
        counts = data.draw(st.lists(st.integers(1, length), min_size=rows, max_size=rows))
        if any(len(row) + count > self.capacity for row, count in zip(self.rows, counts, strict=True)):
            with pytest.raises(SessionError, match="the cache is full: row"):
                self.session.prefill(np.array(tokens), np.array(counts))
            assert self.session.positions.tolist() == [len(row) for row in self.rows]
            return
        logits = self.session.prefill(np.array(tokens), np.array(counts))
        for row, new, count in zip(self.rows, tokens, counts, strict=True):
            row.extend(new[:count])
        self.check(logits)

    @rule(data=st.data())
    def decode(self, data):
        tokens = data.draw(st.lists(token, min_size=len(self.rows), max_size=len(self.rows)))
        if any(len(row) == self.capacity for row in self.rows):
            with pytest.raises(SessionError, match="the cache is full: row"):
                self.session.decode(np.array(tokens))
            return
        logits = self.session.decode(np.array(tokens))
        for row, new in zip(self.rows, tokens, strict=True):
            row.append(new)
        self.check(logits)

    @rule(data=st.data())
    def truncate_each(self, data):
        lengths = [data.draw(st.integers(0, len(row))) for row in self.rows]
        self.session.truncate(np.array(lengths))
        self.rows = [row[:length] for row, length in zip(self.rows, lengths, strict=True)]

    @rule(data=st.data())
    def truncate_all(self, data):
        length = data.draw(st.integers(0, min(map(len, self.rows))))
        self.session.truncate(length)
        self.rows = [row[:length] for row in self.rows]

    @precondition(lambda self: any(len(row) < CONTEXT for row in self.rows))
    @rule()
    def truncate_beyond(self):
        """Refused whole: no row moves."""
        row = min(range(len(self.rows)), key=lambda row: len(self.rows[row]))
        with pytest.raises(SessionError, match=f"row {row}: can't truncate to {len(self.rows[row]) + 1} tokens; it holds"):
            self.session.truncate(len(self.rows[row]) + 1)
        assert self.session.positions.tolist() == [len(row) for row in self.rows]


token = st.integers(0, VOCABULARY - 1)


@each_runtime
def test_any_order_of_calls_gives_what_recomputing_gives(runtime):
    machine = type("SessionOf" + runtime, (AnySession,), {"runtime": runtime})
    check_state_machine(machine, settings=settings(max_examples=60, stateful_step_count=12, deadline=None))


@each_runtime
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_prompts_of_mixed_lengths_go_on_side_by_side(runtime, positions, rng):
    """What pads a short prompt is never seen: here it is a token that would change everything."""
    prompts, lengths = rng.integers(0, VOCABULARY - 1, (4, 5)), np.array([1, 5, 3, 4])
    prompts[np.arange(5) >= lengths[:, None]] = VOCABULARY - 1
    rows = [prompt[:length].tolist() for prompt, length in zip(prompts, lengths, strict=True)]
    session = executables(runtime, positions)[1].start(4, CONTEXT)
    logits = session.prefill(prompts, lengths)
    for _ in range(3):
        np.testing.assert_allclose(logits, [after(row, runtime, positions) for row in rows], **CLOSE)
        new = rng.integers(0, VOCABULARY, 4)
        logits = session.decode(new)
        rows = [[*row, int(token)] for row, token in zip(rows, new, strict=True)]
    assert session.positions.tolist() == [4, 8, 6, 7]


@each_runtime
def test_a_prompt_in_pieces_is_the_prompt(runtime, rng):
    tokens = rng.integers(0, VOCABULARY, (2, 7))
    whole, pieces = (executables(runtime)[1].start(2, CONTEXT) for _ in range(2))
    expected = whole.prefill(tokens)
    pieces.prefill(tokens[:, :3])
    pieces.prefill(tokens[:, 3:5])
    np.testing.assert_allclose(pieces.prefill(tokens[:, 5:]), expected, **CLOSE)


@each_runtime
def test_another_branch_after_truncating_forgets_the_first(runtime):
    """As a search does: the tokens behind the cut are overwritten, and until then not looked at."""
    session = executables(runtime)[1].start(1, CONTEXT)
    session.prefill(np.array([[1, 2, 3, 4, 5]]))
    session.truncate(2)
    np.testing.assert_allclose(session.decode(np.array([7]))[0], after([1, 2, 7], runtime), **CLOSE)
    session.truncate(0)
    np.testing.assert_allclose(session.prefill(np.array([[6]]))[0], after([6], runtime), **CLOSE)


@each_runtime
def test_a_row_can_be_cut_while_the_others_stay(runtime):
    session = executables(runtime)[1].start(3, CONTEXT)
    session.prefill(np.array([[1, 2, 3], [4, 5, 6], [7, 8, 0]]))
    session.truncate(np.array([3, 1, 0]))
    assert session.positions.tolist() == [3, 1, 0]
    found = session.decode(np.array([2, 2, 2]))
    np.testing.assert_allclose(found, [after(row, runtime) for row in ([1, 2, 3, 2], [4, 2], [2])], **CLOSE)


@each_runtime
@pytest.mark.parametrize("width", [CONTEXT + 1, 40, 3000])
def test_prompts_may_be_padded_to_more_than_there_is_room_for(runtime, width):
    """What pads every row takes no room, in the cache or anywhere else."""
    session, exact = (executables(runtime)[1].start(2, CONTEXT) for _ in range(2))
    tokens, lengths = np.ones((2, width), np.int64), np.array([3, 4])
    np.testing.assert_allclose(session.prefill(tokens, lengths), exact.prefill(tokens[:, :4], lengths), **CLOSE)
    np.testing.assert_allclose(session.decode(np.array([2, 5])), exact.decode(np.array([2, 5])), **CLOSE)


@each_runtime
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int16])
def test_tokens_are_whole_numbers_of_any_width(runtime, dtype):
    session = executables(runtime)[1].start(2, CONTEXT)
    prompts = np.array([[1, 2, 3], [4, 5, 6]], dtype)
    np.testing.assert_allclose(session.prefill(prompts), [after(row, runtime) for row in prompts.tolist()], **CLOSE)
    found = session.decode(np.array([7, 8], dtype))
    np.testing.assert_allclose(found, [after([1, 2, 3, 7], runtime), after([4, 5, 6, 8], runtime)], **CLOSE)


@each_runtime
def test_positions_are_a_copy(runtime):
    session = executables(runtime)[1].start(1, 4)
    session.prefill(np.array([[1, 2]]))
    session.positions[:] = 0
    assert session.positions.tolist() == [2]


@each_runtime
def test_the_state_is_allocated_once_and_for_the_capacity_that_was_asked_for(runtime):
    """2 layers, keys and values, 3 rows, 5 places, width 8, float32; and an int64 position a row.

    The compiled runtime fills rows up to whole vectors of 16: places of keys, width of values.
    """
    session = executables(runtime)[1].start(3, 5)
    exact = 2 * 2 * 3 * 5 * 8 * 4 + 3 * 8
    held = session.state_bytes
    assert held == exact if runtime != "compiled" else exact < held <= 16 * exact
    session.prefill(np.ones((3, 4), np.int64))
    session.decode(np.ones(3, np.int64))
    assert session.state_bytes == held


@each_runtime
def test_a_call_and_another_session_do_not_disturb_a_session(runtime):
    executable = executables(runtime)[1]
    session, other = executable.start(1, CONTEXT), executable.start(2, 4)
    session.prefill(np.array([[1, 2, 3]]))
    executable(np.array([[5, 5, 5, 5, 5]]))
    other.prefill(np.array([[8, 8], [7, 7]]))
    np.testing.assert_allclose(session.decode(np.array([4]))[0], after([1, 2, 3, 4], runtime), **CLOSE)


@each_runtime
@pytest.mark.parametrize("length", [1, 4, CONTEXT])
def test_one_step_at_a_time_is_the_whole(runtime, length, rng):
    plain, cached = executables(runtime)
    tokens = rng.integers(0, VOCABULARY, (3, length))
    expected = plain(tokens)
    assert expected.shape == (3, length, VOCABULARY)
    for executable in (plain, cached):
        np.testing.assert_allclose(stepwise(executable, tokens), expected, **CLOSE)
    np.testing.assert_allclose(cached(tokens), expected, **CLOSE)


@each_runtime
@pytest.mark.parametrize("shape", [(1, 0), (0, 2), (1, 9)])
def test_a_call_of_a_cached_graph_has_the_limits_of_a_session(runtime, shape):
    with pytest.raises(SessionError, match=r"expected at least 1|expected 1 to 8, the context of net"):
        executables(runtime)[1](np.zeros(shape, np.int64))


def greedily(row, count, runtime):
    """Count tokens, each the likeliest after everything before it."""
    row = list(row)
    for _ in range(count):
        row.append(int(after(row, runtime).argmax()))
    return row[-count:]


@each_runtime
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_completion_takes_the_likeliest_token_each_time(runtime, cached, count, rng):
    """6 after 3 is the most that fits: the last of them is never fed back."""
    prompts = rng.integers(0, VOCABULARY, (4, 3))
    executable = executables(runtime)[cached]
    expected = [greedily(row, count, runtime) for row in prompts.tolist()]
    np.testing.assert_array_equal(complete(executable, prompts, count), expected)
    np.testing.assert_array_equal(np.stack(list(continuations(executable, prompts, count)), axis=1), expected)


@each_runtime
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    "length, count, message",
    [
        (0, 3, "the prompt is empty"),
        (3, 0, "count=0: expected at least 1"),
        (3, -2, "count=-2: expected at least 1"),
        (3, 7, "3 tokens and 7 more don't fit the context of 8 tokens"),
        (9, 1, "9 tokens and 1 more don't fit"),
    ],
)
def test_a_completion_that_cannot_be_is_refused_before_any_work(runtime, cached, length, count, message):
    with pytest.raises(SessionError, match=message):
        next(continuations(executables(runtime)[cached], np.zeros((2, length), np.int64), count))
