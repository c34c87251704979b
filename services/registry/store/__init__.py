"""The registry's tables: functions from a connection to dataclasses. They never acquire, commit or see a request."""
