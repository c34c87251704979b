"""Nothing is lost, whatever is killed, paused or cut off while runs are under way."""

from pathlib import Path

from tests.chaos.campaign import campaign

_SEED = 20261123
_SECONDS = 25


async def test_nothing_is_lost_while_runners_servers_and_connections_go(tmp_path: Path) -> None:
    print(f"seed {_SEED}")  # noqa: T201  # shown when it fails
    verdict = await campaign(_SEED, _SECONDS, tmp_path, print)
    assert verdict.wrong == []
    assert verdict.states["succeeded"] > 10
