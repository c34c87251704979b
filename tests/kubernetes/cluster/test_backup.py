"""A backup of bucket and database, in the order that docs/kubernetes.md gives, brings an installation back."""

import pytest

from tests.kubernetes.cluster.installation import Installation, until
from tests.kubernetes.kubectl import KubectlFailed

pytestmark = pytest.mark.timeout(900)

_BUCKET, _COPY = "stowage", "copy"
_FINAL = {"succeeded", "failed", "cancelled", "timed_out", "lost"}
_DUMP = ["pg_dump", "--host=127.0.0.1", "--username=stowage", "--format=custom", "--file=/tmp/dump", "postgres"]
_RESTORE = ["pg_restore", "--host=127.0.0.1", "--username=stowage", "--dbname=postgres", "--exit-on-error", "/tmp/dump"]
_LOSE = """
    DROP SCHEMA registry, builder, runner, audit CASCADE;
    DROP TABLE public.schema_migrations;
"""


def test_a_backup_brings_everything_back(installation: Installation) -> None:
    installation.apply("local")
    with installation.load(1.0, begin_with=8):  # the order is what makes it a backup, not silence
        known = _holdings(installation)
        _copy(installation, _BUCKET, _COPY, "audit/")
        _in_database(installation, *_DUMP)
        _copy(installation, _BUCKET, _COPY, "artifacts/", "logs/", "outputs/")
    with installation.load(1.0, begin_with=2):  # and something happens that is in no backup
        pass
    _lose_everything(installation)

    _copy(installation, _COPY, _BUCKET, "audit/", "artifacts/", "logs/", "outputs/")
    _in_database(installation, *_RESTORE)
    installation.start()
    _registry(installation, "scrub")
    _registry(installation, "audit-verify", "--public-key", installation.audit_public_key)
    until(lambda: all(run["state"] in _FINAL for run in _holdings(installation)["runs"].values()))
    found = _holdings(installation)
    assert known["versions"].items() <= found["versions"].items()
    over = {run_id: run for run_id, run in known["runs"].items() if run["state"] in _FINAL}
    assert over
    assert {run_id: found["runs"][run_id] for run_id in over} == over
    with installation.load(1.0, begin_with=2) as seen:  # and it goes on
        pass
    assert seen["failures"] == []
    assert {run["state"] for run in seen["runs"]} == {"succeeded"}


def test_scrub_finds_what_a_bucket_lacks_and_publishing_again_mends_it(installation: Installation) -> None:
    installation.apply("local")
    with installation.load(1.0, begin_with=2):
        pass
    _registry(installation, "scrub")
    assert installation.script("bucket", source=_BUCKET, target=None, prefixes=["artifacts/"]) > 0
    with pytest.raises(KubectlFailed):
        _registry(installation, "scrub")
    with installation.load(1.0, begin_with=2) as seen:
        pass
    assert {run["state"] for run in seen["runs"]} == {"succeeded"}
    _registry(installation, "scrub")


def _holdings(installation: Installation) -> dict[str, dict[str, dict[str, object]]]:
    held: dict[str, dict[str, dict[str, object]]] = installation.script("holdings")
    return held


def _copy(installation: Installation, source: str, target: str, *prefixes: str) -> None:
    installation.script("bucket", source=source, target=target, prefixes=prefixes)


def _in_database(installation: Installation, *command: str) -> None:
    """Run a program of PostgreSQL beside the server."""
    password = ["sh", "-c", 'PGPASSWORD="$POSTGRES_PASSWORD" exec "$@"', "sh"]
    installation.run("exec", "postgres-0", "--", *password, *command)


def _registry(installation: Installation, *command: str) -> None:
    installation.run("exec", "deployment/registry", "--", "python", "-m", "services.registry", *command)


def _lose_everything(installation: Installation) -> None:
    installation.stop()
    psql = ["psql", "--host=127.0.0.1", "--username=stowage", "--dbname=postgres", "--set=ON_ERROR_STOP=1"]
    _in_database(installation, *psql, f"--command={_LOSE}")
    installation.script("bucket", source=_BUCKET, target=None, prefixes=["artifacts/", "audit/", "logs/", "outputs/"])
