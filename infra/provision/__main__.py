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
from infra.provision.server import ProvisionError, make_bucket
from infra.provision.users import ensure_users
from infra.provision.variables import administered_server, credentials, required
from libs.common.settings import SettingsError


def main() -> int:
    """Run the command; 0, 1 when it could not be done, 2 when the variables are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.provision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", action="store_true", help="only print the policy of each service, as JSON")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="how long to wait for the server")
    options = parser.parse_args()
    try:
        if options.policies:
            (bucket,) = required("STOWAGE_S3_BUCKET")
            json.dump({service: policy_of(service, bucket) for service in RIGHTS}, sys.stdout, indent=2)
            sys.stdout.write("\n")
            return 0
        _provision(options.wait)
    except SettingsError as error:
        sys.stderr.write(f"provision: {error}\n")
        return 2
    except ProvisionError as error:
        sys.stderr.write(f"provision: {error}\n")
        return 1
    return 0


def _provision(wait_seconds: float) -> None:
    (users,) = required("STOWAGE_S3_USERS")
    if users not in ("all", "none"):
        raise SettingsError(f"STOWAGE_S3_USERS is {users}; it may be all or none")
    server = administered_server()
    services = {name: credentials(f"STOWAGE_{name.upper()}") for name in RIGHTS} if users == "all" else {}
    made = make_bucket(server, wait_seconds=wait_seconds)
    sys.stdout.write(f"bucket {server.bucket}: {'made' if made else 'there'}\n")
    if services:
        ensure_users(server, services)
        for name, keys in services.items():
            sys.stdout.write(f"user {keys.access_key}: may do what the {name} needs\n")


if __name__ == "__main__":
    sys.exit(main())
