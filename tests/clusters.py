"""A Ray cluster of two nodes on this machine, and a Python that has everything but Nightjar."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.small_night import environment, mentioning

STORE_BYTES = 80_000_000
START_SECONDS = 120


def python_without_nightjar(folder: Path) -> Path:
    """An interpreter that finds every package of this one but not the editable Nightjar.

    A .pth file puts the packages' folder on its path, and .pth files in there, which is what an editable
    install is, are then not read: what runs under it has Nightjar from what was shipped, or not at all.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    packages = sysconfig.get_path("purelib")
    inside = sysconfig.get_path("purelib", vars={"base": str(folder)})
    (Path(inside) / "everything_else.pth").write_text(packages + "\n")
    return folder / "bin" / "python"


@dataclass(frozen=True)
class RayCluster:
    """A running cluster. jobs: where `ray job submit` goes; env: what its clients need to be let in."""

    jobs: str
    env: dict[str, str]
    token: Path


@contextlib.contextmanager
def ray_cluster(python: Path, cache: Path) -> Iterator[RayCluster]:
    """A head and one more node of one CPU each, with token authentication; gone afterwards in any case."""
    folder = Path(tempfile.mkdtemp(prefix="nj-ray-"))  # short: the paths of Ray's sockets end at 107 letters
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # Ray runs workers 15 steps nicer than itself, which on a busy machine of two cores is never.
    env = environment(cache, **auth, RAY_worker_niceness="0", RAY_USAGE_STATS_ENABLED="0")
    del env["PYTHONPATH"]
    gcs, dashboard, client = free_ports(3)
    head = ["--head", f"--port={gcs}", f"--ray-client-server-port={client}", "--include-dashboard=true"]
    head += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        nodes.append(_start(python, head, env, folder / "head.log"))
        _wait_for(dashboard, nodes[0], folder / "head.log")
        nodes.append(_start(python, [f"--address=127.0.0.1:{gcs}"], env, folder / "node.log"))
        _wait_for_nodes(python, env, f"127.0.0.1:{gcs}", folder / "node.log")
        yield RayCluster(f"http://127.0.0.1:{dashboard}", env, token)
    finally:
        _stop(nodes, str(token))
        shutil.rmtree(folder, ignore_errors=True)


def _start(python: Path, arguments: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    agent, grpc, metrics = free_ports(3)
    command = [str(python), "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", "--num-cpus=1", f"--object-store-memory={STORE_BYTES}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}"]
    command += [f"--metrics-export-port={metrics}", *arguments]
    with log.open("wb") as sink:
        return subprocess.Popen(
            command, env=env, cwd=log.parent, stdout=sink, stderr=sink, start_new_session=True
        )


def free_ports(n: int) -> list[int]:
    """Ports of the loopback address that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _wait_for(port: int, node: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and node.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the Ray node did not come up:\n{log.read_text()[-4000:]}")


_NODES = "import ray; ray.init(log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"


def _wait_for_nodes(python: Path, env: dict[str, str], address: str, log: Path) -> None:
    """Until the cluster counts two living nodes."""
    give_up = time.monotonic() + START_SECONDS
    said = ""
    while time.monotonic() < give_up:
        asked = subprocess.run(
            [str(python), "-c", _NODES],
            env={**env, "RAY_ADDRESS": address},
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        if asked.stdout.split()[-1:] == ["2"]:
            return
        said = asked.stdout + asked.stderr
    raise RuntimeError(f"the second Ray node did not join: {said[-2000:]}\n{log.read_text()[-4000:]}")


def _stop(nodes: list[subprocess.Popen[bytes]], mark: str) -> None:
    """Ends the nodes, then whatever still carries this cluster's token path in its environment."""
    for node in nodes:
        node.terminate()
    for node in nodes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.wait(20)
    for process in list(mentioning(mark)):
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    for node in nodes:
        node.wait(20)
