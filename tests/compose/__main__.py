"""Bring infra/compose.yaml up, import the observatory, run its workflows, look at the containers, and take all down.

The images of the services are built before. Servers are those of POSTGRES_IMAGE and S3_IMAGE where they are set, and
else images that are made here (tests/containers), so that it needs no image registry but for the base image.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from infra.local.demo import DemoFailed, run_demo
from infra.local.home import StackInfo
from tests.compose.project import SERVICES, Project
from tests.containers.engine import STAND_INS, Engine, NoEngine, engine, run

_console = Console(width=160)


def main() -> int:
    """0 when all is as it should be, 1 with the reason when not, 2 where there is no engine."""
    try:
        with engine() as found:
            _try(found)
    except NoEngine as error:
        _console.print(f"test-compose can't run here: {error}")
        return 2
    except (AssertionError, DemoFailed, RuntimeError) as error:
        _console.print(f"[red]{type(error).__name__}[/red]: {error}", highlight=False)
        return 1
    return 0


def _try(found: Engine) -> None:
    project = Project(found, _images(found))
    _console.print(f"\nBringing up {project.name} with {found.program}")
    try:
        with project.checked():
            began = time.monotonic()
            project.compose("up", "--detach")
            project.until_ready()
            _console.print(f"ready after {time.monotonic() - began:.0f} s")
            token = project.compose("run", "--rm", "--no-deps", "setup", "cat", "/credentials/admin/token").strip()
            with tempfile.TemporaryDirectory() as folder:
                asyncio.run(run_demo(_info(project, token), _console, Path(folder) / "out"))
                assert (Path(folder) / "out" / "report.html").is_file(), "the workflow left no report"
            for check in _CHECKS:
                check(project)
                _console.print(f"  holds: {check.__doc__}")
    finally:
        project.compose("down", "--volumes", "--timeout", "5")


def _images(found: Engine) -> dict[str, str]:
    """The variables of compose.yaml that name images; whatever is not given by the environment is built."""
    _console.print("Building images")
    run(["make", "images", f"CONTAINER_ENGINE={found.program}", "IMAGE_PREFIX=stowage-test", "IMAGE_TAG=compose"])
    images = {"IMAGE_PREFIX": found.name_of("stowage-test"), "IMAGE_TAG": "compose"}
    for folder, variable in (("postgres", "POSTGRES_IMAGE"), ("s3", "S3_IMAGE")):
        if variable not in os.environ:
            found.build(folder, STAND_INS[folder])
        images[variable] = os.environ.get(variable, found.name_of(STAND_INS[folder]))
    return images


def _info(project: Project, token: str) -> StackInfo:
    return StackInfo(
        registry=project.url("registry"),
        builder=project.url("builder"),
        runner=project.url("runner"),
        s3={},
        database="",
        tokens={"admin": token},
        pid=os.getpid(),
    )


def _nobody_has_the_administrators_passwords(project: Project) -> None:
    """no service has an administrator's password in its environment"""
    for service in SERVICES:
        environment = project.inspect(service)["Config"]["Env"]
        assert not any(secret in line for line in environment for secret in project.passwords.values()), service


def _services_are_confined(project: Project) -> None:
    """services are user 10001, may write nowhere but /tmp and /scratch, and have no capabilities"""
    for service in SERVICES:
        facts = project.inspect(service)
        assert facts["Config"]["User"] == "10001:10001", service
        assert facts["HostConfig"]["ReadonlyRootfs"], service
        script = (
            "import os; caps = [line for line in open('/proc/1/status') if line.startswith(('Cap', 'NoNewPrivs'))]; "
            "print(os.getuid(), os.access('/opt/stowage', os.W_OK), os.access('/', os.W_OK), *map(str.split, caps))"
        )
        seen = project.compose("exec", "-T", service, "python", "-c", script)
        assert seen.startswith("10001 False False"), seen
        assert "['CapEff:', '0000000000000000']" in seen, seen
        assert "['NoNewPrivs:', '1']" in seen, seen


def _one_user_each(project: Project) -> None:
    """services have S3 keys of their own, and can't read each other's"""
    keys = set()
    for service in SERVICES:
        keys.add(project.compose("exec", "-T", service, "cat", f"/credentials/{service}/s3-access-key").strip())
        others = [f"/credentials/{other}/s3-secret-key" for other in (*SERVICES, "admin") if other != service]
        seen = project.compose(
            "exec", "-T", service, "python", "-c", f"import os; print([p for p in {others} if os.path.exists(p)])"
        )
        assert seen.strip() == "[]", seen
    assert len(keys) == len(SERVICES), keys


def _set_up_again(project: Project) -> None:
    """the set-up job may run again, and changes no token"""
    read = ("run", "--rm", "--no-deps", "setup", "cat", "/credentials/admin/token")
    before = project.compose(*read)
    project.compose("run", "--rm", "--no-deps", "setup")
    assert project.compose(*read) == before


def _stop_is_graceful(project: Project) -> None:
    """SIGTERM ends each service by itself, with code 0"""
    states = {service: project.inspect(service)["Id"] for service in SERVICES}
    project.compose("stop", *SERVICES)
    for service, container in states.items():
        code = project.engine.run("inspect", "--format", "{{.State.ExitCode}}", container).strip()
        assert code == "0", f"{service} ended with {code}"


_CHECKS: tuple[Callable[[Project], None], ...] = (
    _nobody_has_the_administrators_passwords,
    _services_are_confined,
    _one_user_each,
    _set_up_again,
    _stop_is_graceful,
)


if __name__ == "__main__":
    sys.exit(main())
