"""Real servers for the tests."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mentalglm import storage
from mentalglm.config import S3Config
from tests.integration.fault_proxy import FaultProxy

# SeaweedFS 4.48 looks at the condition of an upload's end before it takes a lock: of four ended at the same moment two
# or more may succeed (seen in 50 of 100 tries), of four PutObject one did (100 of 100). So what decides in a run is
# written by PutObject, and what two jobs upload under one key are the same rows.
NUM_UPLOADS_AT_ONCE = 1

ACCESS_KEY, SECRET_KEY = "weibo", "weibosecret-not-a-real-one"
READER_ACCESS_KEY, READER_SECRET_KEY = "reader", "readersecret-not-a-real-one"


def free_port() -> int:
    """A loopback port that is free, with port + 10000 free too (the server's gRPC)."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            if port + 10_000 > 65_535:
                continue
            try:
                second.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A SeaweedFS server with the bucket `scored` and a KMS of its own; yields its endpoint."""
    with run_s3_server(tmp_path_factory.mktemp("weed"), has_kms=True) as endpoint:
        yield endpoint


@contextmanager
def run_s3_server(folder: Path, *, has_kms: bool) -> Iterator[str]:
    """A SeaweedFS server that keeps its data in `folder`; one identity may write, another only read."""
    identities = [
        {
            "name": "rw",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "ro",
            "credentials": [{"accessKey": READER_ACCESS_KEY, "secretKey": READER_SECRET_KEY}],
            "actions": ["Read", "List"],
        },
    ]
    config: dict[str, Any] = {"identities": identities}
    if has_kms:
        provider = {"type": "local", "enableOnDemandCreate": True}
        config["kms"] = {"default_provider": "local", "providers": {"local": provider}}
    (folder / "s3.json").write_text(json.dumps(config))
    names = ("s3.port", "master.port", "volume.port", "filer.port", "admin.port")
    ports = {name: free_port() for name in names}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "weed"), "-logtostderr=true", "mini", f"-dir={folder}",
                "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={folder}/s3.json",
                *(f"-{name}={port}" for name, port in ports.items()),
                "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false",
                "-master.telemetry=false", "-bucket=scored",
            ],
            stdout=log,
            stderr=log,
        )  # fmt: skip
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    try:
        _wait_until_ready(endpoint, process)
        yield endpoint
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="session")
def s3_environment(s3_server: str) -> None:
    """Points the usual AWS clients at the server, of this process and of those that it starts."""
    os.environ |= {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
    }


@pytest.fixture
def s3(s3_environment: None) -> str:
    """The URI of an empty folder on the server."""
    return f"s3://scored/{os.urandom(6).hex()}"


@pytest.fixture(scope="session")
def fault_proxy(s3_server: str, s3_environment: None) -> Iterator[FaultProxy]:
    """One for all tests: its address is one that they have clients for."""
    with FaultProxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def s3_proxy(fault_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """A proxy in front of the server, without faults, through which `storage` goes until the end of the test."""
    storage.configure(S3Config(endpoint=fault_proxy.url))
    yield fault_proxy
    fault_proxy.reset()
    storage.configure(S3Config())


@pytest.fixture(scope="session")
def ray_session(s3_environment: None) -> Iterator[None]:
    """One Ray instance of our own for all tests that need one; never one that happens to run on the machine."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def _wait_until_ready(endpoint: str, process: "subprocess.Popen[bytes]") -> None:
    """Until the bucket is there: the server says that it is well a second before that."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5),
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the S3 server ended at once"
        try:
            client.head_bucket(Bucket="scored")
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
    raise AssertionError("the S3 server was not ready in 120 s")
