"""Errors of users: the line, and its problem and hint apart."""

from __future__ import annotations

import pickle

import pytest

from adadf_dist.check.environment import gather_rank_info
from adadf_dist.data.remote.client import ServerUnreachableError
from adadf_dist.data.workers.process import DeadWorkerError
from adadf_dist.distributed.world import World
from adadf_dist.errors import DiskFullError, LostRankError, RunDirLockedError, UserError
from tests.helpers.ranks import run_ranks

KINDS = (UserError, LostRankError, DiskFullError, RunDirLockedError, ServerUnreachableError, DeadWorkerError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("parts", "line"),
    [
        (("out: no room", "free some space"), "out: no room; free some space"),
        (("out: no room; free some space",), "out: no room; free some space"),
        (("a: b; c", "d: e; f"), "a: b; c; d: e; f"),
    ],
)
def test_a_pickled_error_keeps_its_kind_message_and_hint(
    kind: type[UserError], parts: tuple[str, ...], line: str
) -> None:
    error = kind(*parts)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    for one in (error, copy):
        assert str(one) == line
        assert (one.message, one.hint) == (parts[0], "".join(parts[1:]))


def probe_workers(world: World, folders: tuple[str, ...]) -> list[tuple[str, str] | None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", folders[world.rank])
        problems = [rank.no_workers for rank in gather_rank_info(world)]
    return [problem and (problem.message, problem.hint) for problem in problems]


def test_an_error_of_one_rank_reaches_the_others_with_its_hint() -> None:
    long = "/tmp/" + "x: y; " * 20
    for good, bad in run_ranks(probe_workers, 2, ("/tmp", long)):
        assert good is None
        message, hint = bad
        assert message.startswith(f"TMPDIR: {long} is ") and message.endswith("for the sockets of worker processes")
        assert hint == "set TMPDIR to a shorter path such as /tmp"
