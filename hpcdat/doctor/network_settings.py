"""Checks of the environment variables of NCCL, UCX, Open MPI and Gloo that choose networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from hpcdat.doctor.fabric import Fabric
from hpcdat.doctor.findings import Finding, Level
from hpcdat.errors import first_few, shorten

CHECK = "network settings"
"""Name of the check."""
INFINIBAND = ("InfiniBand", "RoCE")
"""Kinds of ports that NCCL and UCX use through verbs."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "HOROVOD_GLOO_IFACE")
"""Variables that list interfaces by their full names."""
RDMA_TRANSPORTS = ("all", "ib", "rc", "ud", "dc")
"""How those transports in ``UCX_TLS`` begin that use InfiniBand and RoCE, such as ``rc_mlx5``."""
BETWEEN_NODES = ("tcp", "ofi", "uct", "openib", "usnic")
"""Components of Open MPI's ``btl`` that connect nodes."""

Complaint = tuple[Level, str, str]
"""Level, what was found, and what to do."""


def check_settings(fabrics: Sequence[Fabric]) -> list[Finding]:
    """Check the environment variables that choose networks."""
    hosts: dict[Complaint, list[str]] = {}
    for fabric in fabrics:
        for complaints in (_of_nccl, _of_ucx, _of_open_mpi, _of_interfaces):
            for complaint in complaints(fabric, len(fabrics)):
                hosts.setdefault(complaint, []).append(fabric.host)
    findings = [
        Finding(level, CHECK, found, first_few(where), advice)
        for (level, found, advice), where in hosts.items()
    ]
    return findings + _differences(fabrics)


def _differences(fabrics: Sequence[Fabric]) -> list[Finding]:
    """The variables whose values differ between nodes."""
    findings = []
    for name in dict.fromkeys(name for fabric in fabrics for name in fabric.settings):
        values: dict[str | None, list[str]] = {}
        for fabric in fabrics:
            values.setdefault(fabric.settings.get(name), []).append(fabric.host)
        if len(values) > 1:
            found = f"{name}: " + "; ".join(
                f"{'not set' if value is None else shorten(value)} on {first_few(hosts)}"
                for value, hosts in values.items()
            )
            advice = "set it for all nodes: mpirun -x NAME, or in the job's script before srun"
            findings.append(
                Finding("warning", CHECK, found, first_few(min(values.values(), key=len)), advice)
            )
    return findings


def _of_nccl(fabric: Fabric, nodes: int) -> Iterator[Complaint]:
    settings = fabric.settings
    verbs = [port.name for port in fabric.active if port.kind in INFINIBAND]
    gpus = len(fabric.distances)
    if settings.get("NCCL_IB_DISABLE") == "1" and verbs:
        yield "warning", f"NCCL_IB_DISABLE=1, but {first_few(verbs)} can be used", "unset NCCL_IB_DISABLE"
    if settings.get("NCCL_NET", "").lower() == "socket" and fabric.active:
        names = first_few([port.name for port in fabric.active])
        yield "warning", f"NCCL_NET={settings['NCCL_NET']}, but {names} can be used", "unset NCCL_NET"
    if settings.get("NCCL_NET", "").upper() == "IB" and not verbs:
        yield "failure", "NCCL_NET=IB, but no port of InfiniBand or RoCE is active", "unset NCCL_NET"
    if settings.get("NCCL_NET", "").upper() == "IB" and settings.get("NCCL_IB_DISABLE") == "1":
        yield "failure", "NCCL_NET=IB and NCCL_IB_DISABLE=1 exclude each other", "unset one of them"
    cards = {port.name.partition("/")[0] for port in fabric.ports if port.kind in INFINIBAND}
    if missing := _missing_of_nccl(settings.get("NCCL_IB_HCA", ""), cards):
        yield (
            "warning",
            f"NCCL_IB_HCA={shorten(settings['NCCL_IB_HCA'])}: no card is named {', '.join(missing)}",
            f"use names of this node's cards ({first_few(sorted(cards)) or 'it has none'}), or unset it",
        )
    interfaces = {interface.name for interface in fabric.interfaces}
    if missing := _missing_of_nccl(settings.get("NCCL_SOCKET_IFNAME", ""), interfaces):
        yield _no_interface("NCCL_SOCKET_IFNAME", settings, missing, fabric)
    for variable, way in (("NCCL_P2P_DISABLE", "NVLink and PCIe"), ("NCCL_SHM_DISABLE", "shared memory")):
        if settings.get(variable) == "1" and gpus > 1:
            found = f"{variable}=1: the {gpus} GPUs of a node do not exchange data over {way}"
            yield "warning", found, f"unset {variable}, unless it avoids a known fault"
    if settings.get("NCCL_NET_GDR_LEVEL", "") in ("0", "LOC") and fabric.shares_gpu_memory and verbs and gpus:
        found = f"NCCL_NET_GDR_LEVEL={settings['NCCL_NET_GDR_LEVEL']} turns off GPUDirect RDMA"
        yield "warning", f"{found}, which this node can use", "unset NCCL_NET_GDR_LEVEL"


def _missing_of_nccl(value: str, known: set[str]) -> list[str]:
    """The names in a list of NCCL's that match nothing: ``=`` asks for full names, ``^`` excludes names."""
    if not value or value.startswith("^"):
        return []
    whole = value.startswith("=")
    names = [name.partition(":")[0] for name in value.lstrip("=").split(",") if name]
    return [
        name
        for name in names
        if not (name in known if whole else any(other.startswith(name) for other in known))
    ]


def _of_ucx(fabric: Fabric, nodes: int) -> Iterator[Complaint]:
    settings = fabric.settings
    transports = _list_of(settings.get("UCX_TLS", ""))
    verbs = [port for port in fabric.active if port.kind in INFINIBAND]
    if transports and not _excludes(settings["UCX_TLS"]):
        rdma = any(name.startswith(RDMA_TRANSPORTS) for name in transports)
        found = f"UCX_TLS={shorten(settings['UCX_TLS'])}"
        if not rdma and "tcp" not in transports and nodes > 1:
            yield "failure", f"{found} has no transport between nodes", "add rc, or tcp, or unset UCX_TLS"
        elif not rdma and verbs:
            found += f" leaves out rc, ud and dc, but {first_few([port.name for port in verbs])} can be used"
            yield "warning", found, "add rc, or unset UCX_TLS"
    known = {port.name.replace("/", ":") for port in fabric.ports}
    known |= {interface.name for interface in fabric.interfaces} | {"all"}
    devices = settings.get("UCX_NET_DEVICES", "")
    missing = [name for name in _list_of(devices) if not any(fnmatchcase(other, name) for other in known)]
    if missing and not _excludes(devices):
        has = first_few(sorted(known - {"all", "lo"}))
        found = f"UCX_NET_DEVICES={shorten(devices)}: this node has no {', '.join(missing)}"
        yield "warning", found, f"use names of this node's devices ({has}), or unset it"


def _of_open_mpi(fabric: Fabric, nodes: int) -> Iterator[Complaint]:
    settings = fabric.settings
    pml, btl = settings.get("OMPI_MCA_pml", ""), settings.get("OMPI_MCA_btl", "")
    without_ucx = "ucx" in _list_of(pml) if _excludes(pml) else pml != "" and "ucx" not in _list_of(pml)
    of_ucx = [name for name in settings if name.startswith("UCX_")]
    if without_ucx and of_ucx:
        found = f"OMPI_MCA_pml={shorten(pml)}: Open MPI does not use UCX; without effect: {first_few(of_ucx)}"
        yield "warning", found, "set OMPI_MCA_pml=ucx, or unset the others"
    if pml == "ucx" and btl and not _excludes(btl):
        found = f"OMPI_MCA_pml=ucx: messages go over UCX, so OMPI_MCA_btl={shorten(btl)} has no effect"
        yield "warning", found, "unset one of them"
    if (
        btl
        and not _excludes(btl)
        and pml == "ob1"
        and nodes > 1
        and not set(_list_of(btl)) & set(BETWEEN_NODES)
    ):
        yield "failure", f"OMPI_MCA_btl={shorten(btl)} has no component between nodes", "add tcp, or unset it"
    if {"OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_btl_tcp_if_exclude"} <= settings.keys():
        found = "OMPI_MCA_btl_tcp_if_include and OMPI_MCA_btl_tcp_if_exclude exclude each other"
        yield "failure", found, "unset one of them"
    # Networks such as 10.0.0.0/8 may be listed, too.
    listed = [name for name in _list_of(settings.get("OMPI_MCA_btl_tcp_if_include", "")) if "/" not in name]
    names = {interface.name for interface in fabric.interfaces}
    if missing := [name for name in listed if name not in names]:
        yield _no_interface("OMPI_MCA_btl_tcp_if_include", settings, missing, fabric)


def _of_interfaces(fabric: Fabric, nodes: int) -> Iterator[Complaint]:
    names = {interface.name for interface in fabric.interfaces}
    for variable in INTERFACES:
        if missing := [name for name in _list_of(fabric.settings.get(variable, "")) if name not in names]:
            yield _no_interface(variable, fabric.settings, missing, fabric)


def _no_interface(variable: str, settings: dict[str, str], missing: list[str], fabric: Fabric) -> Complaint:
    has = first_few([interface.name for interface in fabric.interfaces if interface.name != "lo"])
    found = f"{variable}={shorten(settings[variable])}: this node has no interface {', '.join(missing)}"
    return "warning", found, f"use names of this node's interfaces ({has or 'it has none'})"


def _list_of(value: str) -> list[str]:
    return [name.strip() for name in value.lstrip("^").split(",") if name.strip()]


def _excludes(value: str) -> bool:
    """Whether a list names what is not to be used."""
    return value.startswith("^")
