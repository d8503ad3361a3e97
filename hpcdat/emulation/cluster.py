"""A cluster in a box: nodes with network cards and rate-limited links on one Linux machine.

Every node is a network namespace with its own address and, for the processes started in it, its own
host name. A bridge is the switch; the token buckets of ``tc`` at both ends of each cable limit its
rate. What runs over it is what runs over Ethernet: the kernel's TCP, with real queues and real time.
Only root can make one. Nothing is kept but the namespaces, the bridge and the nodes' hosts files
in /etc/netns, so that one command takes all of it away; boxes of different names do not meet.
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
from hpcdat.errors import InputError, WorkerError

HOSTS_FILES = Path("/etc/netns")
MARK = "# hpcdat box "
"""Begins the line of a node's hosts file that tells of its links."""
RATE = r"(?P<number>\d+(\.\d+)?)(?P<unit>[kmg]?)bit"
SUBNETS = range(1, 255)
CARD = "eth0"
"""The network card of a node, as processes in it see it."""


SHARED_CORES = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
"""For what runs in a box, unless told otherwise: its nodes share the machine's cores, and one that waits must
not keep the others from working."""


class BoxError(InputError):
    """A box that cannot be made or found; the message says what to do."""


@dataclass(frozen=True)
class Box:
    """A cluster in a box that is up.

    Attributes:
        name: letters, digits and ``-``.
        nodes: how many: ``node1``, ``node2``, ...
        subnet: its addresses are 10.77.SUBNET.1, ...
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
        """The switch."""
        return f"hpcdat{self.subnet}"

    def inside(self, node: int, command: Sequence[str]) -> list[str]:
        """The command line that runs a command in a node, under its name."""
        named = ["sh", "-c", 'hostname "$0" && exec "$@"', f"node{node}", *command]
        return ["ip", "netns", "exec", self.namespace(node), "unshare", "--uts", *named]


def up(
    name: str,
    *,
    nodes: int = 6,
    rate: str = "1gbit",
    delay: str = "0ms",
    loss: str = "0%",
    slurm: bool = False,
    timeouts: slurm_daemons.Timeouts = slurm_daemons.TIMEOUTS,
) -> Box:
    """Make a box.

    Args:
        name: of the box.
        nodes: 1 to 200.
        rate: of every link, each way, as ``tc`` writes it: ``1gbit``, ``100mbit``.
        delay: added to every packet at each card, such as ``1ms``.
        loss: share of packets lost at each card, such as ``0.1%``.
        slurm: whether to start Slurm over it.
        timeouts: Slurm's.

    Raises:
        SlurmError: Slurm is not installed or does not start.
        BoxError: not root, no ``ip`` or ``tc``, a wrong value, or there is such a box already.
    """
    _check_tools()
    if not re.fullmatch(r"[A-Za-z0-9-]{1,40}", name):
        raise BoxError(f"{name!r}: a box's name has letters, digits and '-', at most 40")
    if not 1 <= nodes <= 200:
        raise BoxError(f"{nodes}: a box has 1 to 200 nodes")
    for value, pattern, example in (
        (rate, RATE, "1gbit"),
        (delay, r"\d+(\.\d+)?(us|ms|s)", "1ms"),
        (loss, r"\d+(\.\d+)?%", "0.1%"),
    ):
        if not re.fullmatch(pattern, value):
            raise BoxError(f"{value!r}: expected a value like {example}")
    if find(name) is not None:
        raise BoxError(f"the box {name} is up already; take it down first")
    box = Box(name, nodes, _claim_subnet())
    try:
        _run("ip", "link", "set", box.bridge, "up")
        for node in range(1, nodes + 1):
            _add_node(box, node, rate, delay, loss)
        if slurm:
            slurm_daemons.up(box, timeouts)
    except BaseException:
        _remove(box)
        raise
    return box


def down(name: str) -> None:
    """End what runs in a box, and remove it whole.

    Raises:
        BoxError: there is no such box, or not root.
    """
    _check_tools()
    box = find(name)
    if box is None:
        raise BoxError(f"there is no box {name}; up are: {', '.join(sorted(all_names())) or 'none'}")
    _remove(box)


def find(name: str) -> Box | None:
    """The box of this name, if it is up."""
    nodes = [n for n in _namespaces() if re.fullmatch(rf"hpcdat-{re.escape(name)}-node\d+", n)]
    if not nodes:
        return None
    with contextlib.suppress(OSError):
        hosts = (HOSTS_FILES / nodes[0] / "hosts").read_text()
        if found := re.search(r"10\.77\.(\d+)\.1\s", hosts):
            return Box(name, len(nodes), int(found[1]))
    return None


def all_names() -> set[str]:
    """The boxes that are up."""
    matches = (re.fullmatch(r"hpcdat-(.+)-node\d+", n) for n in _namespaces())
    return {match.group(1) for match in matches if match}


def run_over_gloo(
    box: Box, workers: int, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> int:
    """Start a command once for every worker, as srun would, and wait for all.

    Workers are dealt to the nodes in blocks. If one fails, the others are ended.

    Args:
        box: where.
        workers: how many.
        command: of each worker; hpcdat's find each other and use Gloo.
        environment: of the workers, beside :data:`SHARED_CORES`; this process's if left out.

    Returns:
        The exit code of the first that failed, or 0.
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
            }
            processes.append(
                subprocess.Popen(
                    box.inside(node + 1, command),
                    env=SHARED_CORES | dict(os.environ if environment is None else environment) | variables,
                )
            )
    return wait_for(processes)


def mpirun_command(box: Box, workers: int, command: Sequence[str]) -> list[str]:
    """The command line of Open MPI's mpirun over a box, to be run in its first node.

    Args:
        box: where.
        workers: how many, dealt to the nodes in blocks.
        command: of each worker.
    """
    each = -(-workers // box.nodes)
    beside = Path(sys.executable).parent / "mpirun"
    network = f"10.77.{box.subnet}.0/24"
    options = [
        *("--allow-run-as-root", "-np", str(workers), "--bind-to", "none"),
        *("--host", ",".join(f"node{n}:{each}" for n in range(1, box.nodes + 1))),
        *("--prtemca", "plm_ssh_agent", f"{sys.executable} -m hpcdat.emulation.cluster {box.name}"),
        *("--prtemca", "prte_if_include", network),
        # Two "nodes" of one machine must not meet in shared memory.
        *("--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", network),
    ]
    return [str(beside) if beside.exists() else "mpirun", *options, *command]


def _check_tools() -> None:
    missing = [tool for tool in ("ip", "tc", "unshare") if shutil.which(tool) is None]
    if missing:
        raise BoxError(f"{', '.join(missing)} not found: install iproute2 and util-linux")
    if os.geteuid() != 0:
        raise BoxError("only root can make network namespaces; try with sudo")


def _namespaces() -> list[str]:
    folder = Path("/run/netns")
    names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    return sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])


def _claim_subnet() -> int:
    """Make a bridge with a number that nothing on this machine uses."""
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
            raise BoxError(f"cannot make a bridge: {made.stderr.strip()}")
    raise BoxError("all 254 subnets of 10.77.0.0/16 are taken by boxes; take one down")


def _add_node(box: Box, node: int, rate: str, delay: str, loss: str) -> None:
    namespace, cable = box.namespace(node), f"{box.bridge}n{node}"
    hosts = HOSTS_FILES / namespace / "hosts"
    hosts.parent.mkdir(parents=True, exist_ok=True)
    names = [f"{box.address(n)} node{n}" for n in range(1, box.nodes + 1)]
    links = f"{rate} links" + (f", {delay} delay" if _number(delay) else "")
    links += f", {loss} loss" if _number(loss) else ""
    hosts.write_text("\n".join([f"{MARK}{box.name}: {links}", "127.0.0.1 localhost", *names]) + "\n")
    _run("ip", "netns", "add", namespace)
    _run("ip", "link", "add", cable, "type", "veth", "peer", "name", CARD, "netns", namespace)
    _run("ip", "link", "set", cable, "master", box.bridge, "up")
    in_node = ("ip", "-n", namespace)
    _run(*in_node, "addr", "add", f"{box.address(node)}/24", "dev", CARD)
    _run(*in_node, "link", "set", CARD, "up")
    _run(*in_node, "link", "set", "lo", "up")
    # Linux's own congestion control, whatever this machine uses: BBR leaves a tenth of such links idle.
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
            raise BoxError(f"delay and loss need the kernel's netem, which is not here ({error})") from None


def bytes_per_second(rate: str) -> float:
    """Of a rate as ``tc`` writes it.

    Raises:
        BoxError: it is none.
    """
    match = re.fullmatch(RATE, rate)
    if match is None or not float(match["number"]):
        raise BoxError(f"{rate!r}: expected a value like 1gbit")
    return float(match["number"]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match["unit"]] / 8


def _number(value: str) -> float:
    return float(value.rstrip("ums%"))


def links_here(hosts: Path = Path("/etc/hosts")) -> str | None:
    """Of the box that this process runs in a node of, in words such as ``1gbit links``; else None."""
    try:
        lines = hosts.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((line.split(": ", 1)[1] for line in lines if line.startswith(MARK)), None)


def _remove(box: Box) -> None:
    """Everything of a box, however much of it there is."""
    slurm_daemons.down(box)
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
    """The first exit code of all that is not 0; when one fails or this process is told to end, all are to."""
    code = 0
    with _ended_with_us(processes):
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
def _ended_with_us(processes: list[subprocess.Popen[Any]]) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask them to end, as hpcdat's do with a checkpoint; a second Ctrl-C ends them."""
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
    """What mpirun calls in place of ssh: ``BOX HOST COMMAND...``."""
    name, host, *command = arguments
    box = find(name)
    if box is None or not re.fullmatch(r"node\d+", host):
        raise WorkerError(f"no node {host} in a box {name}")
    # As ssh does, the words are joined and given to a shell.
    line = box.inside(int(host.removeprefix("node")), ["sh", "-c", " ".join(command)])
    os.execvp(line[0], line)  # noqa: S606


if __name__ == "__main__":
    _agent(sys.argv[1:])
