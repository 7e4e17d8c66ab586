"""Several nodes on one machine, in a process of their own, which may have another Ray than the tests have."""

import subprocess
import sys

_SCRIPT = """
import sys, time
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

node = {"num_cpus": 1, "object_store_memory": 150_000_000}
head = {"num_cpus": int(sys.argv[1]), "object_store_memory": 150_000_000, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = [cluster.add_node(**node), cluster.add_node(**node)]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "kill":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    elif line.strip() == "add":
        nodes.append(cluster.add_node(**node))
    elif line.strip() == "drain":
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = (time.time_ns() // 1_000_000) + 60_000
        gcs = ray._raylet.GcsClient(address=cluster.address)
        accepted, why = gcs.drain_node(nodes[-1].node_id, reason, "preempted", deadline_ms)
        assert accepted, why
    print("done", flush=True)
cluster.shutdown()
"""


class Cluster:
    """A head and two nodes of one CPU each."""

    def __init__(self, environment: dict[str, str], *, num_head_cpus: int = 1) -> None:
        self.environment = environment
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, str(num_head_cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.address = self._read()

    def tell(self, command: str) -> None:
        """`kill` (the last node's raylet and workers, by SIGKILL), `add`, or `drain` (the last node is told that it
        will be taken away within a minute)."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._read() == "done"

    def close(self) -> None:
        """Ends the cluster's own processes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()
