"""What a builder is to do for an import."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Order:
    """An import that this builder holds, accepted or taken over.

    `waiting` are the builds that have not ended, their ids by slug; `built` and `failed` are the slugs of those that
    have, on other builders. `interruption` says why these don't work on it any more, `times_lost` how many were lost.
    """

    import_id: str
    example: str
    actor: str
    waiting: dict[str, str]
    built: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    interruption: str | None = None
    times_lost: int = 0
