"""A cluster in a box: nodes with network cards and rate-limited links on one Linux machine.

Every node is a network namespace with its own address and, for the processes started in it, its own
host name. A bridge is the switch; the token buckets of ``tc`` at both ends of each cable limit its
rate. Workers communicate through the kernel's TCP in real time, as over Ethernet. Creating a box needs
root. Its only state is the namespaces, the bridge and the nodes' hosts files in /etc/netns, so that one
command removes all of it. Boxes with different names are isolated from each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdat.emulation import slurm_daemons
from hpcdat.errors import InputError, WorkerError, shorten

HOSTS_FILES = Path("/etc/netns")
"""Folder in which iproute2 looks for the hosts file of each network namespace."""
LINKS_PREFIX = "# hpcdat box "
"""Starts the line of a node's hosts file that describes its links."""
RATE_PATTERN = r"(?P<number>\d+(\.\d+)?)(?P<unit>[kmg]?)bit"
"""A rate as tc writes it, such as ``100mbit`` or ``1.5gbit``."""
SUBNETS = range(1, 255)
"""Third bytes of the boxes' subnets; each box takes a free one."""
CARD = "eth0"
"""The network card of a node, as its processes see it."""
SHARED_CORES = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
"""Default variables of processes in a box: its nodes share the cores, so threads that wait must not spin."""


class BoxError(InputError):
    """A box cannot be created or found; the message says what to do."""


@dataclass(frozen=True)
class Box:
    """A cluster in a box that is up.

    Attributes:
        name: letters, digits and ``-``.
        nodes: number of nodes, named ``node1``, ``node2``, ...
        subnet: third byte of the addresses 10.77.SUBNET.1, ...
    """

    name: str
    nodes: int
    subnet: int

    def address(self, node: int) -> str:
        """The address of a node, counted from 1."""
        return f"10.77.{self.subnet}.{node}"

    def namespace(self, node: int) -> str:
        """The network namespace of a node."""
        return f"hpcdat-{self.name}-node{node}"

    @property
    def bridge(self) -> str:
        """The network bridge that serves as the switch."""
        return f"hpcdat{self.subnet}"

    def inside(self, node: int, command: Sequence[str]) -> list[str]:
        """The command line that runs a command in a node, with the node's host name."""
        named = ["sh", "-c", 'hostname "$0" && exec "$@"', f"node{node}", *command]
        return ["ip", "netns", "exec", self.namespace(node), "unshare", "--uts", *named]


def create_box(
    name: str,
    *,
    nodes: int = 6,
    rate: str = "1gbit",
    delay: str = "0ms",
    loss: str = "0%",
    slurm: bool = False,
    timeouts: slurm_daemons.Timeouts = slurm_daemons.TIMEOUTS,
    bind_cores: bool = False,
) -> Box:
    """Create a box.

    Args:
        name: of the box.
        nodes: 1 to 200.
        rate: of every link in each direction, as ``tc`` writes it: ``1gbit``, ``100mbit``.
        delay: added to every packet at each card, such as ``1ms``.
        loss: share of packets lost at each card, such as ``0.1%``.
        slurm: whether to start Slurm on its nodes.
        timeouts: Slurm's.
        bind_cores: whether Slurm binds tasks to the cores that they are given. All nodes have the same cores.

    Raises:
        SlurmError: Slurm is not installed or does not start.
        BoxError: not root, no ``ip`` or ``tc``, a value is invalid, or a box of this name exists.
    """
    _check_tools()
    if not re.fullmatch(r"[A-Za-z0-9-]{1,40}", name):
        raise BoxError(f"{shorten(repr(name))}: expected up to 40 letters, digits and '-'")
    if not 1 <= nodes <= 200:
        raise BoxError(f"--nodes {nodes}: expected 1 to 200")
    for option, value, pattern, example in (
        ("--rate", rate, RATE_PATTERN, "1gbit"),
        ("--delay", delay, r"\d+(\.\d+)?(us|ms|s)", "1ms"),
        ("--loss", loss, r"\d+(\.\d+)?%", "0.1%"),
    ):
        if not re.fullmatch(pattern, value):
            raise BoxError(f"{option} {shorten(repr(value))}: expected a value like {example}")
    if find_box(name) is not None:
        raise BoxError(f"box {name} already exists; remove it first")
    box = Box(name, nodes, _claim_subnet())
    try:
        _run("ip", "link", "set", box.bridge, "up")
        for node in range(1, nodes + 1):
            _add_node(box, node, rate, delay, loss)
        if slurm:
            slurm_daemons.start_slurm(box, timeouts, bind_cores=bind_cores)
    except BaseException:
        _remove(box)
        raise
    return box


def remove_box(name: str) -> None:
    """Kill the processes in a box and remove it.

    Raises:
        BoxError: not root, or no box has this name.
    """
    _check_tools()
    box = find_box(name)
    if box is None:
        raise BoxError(f"no box {shorten(name)}; existing boxes: {', '.join(sorted(box_names())) or 'none'}")
    _remove(box)


def find_box(name: str) -> Box | None:
    """The box of this name, or None if it does not exist."""
    nodes = [n for n in _namespaces() if re.fullmatch(rf"hpcdat-{re.escape(name)}-node\d+", n)]
    if not nodes:
        return None
    with contextlib.suppress(OSError):
        hosts = (HOSTS_FILES / nodes[0] / "hosts").read_text()
        if found := re.search(r"10\.77\.(\d+)\.1\s", hosts):
            return Box(name, len(nodes), int(found[1]))
    return None


def box_names() -> set[str]:
    """The names of the existing boxes."""
    matches = (re.fullmatch(r"hpcdat-(.+)-node\d+", n) for n in _namespaces())
    return {match.group(1) for match in matches if match}


def run_over_gloo(
    box: Box, workers: int, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> int:
    """Start a command once for every worker, as srun does, and wait for all of them.

    Workers are assigned to the nodes in blocks. If one fails, the others are terminated.

    Args:
        box: where they run.
        workers: number of workers.
        command: of each worker; hpcdat's workers connect over Gloo.
        environment: of the workers, on top of :data:`SHARED_CORES`; default: this process's.

    Returns:
        The exit code of the first worker that failed, or 0.
    """
    counts = [len(range(workers)[node :: box.nodes]) for node in range(box.nodes)]
    counts = [count for count in counts if count]
    token = f"{os.getpid()}{time.monotonic_ns() % 10**6}"
    processes = []
    for node, count in enumerate(counts):
        for local in range(count):
            variables = {
                "SLURM_JOB_ID": token,
                "SLURM_STEP_ID": "0",
                "SLURM_STEP_NUM_TASKS": str(workers),
                "SLURM_STEP_NODELIST": f"node[1-{len(counts)}]",
                "SLURM_STEP_TASKS_PER_NODE": ",".join(map(str, counts)),
                "SLURM_PROCID": str(sum(counts[:node]) + local),
                "SLURM_LOCALID": str(local),
                "SLURM_NODEID": str(node),
                "SLURMD_NODENAME": f"node{node + 1}",
                "HOROVOD_GLOO_IFACE": CARD,
                "GLOO_SOCKET_IFNAME": CARD,
            }
            processes.append(
                subprocess.Popen(
                    box.inside(node + 1, command),
                    env=SHARED_CORES | dict(os.environ if environment is None else environment) | variables,
                )
            )
    return wait_for(processes)


def box_mpirun_command(box: Box, workers: int, command: Sequence[str]) -> list[str]:
    """The command line of Open MPI's mpirun for workers in a box; run it in the first node.

    Args:
        box: where the workers run.
        workers: number of workers, assigned to the nodes in blocks.
        command: of each worker.
    """
    slots = -(-workers // box.nodes)
    local = Path(sys.executable).parent / "mpirun"
    network = f"10.77.{box.subnet}.0/24"
    options = [
        *("--allow-run-as-root", "-np", str(workers), "--bind-to", "none"),
        *("--host", ",".join(f"node{n}:{slots}" for n in range(1, box.nodes + 1))),
        *("--prtemca", "plm_ssh_agent", f"{sys.executable} -m hpcdat.emulation.cluster {box.name}"),
        *("--prtemca", "prte_if_include", network),
        # Nodes of one machine must not communicate through shared memory.
        *("--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", network),
    ]
    return [str(local) if local.exists() else "mpirun", *options, *command]


def _check_tools() -> None:
    missing = [tool for tool in ("ip", "tc", "unshare") if shutil.which(tool) is None]
    if missing:
        raise BoxError(f"{', '.join(missing)} not found: install iproute2 and util-linux")
    if os.geteuid() != 0:
        raise BoxError("network namespaces need root; try with sudo")


def _namespaces() -> list[str]:
    folder = Path("/run/netns")
    names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    return sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])


def _claim_subnet() -> int:
    """Create a bridge whose subnet nothing on this machine uses."""
    addresses = subprocess.run(["ip", "-j", "addr"], capture_output=True, text=True, check=True).stdout
    used = {info.get("local", "") for link in json.loads(addresses) for info in link.get("addr_info", [])}
    for subnet in SUBNETS:
        if any(address.startswith(f"10.77.{subnet}.") for address in used):
            continue
        made = subprocess.run(
            ["ip", "link", "add", f"hpcdat{subnet}", "type", "bridge"], capture_output=True, text=True
        )
        if made.returncode == 0:
            return subnet
        if "File exists" not in made.stderr:
            raise BoxError(f"cannot create a bridge: {made.stderr.strip()}")
    raise BoxError("all 254 subnets of 10.77.0.0/16 are in use; remove a box")


def _add_node(box: Box, node: int, rate: str, delay: str, loss: str) -> None:
    namespace, cable = box.namespace(node), f"{box.bridge}n{node}"
    hosts = HOSTS_FILES / namespace / "hosts"
    hosts.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{box.address(n)} node{n}" for n in range(1, box.nodes + 1)]
    links = f"{rate} links" + (f", {delay} delay" if _number(delay) else "")
    links += f", {loss} loss" if _number(loss) else ""
    hosts.write_text("\n".join([f"{LINKS_PREFIX}{box.name}: {links}", "127.0.0.1 localhost", *names]) + "\n")
    _run("ip", "netns", "add", namespace)
    _run("ip", "link", "add", cable, "type", "veth", "peer", "name", CARD, "netns", namespace)
    _run("ip", "link", "set", cable, "master", box.bridge, "up")
    in_node = ("ip", "-n", namespace)
    _run(*in_node, "addr", "add", f"{box.address(node)}/24", "dev", CARD)
    _run(*in_node, "link", "set", CARD, "up")
    _run(*in_node, "link", "set", "lo", "up")
    # Always Linux's default congestion control: BBR leaves a tenth of such links idle.
    subnet = f"10.77.{box.subnet}.0/24"
    _run(*in_node, "route", "replace", subnet, "dev", CARD, "src", box.address(node), "congctl", "cubic")
    bucket = ["tbf", "rate", rate, "burst", "128kb", "latency", "100ms"]
    for tc, device in ((("tc", "-n", namespace), CARD), (("tc",), cable)):
        _run(*tc, "qdisc", "add", "dev", device, "root", "handle", "1:", *bucket)
    if _number(delay) or _number(loss):
        netem = ["netem", "delay", delay, "loss", loss, "limit", "100000"]
        try:
            _run("tc", "-n", namespace, "qdisc", "add", "dev", CARD, "parent", "1:1", "handle", "10:", *netem)
        except BoxError as error:
            raise BoxError(f"delay and loss need the kernel's netem, which is missing ({error})") from None


def bytes_per_second(rate: str) -> float:
    """Bytes per second of a rate as ``tc`` writes it: ``1gbit`` gives 1.25e8.

    Raises:
        BoxError: it is not a rate.
    """
    match = re.fullmatch(RATE_PATTERN, rate)
    if match is None or not float(match["number"]):
        raise BoxError(f"{shorten(repr(rate))}: expected a value like 1gbit")
    return float(match["number"]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match["unit"]] / 8


def _number(value: str) -> float:
    return float(value.rstrip("ums%"))


def emulated_links(hosts: Path = Path("/etc/hosts")) -> str | None:
    """A description of the box this process runs in, such as ``1gbit links``; None outside a box."""
    try:
        lines = hosts.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((line.split(": ", 1)[1] for line in lines if line.startswith(LINKS_PREFIX)), None)


def _remove(box: Box) -> None:
    """Remove a box, also one that was created only in part."""
    slurm_daemons.stop_slurm(box)
    for node in range(1, box.nodes + 1):
        namespace = box.namespace(node)
        pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout
        for pid in pids.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        # The card goes with its namespace, and the cable with the card.
        subprocess.run(["ip", "link", "del", f"{box.bridge}n{node}"], capture_output=True)
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True)
        shutil.rmtree(HOSTS_FILES / namespace, ignore_errors=True)
    subprocess.run(["ip", "link", "del", box.bridge], capture_output=True)
    with contextlib.suppress(OSError):
        HOSTS_FILES.rmdir()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BoxError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


def wait_for(processes: list[subprocess.Popen[Any]]) -> int:
    """Wait for all processes; when one fails or this process is signalled, terminate all.

    Returns:
        The first exit code other than 0, or 0.
    """
    code = 0
    with _terminate_on_signals(processes):
        while [process for process in processes if process.poll() is None]:
            failed = next((p.returncode for p in processes if p.returncode), 0)
            if failed and not code:
                code = failed if failed > 0 else 128 - failed
                for process in processes:
                    process.terminate()
                deadline = time.monotonic() + 10
            if code and time.monotonic() > deadline:
                for process in processes:
                    process.kill()
            time.sleep(0.05)
    return code or next((p.returncode for p in processes if p.returncode), 0)


@contextlib.contextmanager
def _terminate_on_signals(processes: list[subprocess.Popen[Any]]) -> Iterator[None]:
    """On Ctrl-C and SIGTERM, terminate the processes; on a second Ctrl-C, kill them."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        for process in processes:
            process.terminate()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _agent(arguments: Sequence[str]) -> None:
    """Run a command in a node; mpirun calls this instead of ssh, with ``BOX HOST COMMAND...``."""
    name, host, *command = arguments
    box = find_box(name)
    if box is None or not re.fullmatch(r"node\d+", host):
        raise WorkerError(f"box {shorten(name)} has no node {shorten(host)}")
    # Like ssh, join the arguments and pass them to a shell.
    line = box.inside(int(host.removeprefix("node")), ["sh", "-c", " ".join(command)])
    os.execvp(line[0], line)  # noqa: S606


if __name__ == "__main__":
    _agent(sys.argv[1:])
