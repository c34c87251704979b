"""Make an S3 server ready: `python -m infra.provision`; safe to run again, which also renews keys and policies.

Reads STOWAGE_S3_ENDPOINT, STOWAGE_S3_ACCESS_KEY and STOWAGE_S3_SECRET_KEY (an administrator's), STOWAGE_S3_BUCKET,
STOWAGE_S3_REGION, and the keys that each service is to have from the variables in which the service has them:
STOWAGE_REGISTRY_S3_ACCESS_KEY, STOWAGE_REGISTRY_S3_SECRET_KEY, … Each may be a file, …_FILE.
STOWAGE_S3_USERS=none makes the bucket only.
"""

import argparse
import json
import sys

from infra.provision.policies import RIGHTS, policy_of
from infra.provision.server import Credentials, ProvisionError, Server, make_bucket
from infra.provision.users import ensure_users
from libs.common.settings import SettingsError, read_variables

_DEFAULTS = {"STOWAGE_S3_BUCKET": "stowage", "STOWAGE_S3_REGION": "us-east-1", "STOWAGE_S3_USERS": "all"}


def main() -> int:
    """Run the command; 0, 1 when it could not be done, 2 when the variables are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.provision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", action="store_true", help="only print the policy of each service, as JSON")
    only_policies = parser.parse_args().policies
    try:
        if only_policies:
            bucket = _variables("STOWAGE_S3_BUCKET")[0]
            json.dump({service: policy_of(service, bucket) for service in RIGHTS}, sys.stdout, indent=2)
            sys.stdout.write("\n")
            return 0
        _provision()
    except SettingsError as error:
        sys.stderr.write(f"provision: {error}\n")
        return 2
    except ProvisionError as error:
        sys.stderr.write(f"provision: {error}\n")
        return 1
    return 0


def _provision() -> None:
    endpoint, bucket, region, users = _variables(
        "STOWAGE_S3_ENDPOINT", "STOWAGE_S3_BUCKET", "STOWAGE_S3_REGION", "STOWAGE_S3_USERS"
    )
    if users not in ("all", "none"):
        raise SettingsError(f"STOWAGE_S3_USERS is {users}; it may be all or none")
    server = Server(endpoint, bucket, region, _credentials("STOWAGE"))
    services = {name: _credentials(f"STOWAGE_{name.upper()}") for name in RIGHTS} if users == "all" else {}
    made = make_bucket(server)
    sys.stdout.write(f"bucket {bucket}: {'made' if made else 'there'}\n")
    if services:
        ensure_users(server, services)
        for name, credentials in services.items():
            sys.stdout.write(f"user {credentials.access_key}: may do what the {name} needs\n")


def _credentials(prefix: str) -> Credentials:
    access_key, secret_key = _variables(f"{prefix}_S3_ACCESS_KEY", f"{prefix}_S3_SECRET_KEY")
    return Credentials(access_key, secret_key)


def _variables(*names: str) -> list[str]:
    values = _DEFAULTS | read_variables(names)
    missing = [name for name in names if not values.get(name)]
    if missing:
        raise SettingsError(f"{', '.join(missing)} must be set, or a file that {missing[0]}_FILE names")
    return [values[name] for name in names]


if __name__ == "__main__":
    sys.exit(main())
