"""The cluster's settings: typed, validated rows in Postgres, the same on every node, live.

A node reads them when it starts and whenever they are announced as changed; ``LiveSettings.now``
is what holds at this moment.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from repo_node.cron import check_cron
from sharding.tally import WritePolicy

GRACE_SECONDS_MIN = 0 if os.environ.get("HOLDFAST_TEST_WITHOUT_GRACE") else 60
"""A grace much shorter than a client's pause between two steps of one job deletes what is about to be wanted."""

QUARANTINE_SECONDS_MIN = 3600
AUDIT_DAYS_MIN = 30

RISKS: Mapping[str, tuple[float, str]] = {
    "redundancy": (2, "the only copy of a blob is lost with its disk"),
    "write_quorum": (2, "an upload that was just acknowledged is lost with one disk"),
    "lost_after_seconds": (30, "a node that restarts has its shards declared lost and copied"),
    "gc_grace_seconds": (3600, "content is removed that a client is about to use again"),
    "removal_delay_seconds": (
        3600,
        "after a failover or a restore that goes back in time, files are gone that it needs",
    ),
    "backups_kept": (1, "a lost database cannot be restored from the shards"),
}
"""Below which value a setting that may be so low risks what."""

PLAIN = r"^[^\x00-\x1f\x7f]*$"
"""Text that can stand in a log, a header and on a terminal."""

Cron = Annotated[str, Field(max_length=100, pattern=PLAIN), AfterValidator(check_cron)]


LIMITS_OF_A_NODE = ("uploads_in_flight_max", "requests_per_user_max", "stale_entries_max")
"""What a node of several processes divides among them."""


class SettingError(ValueError):
    """A setting has an unknown name or a value it cannot take; the message says what would be right."""


class Settings(BaseModel):
    """Every cluster setting with its default. Units stand last in the names."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)

    redundancy: int = Field(2, ge=1, le=16, description="copies wanted of every blob")
    write_quorum: int | None = Field(
        None, ge=1, le=16, description="durable copies an acknowledgement needs; null: min(redundancy, 2)"
    )
    write_zones_min: int = Field(1, ge=1, le=16, description="zones an acknowledged upload must reach")
    body_bytes_max: int = Field(64 << 30, ge=0, description="largest upload, in bytes")
    uploads_in_flight_max: int = Field(256, ge=1, le=100_000, description="uploads one node runs at once")
    requests_per_user_max: int = Field(1000, ge=1, le=1_000_000, description="requests of one user a node runs at once")
    upload_seconds_max: float = Field(86_400, ge=60, le=604_800, description="age at which an upload can't commit")
    upload_silence_seconds_max: float = Field(
        30, gt=0, le=86_400, description="so long without Postgres, an upload is ended in the middle of its body"
    )
    commit_wait_seconds: float = Field(20, gt=0, le=600, description="how long an upload waits for slow shards")
    commit_gather_milliseconds: int = Field(
        20, ge=0, le=1000, description="how long an upload waits for others about to be committed, to share a statement"
    )
    outcome_wait_seconds: float = Field(10, gt=0, le=600, description="how long a commit of unknown outcome is asked")
    read_hedge_seconds: float = Field(1, gt=0, le=60, description="a read this slow also asks another replica")
    transfer_blocks_max: int = Field(
        16, ge=1, le=100_000, description="blocks of 1 MiB a process' transfers hold in memory before they take turns"
    )
    transfer_wait_seconds: float = Field(
        1, gt=0, le=600, description="after which a transfer goes on although others hold that many blocks"
    )
    hot_blob_bytes_max: int = Field(
        64 << 10, ge=0, le=1 << 20, description="largest blob of other nodes' shards that a process keeps in memory"
    )
    hot_blobs_bytes_max: int = Field(
        16 << 20, ge=0, le=1 << 36, description="bytes of such blobs that a process keeps in all; 0: none"
    )
    retry_after_seconds: int = Field(2, ge=1, le=3600, description="Retry-After of every 429 and 503")
    heartbeat_seconds: float = Field(2, ge=0.1, le=60, description="between two heartbeats of a node")
    node_down_seconds: float = Field(10, ge=0.5, le=600, description="silence after which a node counts as down")
    password_cache_seconds: float = Field(60, ge=0, le=3600, description="how long a checked password is remembered")
    login_failures_max: int = Field(
        10, ge=0, le=1_000_000, description="wrong logins by one name after which none is accepted; 0: any number"
    )
    login_failures_per_address_max: int = Field(
        100, ge=0, le=1_000_000, description="wrong logins from one address after which none is accepted; 0: any number"
    )
    login_lock_seconds: float = Field(
        300, ge=1, le=86_400, description="after the last wrong login, until logins are accepted again"
    )
    password_characters_min: int = Field(8, ge=1, le=256, description="least characters of a new password")
    password_kinds_min: int = Field(
        1, ge=1, le=4, description="of small letters, capital letters, digits and others, how many a new password has"
    )
    token_seconds_default: int = Field(
        31_536_000, ge=1, le=316_224_000, description="lifetime of a token for which none is asked, by access/api/v1"
    )
    refresh_token_days: float = Field(
        30, ge=0, le=3650, description="how long after the end of a token its refresh token still makes another one"
    )
    tokens_kept_days: float = Field(
        30, ge=1, le=3650, description="how long the rows of ended tokens and of used refresh tokens are kept"
    )
    tokens_idle_seconds: float = Field(
        3600, ge=0.1, le=604_800, description="between two looks for ended tokens and old wrong logins"
    )
    anonymous_access: bool = Field(
        False, description="whether who brings no credentials has the rights of the user anonymous"
    )
    hide_unauthorised_resources: bool = Field(
        False, description="whether who may not read a path hears that nothing is there, rather than a refusal"
    )
    stale_seconds_max: float = Field(
        300, ge=0, le=86_400, description="how long reads go on from memory while Postgres is away; 0: not at all"
    )
    stale_after_seconds: float = Field(
        1, gt=0, le=60, description="until a read that could be from memory gives up a Postgres that seems away"
    )
    stale_entries_max: int = Field(
        10_000, ge=0, le=1_000_000, description="artifacts a node remembers for that, with some 3 KiB each"
    )
    path_bytes_max: int = Field(1024, ge=64, le=2048, description="longest artifact path, in bytes")
    properties_bytes_max: int = Field(
        65_536, ge=1024, le=1 << 20, description="largest properties of one artifact or folder, in bytes of JSON"
    )
    downloads_flush_seconds: float = Field(
        10, ge=0.05, le=3600, description="for how long a node counts downloads before it tells Postgres of them"
    )
    downloads_counted_max: int = Field(
        20_000, ge=1, le=1_000_000, description="artifacts whose downloads a node counts at once, some 300 bytes each"
    )
    search_results_max: int = Field(500, ge=1, le=100_000, description="most results of one search")
    search_seconds_max: float = Field(4, gt=0, le=600, description="after which Postgres ends a search")
    aql_query_bytes_max: int = Field(65_536, ge=256, le=1 << 20, description="longest AQL query, in bytes")
    aql_nesting_max: int = Field(32, ge=4, le=100, description="brackets within brackets of an AQL query")
    aql_criteria_max: int = Field(1_000, ge=1, le=10_000, description="most comparisons of an AQL query")
    aql_offset_max: int = Field(1_000_000, ge=0, le=1_000_000_000, description="most results an AQL query may skip")
    aql_results_max: int = Field(
        1_000_000, ge=1, le=1_000_000_000, description="most results of an AQL query; one with more is refused"
    )
    aql_sorted_results_max: int = Field(
        100_000, ge=1, le=1_000_000, description="most results of one that is sorted, some 300 bytes of memory each"
    )
    aql_statements_at_once_max: int = Field(
        4, ge=1, le=100, description="statements of AQL queries that one process of a node runs at once"
    )
    aql_long_answers_at_once_max: int = Field(
        4, ge=1, le=1000, description="AQL answers of a thousand results or more that one process sends at once"
    )
    folder_download_items_max: int = Field(
        10_000, ge=1, le=1_000_000, description="most files of a folder that is sent as an archive"
    )
    folder_download_bytes_max: int = Field(
        10 << 30, ge=0, le=1 << 50, description="most bytes of a folder that is sent as an archive"
    )
    folder_downloads_in_flight_max: int = Field(
        10, ge=1, le=1000, description="folders that one process of a node sends as archives at once"
    )
    explode_archive_bytes_max: int = Field(
        1 << 30, ge=0, le=1 << 40, description="largest archive that is unpacked, in bytes"
    )
    explode_bytes_max: int = Field(
        8 << 30, ge=0, le=1 << 50, description="most bytes that an archive may hold, unpacked"
    )
    explode_entries_max: int = Field(10_000, ge=1, le=1_000_000, description="most entries of an archive")
    explode_atomic_entries_max: int = Field(
        1_000, ge=1, le=10_000, description="most files of an archive that are made visible at once"
    )
    explode_ratio_max: int = Field(100, ge=1, le=10_000, description="unpacked bytes for each byte of an archive")
    explode_depth_max: int = Field(64, ge=1, le=1_000, description="most segments of a path in an archive")
    explode_memory_bytes_max: int = Field(
        256 << 20, ge=64 << 20, le=1 << 40, description="memory of a process that unpacks an archive"
    )
    explode_seconds_max: int = Field(
        50, ge=1, le=86_400, description="how long unpacking may take; balancers wait as long for an answer"
    )
    explodes_in_flight_max: int = Field(
        4, ge=1, le=1000, description="archives that one process of a node unpacks at once"
    )
    repair_bytes_per_second_max: int = Field(
        64 << 20, ge=1 << 16, le=1 << 40, description="a node writes for repairs; 4 x for each further copy missing"
    )
    repair_copies_at_once: int = Field(12, ge=1, le=256, description="blobs a node copies at once for repairs")
    repair_rest_share: float = Field(
        6, ge=0, le=1000, description="rest after a copy while clients are served, in times of the copy's own"
    )
    repair_idle_seconds: float = Field(2, ge=0.05, le=3600, description="between two looks at the repair queue")
    repair_claim_seconds: float = Field(60, ge=1, le=3600, description="how long a node keeps a blob it repairs")
    repair_retry_seconds: float = Field(5, ge=0.05, le=3600, description="until a repair is tried again, at first")
    repair_retry_seconds_max: float = Field(300, ge=0.05, le=86_400, description="until it is tried again, at last")
    lost_after_seconds: float = Field(300, ge=1, le=604_800, description="silence after which a shard counts as lost")
    shard_retry_seconds: float = Field(10, ge=0.05, le=3600, description="between two tries to open a disk that failed")
    shard_give_up_seconds: float = Field(
        30,
        ge=0.1,
        le=86_400,
        description="silence of a disk after which its node closes it, to open it when it is back",
    )
    verdict_idle_seconds: float = Field(2, ge=0.05, le=3600, description="between two looks at silent shards")
    walk_idle_seconds: float = Field(2, ge=0.05, le=3600, description="between two looks for shards to walk over")
    drain_pass_seconds: float = Field(30, ge=0.05, le=86_400, description="between two passes over a draining shard")
    lost_pass_seconds: float = Field(3600, ge=0.05, le=604_800, description="between two passes over a lost shard")
    census_idle_seconds: float = Field(2, ge=0.05, le=3600, description="between two looks for a census to take")
    census_period_seconds: float = Field(86_400, ge=1, le=31_536_000, description="between two counts of all copies")
    rebalance_bytes_per_second_max: int = Field(
        32 << 20, ge=1 << 16, le=1 << 40, description="a node writes to move copies to where the ring wants them"
    )
    rebalance_idle_seconds: float = Field(5, ge=0.05, le=3600, description="between two looks for misplaced copies")
    rebalance_retry_seconds: float = Field(
        10, ge=0.05, le=86_400, description="until a pass that left moves undone is repeated"
    )
    rebalance_period_seconds: float = Field(21_600, ge=1, le=31_536_000, description="between passes for moves")
    trim_period_seconds: float = Field(3600, ge=1, le=31_536_000, description="between passes for surplus copies")
    ranges_max: int = Field(16, ge=1, le=1000, description="ranges one request may ask for")
    judge_interval_seconds: float = Field(5, ge=0.1, le=3600, description="between two looks for suspect replicas")
    judge_again_seconds: float = Field(
        3600, ge=0, le=604_800, description="after which a bad last copy is read again, in case it is right now"
    )
    quarantine_seconds: float = Field(
        30 * 86_400, ge=0, le=10 * 366 * 86_400, description="how long a shard's quarantine keeps a file; 0: for ever"
    )
    scrub_period_seconds: float = Field(
        14 * 86_400, ge=1, le=10 * 366 * 86_400, description="in which every replica's block digests are checked"
    )
    proof_period_seconds: float = Field(
        90 * 86_400, ge=1, le=10 * 366 * 86_400, description="in which every replica's sha256 is checked"
    )
    scrub_bytes_per_second_min: float = Field(
        1 << 20, ge=1, le=1 << 40, description="slowest scrub of a node, in bytes"
    )
    scrub_bytes_per_second_max: float = Field(100 << 20, ge=1024, le=1 << 40, description="fastest scrub of a node")
    scrub_interval_seconds: float = Field(
        60, ge=0.1, le=86_400, description="between two looks for a scrub that is due"
    )
    presence_interval_seconds: float = Field(5, ge=0.1, le=3600, description="between two looks for missing files")
    presence_sample_max: int = Field(200, ge=1, le=100_000, description="replicas of a shard in one such look")
    reconcile_period_seconds: float = Field(
        86_400, ge=1, le=10 * 366 * 86_400, description="in which every shard is compared with its rows"
    )
    reconcile_interval_seconds: float = Field(2, ge=0.1, le=3600, description="between two looks for a due comparison")
    reconcile_retry_seconds: float = Field(
        600, ge=1, le=604_800, description="after which a comparison that failed is tried again"
    )
    reconcile_rest_ratio: float = Field(1, ge=0, le=100, description="rest of a comparison, in lengths of its work")
    backup_period_seconds: float = Field(
        86_400, ge=1, le=2_592_000, description="between two backups of the database that a node keeps on its shards"
    )
    backup_idle_seconds: float = Field(600, ge=0.1, le=86_400, description="between two looks for a due backup")
    backup_seconds_max: float = Field(3600, gt=0, le=86_400, description="longest time one backup may take")
    backups_kept: int = Field(7, ge=0, le=1000, description="backups a shard keeps; 0: none are taken")
    reconcile_margin_seconds: float = Field(
        3600, ge=0, le=604_800, description="beyond upload_seconds_max, how long a stray file is left alone"
    )
    lease_seconds: float = Field(8, ge=0.5, le=60, description="silence after which the primary node is replaced")
    lease_renew_seconds: float = Field(2, ge=0.1, le=10, description="between two renewals of the primary's lease")
    removal_delay_seconds: float = Field(
        86_400, ge=0, le=2_592_000, description="how long a file that is no longer needed stays on its shard"
    )
    removal_idle_seconds: float = Field(30, ge=0.1, le=86_400, description="between two looks at the removal list")
    gc_grace_seconds: float = Field(
        86_400, ge=GRACE_SECONDS_MIN, le=31_536_000, description="how long content nothing refers to is kept"
    )
    gc_idle_seconds: float = Field(600, ge=0.1, le=604_800, description="between two runs of garbage collection")
    gc_feed_seconds: float = Field(86_400, ge=1, le=2_592_000, description="between two searches for missed garbage")
    gc_percent_max: int = Field(
        50, ge=1, le=100, description="percent of all blobs one gc run may remove before it stops and asks"
    )
    gc_blobs_max: int = Field(
        5_000_000, ge=1, le=1_000_000_000, description="blobs one gc run may remove before it stops and asks"
    )
    gc_brake_blobs_min: int = Field(
        1_000, ge=0, le=1_000_000_000, description="so many blobs a gc run may remove whatever their share"
    )
    trash_days: float = Field(14, ge=0, le=3650, description="how long the trash keeps artifacts; 0: it keeps none")
    trash_idle_seconds: float = Field(600, ge=0.1, le=604_800, description="between two looks for expired trash")
    usage_idle_seconds: float = Field(
        2, ge=0.1, le=3600, description="between two additions to what repositories with a quota use"
    )
    usage_count_seconds_max: float = Field(
        600, ge=1, le=86_400, description="how long the artifacts of a repository may be counted when its quota is new"
    )
    storage_summary_seconds: float = Field(
        300, ge=1, le=604_800, description="between two counts of what is stored; longer where a count takes long"
    )
    storage_summary_seconds_max: float = Field(
        3600, ge=1, le=86_400, description="how long a count of what is stored may take"
    )
    support_bundles_kept: int = Field(5, ge=1, le=100, description="support bundles that are kept; older ones go")
    support_bundle_bytes_max: int = Field(
        32 << 20, ge=1 << 20, le=1 << 30, description="largest support bundle; what would make it larger is left out"
    )
    support_bundle_seconds_max: float = Field(
        120, ge=5, le=3600, description="how long a support bundle may take to be made"
    )
    support_node_seconds_max: float = Field(
        15, ge=1, le=600, description="how long a node may take for its part of a support bundle"
    )
    audit_days: float = Field(
        366, ge=0, le=36_600, description="how long the audit log keeps what happened; 0: for ever"
    )
    audit_idle_seconds: float = Field(
        3600, ge=0.1, le=604_800, description="between two looks for what the audit log keeps no longer"
    )
    audit_rows_max: int = Field(
        100_000, ge=1000, le=10_000_000, description="rows of the audit log that one request reads at most"
    )
    gc_cron: Cron = Field("", description="when gc runs, in UTC; empty: every gc_idle_seconds")
    trash_cron: Cron = Field("", description="when expired trash goes, in UTC; empty: every trash_idle_seconds")
    backup_cron: Cron = Field("", description="when backups are taken, in UTC; empty: every backup_period_seconds")
    reconcile_cron: Cron = Field(
        "", description="when shards are compared with their rows, in UTC; empty: every reconcile_period_seconds"
    )
    schedule_idle_seconds: float = Field(2, ge=0.05, le=3600, description="between two looks at the schedules")
    read_only_reason: str = Field(
        "", max_length=500, pattern=PLAIN, description="why nothing may be changed now; empty: changes are made"
    )

    @model_validator(mode="after")
    def check_together(self) -> Settings:
        if self.write_quorum is not None and self.write_quorum > self.redundancy:
            raise ValueError("write_quorum cannot be above redundancy")
        if self.write_zones_min > self.redundancy:
            raise ValueError("write_zones_min cannot be above redundancy")
        if self.node_down_seconds < 2 * self.heartbeat_seconds:
            raise ValueError("node_down_seconds must be at least twice heartbeat_seconds")
        if self.lease_seconds < 3 * self.lease_renew_seconds:
            raise ValueError("lease_seconds must be at least three times lease_renew_seconds")
        if 0 < self.quarantine_seconds < QUARANTINE_SECONDS_MIN:
            raise ValueError(f"quarantine_seconds must be 0 (for ever) or at least {QUARANTINE_SECONDS_MIN}")
        if 0 < self.audit_days < AUDIT_DAYS_MIN:
            raise ValueError(f"audit_days must be 0 (for ever) or at least {AUDIT_DAYS_MIN}")
        return self

    def share_of(self, processes: int) -> Settings:
        """Return the settings for one of a node's ``processes``: what a node may do at most is divided."""
        return self.model_copy(update={key: -(-getattr(self, key) // processes) for key in LIMITS_OF_A_NODE})

    def write_policy(self, redundancy: int | None = None) -> WritePolicy:
        """Return the policy of an upload to a repository whose own redundancy is ``redundancy``."""
        copies = max(self.redundancy, redundancy or 0)
        quorum = None if self.write_quorum is None else min(self.write_quorum, copies)
        return WritePolicy(copies, quorum, min(self.write_zones_min, copies))


def parse(key: str, text: str) -> Any:
    """Return the value a person wrote for ``key``: JSON, which numbers and null are, or text where it is one.

    Raises ``SettingError``.
    """
    if key not in Settings.model_fields:
        raise SettingError(f"there is no setting {key}; holdfast settings list shows them all")
    if Settings.model_fields[key].annotation is str and not text.startswith('"'):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise SettingError(f"{key}: {text[:40]!r} is not a number or null") from None


def risk_of(key: str, value: Any) -> str | None:
    """Return in a sentence what a value that may be set risks; None for a prudent one."""
    prudent, what = RISKS.get(key, (None, ""))
    if prudent is None or not isinstance(value, int | float) or value >= prudent:
        return None
    return f"with {key} below {prudent:g}, {what}"


def combine(values: Mapping[str, Any]) -> Settings:
    """Return the settings with ``values`` over the defaults. Raises ``SettingError``."""
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            raise SettingError(f"there is no setting {where}; holdfast settings list shows them all") from None
        message = fault["msg"].removeprefix("Value error, ")
        raise SettingError(f"{where}: {message}" if where else message) from None


def lenient(values: Mapping[str, Any]) -> Settings:
    """Return the settings from rows a newer release may have written: what this one does not know is left out."""
    return combine({key: value for key, value in values.items() if key in Settings.model_fields})


class LiveSettings:
    """The settings that hold now in one of a node's ``processes``; ``now`` is replaced whole."""

    def __init__(self, now: Settings | None = None, *, processes: int = 1) -> None:
        self.now = now or Settings()
        self._processes = processes
        self._confirmed_at: float | None = None

    def take(self, settings: Settings) -> None:
        """Let the cluster's ``settings`` hold from now on."""
        self.now = settings.share_of(self._processes)

    def confirm(self, at: float) -> None:
        """Note that ``now`` held in the cluster at a time of the monotonic clock."""
        self._confirmed_at = at

    @property
    def age_seconds(self) -> float:
        """How long ago it was last known that ``now`` holds in the cluster; 0 where nobody ever confirms it."""
        return 0.0 if self._confirmed_at is None else time.monotonic() - self._confirmed_at
