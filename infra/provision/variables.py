"""What the set-up is told by its environment, or by files: `<VARIABLE>_FILE`."""

from infra.provision.server import Credentials, Server
from libs.common.settings import SettingsError, read_variables

_DEFAULTS = {"STOWAGE_S3_BUCKET": "stowage", "STOWAGE_S3_REGION": "us-east-1", "STOWAGE_S3_USERS": "all"}


def required(*names: str) -> list[str]:
    """The values of these variables, or SettingsError that names those that are missing."""
    values = _DEFAULTS | read_variables(names)
    missing = [name for name in names if not values.get(name)]
    if missing:
        raise SettingsError(f"{', '.join(missing)} must be set, or a file that {missing[0]}_FILE names")
    return [values[name] for name in names]


def credentials(prefix: str) -> Credentials:
    """The S3 keys in <prefix>_S3_ACCESS_KEY and <prefix>_S3_SECRET_KEY."""
    access_key, secret_key = required(f"{prefix}_S3_ACCESS_KEY", f"{prefix}_S3_SECRET_KEY")
    return Credentials(access_key, secret_key)


def administered_server() -> Server:
    """The S3 server, with an administrator's keys."""
    endpoint, bucket, region = required("STOWAGE_S3_ENDPOINT", "STOWAGE_S3_BUCKET", "STOWAGE_S3_REGION")
    return Server(endpoint, bucket, region, credentials("STOWAGE"))
