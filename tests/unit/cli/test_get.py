"""`get`, `describe`, `status`: what is printed of what there is."""

from __future__ import annotations

import json

import pytest
import yaml

from raycache.cli import output
from raycache.cli.output import Format
from tests.unit.cli.fakes import NOW, FakeBackend, dataset_row, invoke, load_row


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW + 200)


@pytest.fixture
def backend() -> FakeBackend:
    fake = FakeBackend()
    fake.fake.rows = {
        "datasets": [
            dataset_row(),
            dataset_row("a-dataset-with-quite-a-long-name-that-must-not-be-cut-anywhere"),
        ],
        "loads": [load_row(phase="Complete", finished=NOW + 90, bytes_cached=4 << 20), load_row("second")],
        "workers": [
            {
                "id": "worker-1",
                "node_id": "ab" * 28,
                "address": "10.0.0.1:4100",
                "state": "up",
                "pid": 42,
                "datasets": ["imagenet", "models"],
                "mem_used": 1 << 30,
                "mem_quota": 4 << 30,
                "ssd_used": 0,
                "ssd_quota": 0,
                "started": NOW,
            }
        ],
        "secrets": [{"name": "key", "keys": ["a", "b"], "created": NOW, "data": {"a": "c2VjcmV0"}}],
    }
    return fake


def test_datasets_are_listed_in_the_promised_columns(backend: FakeBackend) -> None:
    result = invoke(backend, "get", "datasets")
    assert result.exit_code == 0
    header, first, second = result.stdout.splitlines()
    columns = [
        "NAME", "UFS TOTAL SIZE", "CACHED", "CACHE CAPACITY", "CACHED PERCENTAGE", "PHASE", "AGE",
    ]  # fmt: skip
    assert [part.strip() for part in header.split("   ") if part.strip()] == columns
    assert first.split() == ["imagenet", "2.00GiB", "1.00GiB", "10.00GiB", "50.0%", "Bound", "3m20s"]
    # Aligned, and nothing cut: every cell begins where its title does.
    for line in (first, second):
        assert line[header.index("PHASE") :].startswith("Bound")
    assert second.startswith("a-dataset-with-quite-a-long-name-that-must-not-be-cut-anywhere   ")
    assert "\x1b" not in result.stdout


def test_wide_adds_columns(backend: FakeBackend) -> None:
    header, first, _ = invoke(backend, "get", "ds", "-o", "wide").stdout.splitlines()
    assert header.endswith("AGE     TOTAL FILES   CACHE HIT RATIO   NAMESPACE   UFS")
    assert first.split()[-4:] == ["12", "92.5%", "default", "s3://bucket/imagenet"]


def test_json_is_the_rows(backend: FakeBackend) -> None:
    rows = json.loads(invoke(backend, "get", "datasets", "-o", "json").stdout)
    assert [row["cached"] for row in rows] == [1 << 30, 1 << 30]
    row = json.loads(invoke(backend, "get", "dataset", "imagenet", "-o", "json").stdout)
    assert row["name"] == "imagenet"


def test_yaml_is_the_rows(backend: FakeBackend) -> None:
    row = yaml.safe_load(invoke(backend, "get", "dataset", "imagenet", "-o", "yaml").stdout)
    assert row == dataset_row()


@pytest.mark.parametrize("word", ["load", "loads", "dataload", "dataloads", "DataLoad", "dl"])
def test_a_kind_has_many_names(backend: FakeBackend, word: str) -> None:
    header, first, second = invoke(backend, "get", word).stdout.splitlines()
    assert header.split() == ["NAME", "DATASET", "PHASE", "AGE", "DURATION"]
    assert first.split() == ["warm-up", "imagenet", "Complete", "3m20s", "90s"]
    assert second.split() == ["second", "imagenet", "Executing", "3m20s", "3m20s"]


def test_wide_loads_show_progress(backend: FakeBackend) -> None:
    lines = invoke(backend, "get", "loads", "-o", "wide").stdout.splitlines()
    assert "1.00MiB/4.00MiB" in lines[2]


def test_kind_slash_name(backend: FakeBackend) -> None:
    result = invoke(backend, "get", "dataset/imagenet")
    assert len(result.stdout.splitlines()) == 2


def test_workers(backend: FakeBackend) -> None:
    _, row = invoke(backend, "get", "workers").stdout.splitlines()
    assert row.split() == [
        "worker-1",
        "up",
        "abababababab",
        "imagenet,models",
        "1.00GiB/4.00GiB",
        "<none>",
        "3m20s",
    ]


@pytest.mark.parametrize("form", Format)
def test_secrets_show_no_values(backend: FakeBackend, form: Format) -> None:
    result = invoke(backend, "get", "secrets", "-o", form)
    assert "key" in result.stdout
    assert "c2VjcmV0" not in result.output


def test_an_unknown_kind_names_the_nearest(backend: FakeBackend) -> None:
    result = invoke(backend, "get", "datset")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "error: there is no kind 'datset'\n  next: did you mean datasets?\n"
    assert "kinds are datasets, loads" in invoke(backend, "get", "pods").stderr


def test_an_unknown_name_is_not_found(backend: FakeBackend) -> None:
    result = invoke(backend, "get", "dataset", "imagenett")
    assert result.exit_code == 4
    assert result.stderr == "error: no dataset 'imagenett'\n  next: did you mean imagenet?\n"


def test_nothing_there_is_no_failure() -> None:
    result = invoke(FakeBackend(), "get", "datasets")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "No datasets found.\n")
    assert json.loads(invoke(FakeBackend(), "get", "datasets", "-o", "json").stdout) == []


@pytest.mark.parametrize(
    ("row", "size", "files"),
    [
        ({"ufs_total_size": None, "ufs_total_files": None}, "<unknown>", "<unknown>"),
        (
            {"ufs_scanning": True, "ufs_total_size": None, "ufs_total_files": None},
            "[Calculating]",
            "[Calculating]",
        ),
        ({"ufs_scanning": True, "ufs_total_size": 1 << 20, "ufs_total_files": 5}, "1.00MiB+", "5+"),
        ({"ufs_total_size": 0, "ufs_total_files": 0}, "0.00B", "0"),
    ],
)
def test_what_is_not_known_yet_is_not_shown_as_known(row: dict[str, object], size: str, files: str) -> None:
    backend = FakeBackend()
    backend.fake.rows["datasets"] = [dataset_row(cached_percentage=None, **row)]
    cells = invoke(backend, "get", "datasets", "-o", "wide").stdout.splitlines()[1].split()
    assert (cells[1], cells[4], cells[7]) == (size, "<none>", files)


def test_a_name_cannot_break_the_table() -> None:
    backend = FakeBackend()
    backend.fake.rows["loads"] = [load_row(reason="evil\n\x1b[31mname")]
    result = invoke(backend, "get", "loads", "-o", "wide")
    assert len(result.stdout.splitlines()) == 2
    assert "evil\\n\\x1b[31mname" in result.stdout


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (-5, "0s"), (119, "119s"), (120, "2m"), (125, "2m5s"), (599, "9m59s"), (601, "10m"),
        (179 * 60, "179m"), (3 * 3600, "3h"), (3 * 3600 + 660, "3h11m"), (20 * 3600, "20h"), (48 * 3600, "2d"),
        (3 * 86400 + 7200, "3d2h"), (30 * 86400, "30d"), (800 * 86400, "2y70d"),
    ],
)  # fmt: skip
def test_ages_are_written_as_kubectl_does(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


def test_only_what_is_whole_is_100_percent() -> None:
    assert output.percentage(99.99999) == "99.9%"
    assert output.percentage(100.0) == "100.0%"


def test_describe_lays_out_what_it_gets(backend: FakeBackend) -> None:
    backend.fake.descriptions["datasets", "imagenet"] = {
        "name": "imagenet",
        "labels": {},
        "spec": {
            "mounts": [
                {"mountPoint": "s3://bucket", "options": {"accessKeyId": "********", "path_style": True}},
            ],
            "blockSize": 4 << 20,
        },
        "status": {"phase": "Bound", "cached": 1 << 30, "cached_percentage": 50.0, "created": NOW},
        "workers": [{"id": "w1", "used": 1 << 20}, {"id": "worker-22", "used": None}],
        "events": [{"time": NOW, "type": "Normal", "reason": "Bound", "message": "on 3 nodes"}],
    }
    result = invoke(backend, "describe", "ds", "imagenet")
    assert result.stdout.splitlines() == [
        "Name:    imagenet",
        "Labels:  <none>",
        "Spec:",
        "  Mounts:",
        "    - Mount Point:  s3://bucket",
        "      Options:",
        "        accessKeyId:  ********",
        "        path_style:   true",
        "  Block Size:  4.00MiB",
        "Status:",
        "  Phase:              Bound",
        "  Cached:             1.00GiB",
        "  Cached Percentage:  50.0%",
        "  Created:            2027-01-15T08:00:00Z (3m20s ago)",
        "Workers:",
        "  ID          USED",
        "  w1          1.00MiB",
        "  worker-22   <none>",
        "Events:",
        "  TIME    TYPE     REASON   MESSAGE",
        "  3m20s   Normal   Bound    on 3 nodes",
    ]
    assert json.loads(invoke(backend, "describe", "ds/imagenet", "-o", "json").stdout)["name"] == "imagenet"


def test_describe_writes_nodes_roots_and_durations_as_they_are(backend: FakeBackend) -> None:
    backend.fake.descriptions["datasets", "ds"] = {
        "resolved": {"mounts": [{"path": "", "uri": "s3://b"}], "metadata_ttl": 30.0, "mount_path": ""},
        "problems": {"abcdef0123": "no room"},
    }
    assert invoke(backend, "describe", "ds", "ds").stdout.splitlines() == [
        "Resolved:",
        "  Mounts:",
        "    PATH   URI",
        "    /      s3://b",
        "  Metadata TTL:  30s",
        "  Mount Path:    <none>",
        "Problems:",
        "  abcdef0123:  no room",
    ]


def test_describe_needs_a_name(backend: FakeBackend) -> None:
    result = invoke(backend, "describe", "dataset")
    assert result.exit_code == 2
    assert "which dataset?" in result.stderr


def test_status(backend: FakeBackend) -> None:
    lines = invoke(backend, "status").stdout.splitlines()
    assert lines[:2] == ["Coordinator:  running", "Workers:      1"]
    assert lines[2] == ""
    assert lines[3].split()[:3] == ["NAME", "STATE", "NODE"]
    assert lines[4].startswith("worker-1")
    assert json.loads(invoke(backend, "status", "-o", "json").stdout) == {
        "coordinator": "running",
        "workers": 1,
    }
