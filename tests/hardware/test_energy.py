"""Energy of processors and GPUs, from files and a module like Linux's and NVIDIA's."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from hpcdat.hardware import usage as usages
from hpcdat.hardware.nvml import GpuSample, open_gpu
from hpcdat.hardware.rapl import NodeEnergy, find_zones
from hpcdat.hardware.usage import Energy, Usage, add_up, describe_energy

WRAPS_AT = 262_143_328_850


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Powercap:
    """A folder like /sys/class/powercap."""

    def __init__(self, root):
        self.root = root

    def zone(self, folder, name, energy, wraps_at=WRAPS_AT):
        (self.root / folder).mkdir(parents=True)
        (self.root / folder / "name").write_text(f"{name}\n")
        (self.root / folder / "max_energy_range_uj").write_text(f"{wraps_at}\n")
        self.set(folder, energy)

    def set(self, folder, energy):
        (self.root / folder / "energy_uj").write_text(f"{energy}\n")


@pytest.fixture
def powercap(tmp_path):
    return Powercap(tmp_path / "powercap")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def two_sockets(powercap):
    for number in (0, 1):
        powercap.zone(f"intel-rapl:{number}", f"package-{number}", 1_000_000)
        powercap.zone(f"intel-rapl:{number}:0", "core", 1_000_000)
        powercap.zone(f"intel-rapl:{number}:1", "dram", 1_000_000, 65_712_999_613)
    powercap.zone("intel-rapl:2", "psys", 1_000_000)
    powercap.zone("intel-rapl-mmio:0", "package-0", 1_000_000)
    return powercap


def test_packages_and_memory_count_once_without_their_parts_and_what_contains_them(two_sockets, clock):
    node = NodeEnergy(find_zones(two_sockets.root), clock)
    clock.now += 1
    for folder in two_sockets.root.iterdir():
        two_sockets.set(folder.name, 4_000_000 if folder.name.count(":") == 2 else 11_000_000)
    assert node.take() == {"package": pytest.approx(20), "dram": pytest.approx(6)}
    assert node.take() == {"package": 0, "dram": 0}


def test_dies_of_a_package_are_packages(powercap, clock):
    powercap.zone("intel-rapl:0", "package-0-die-0", 0)
    powercap.zone("intel-rapl:1", "package-0-die-1", 0)
    node = NodeEnergy(find_zones(powercap.root), clock)
    powercap.set("intel-rapl:0", 1_000_000)
    powercap.set("intel-rapl:1", 2_000_000)
    assert node.take() == {"package": pytest.approx(3), "dram": None}


def test_a_counter_that_wraps_goes_on(powercap, clock):
    powercap.zone("intel-rapl:0", "package-0", WRAPS_AT - 5_000_000)
    node = NodeEnergy(find_zones(powercap.root), clock)
    clock.now += 10
    powercap.set("intel-rapl:0", 7_000_000)
    node.sample()
    clock.now += 10
    powercap.set("intel-rapl:0", 8_000_000)
    assert node.take()["package"] == pytest.approx(13)


@pytest.mark.parametrize(
    "seconds, value",
    [(1000, 7_000_000), (10, WRAPS_AT // 2)],
    ids=["it may have wrapped several times", "no processor takes so much"],
)
def test_energy_that_is_not_certain_is_not_given(powercap, clock, seconds, value):
    powercap.zone("intel-rapl:0", "package-0", 8_000_000)
    node = NodeEnergy(find_zones(powercap.root), clock)
    clock.now += seconds
    powercap.set("intel-rapl:0", value)
    assert node.take()["package"] is None
    # The next epoch is measured again.
    clock.now += 10
    powercap.set("intel-rapl:0", value + 3_000_000)
    assert node.take()["package"] == pytest.approx(3)


def test_a_file_that_only_root_may_read_is_no_energy(two_sockets, clock, monkeypatch):
    # The tests may run as root, who may read everything.
    (two_sockets.root / "intel-rapl:1" / "energy_uj").unlink()
    (two_sockets.root / "intel-rapl:1" / "energy_uj").mkdir()
    node = NodeEnergy(find_zones(two_sockets.root), clock)
    assert node.take() == {"package": None, "dram": 0}


def test_a_counter_that_disappears_and_comes_back(two_sockets, clock):
    node = NodeEnergy(find_zones(two_sockets.root), clock)
    file = two_sockets.root / "intel-rapl:0" / "energy_uj"
    file.rename(file.with_name("away"))
    node.sample()
    file.with_name("away").rename(file)
    node.sample()
    assert node.take() == {"package": None, "dram": 0}
    two_sockets.set("intel-rapl:0", 2_000_000)
    assert node.take()["package"] == pytest.approx(1)


def test_without_counters_there_is_no_energy(tmp_path, clock):
    assert find_zones(tmp_path / "missing") == []
    assert NodeEnergy([], clock).take() == {"package": None, "dram": None}


class FakeNvml(ModuleType):
    """A module like pynvml, for GPUs by UUID."""

    class NVMLError(Exception):
        pass

    def __init__(self, gpus):
        super().__init__("pynvml")
        self.gpus = gpus

    def nvmlInit(self):
        if not self.gpus:
            raise self.NVMLError("driver not loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in self.gpus:
            raise self.NVMLError("not found")
        return self.gpus[uuid]

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        if gpu.energy is None:
            raise self.NVMLError("not supported")
        return gpu.energy

    def nvmlDeviceGetMemoryInfo(self, gpu):
        return SimpleNamespace(used=gpu.memory, total=2**36)

    def nvmlDeviceGetUtilizationRates(self, gpu):
        return SimpleNamespace(gpu=gpu.busy, memory=0)


@pytest.fixture
def gpu(monkeypatch):
    gpu = SimpleNamespace(energy=5_000, memory=2**30, busy=50)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml({"GPU-a": gpu}))
    return gpu


def test_a_gpu_is_sampled_now_and_then_and_its_energy_is_counted(gpu, clock):
    usage = Usage("a", first_on_node=False, clock=clock)
    for busy, memory in ((100, 3 * 2**30), (0, 2**30)):
        gpu.busy, gpu.memory = busy, memory
        for _ in range(9):
            # Read every ten seconds only.
            usage.step()
            clock.now += 1
        gpu.energy += 250_000
        clock.now += 1
        usage.step()
    gpu.busy = 50
    assert usage.take_energy() == [("gpu", "a", 500)]
    assert usage.gpu_sample() == GpuSample(3 * 2**30, pytest.approx(0.5))
    usage.begin()
    assert usage.gpu_sample() is None and usage.take_energy() == [("gpu", "a", 0)]


def test_a_gpu_that_does_not_count_energy_is_sampled_still(gpu, clock):
    gpu.energy = None
    usage = Usage("a", first_on_node=False, clock=clock)
    assert usage.take_energy() == [("gpu", "a", None)] and usage.gpu_sample() == GpuSample(2**30, 0.5)


def test_a_counter_set_back_by_a_new_driver_is_no_energy(gpu, clock):
    usage = Usage("a", first_on_node=False, clock=clock)
    gpu.energy = 0
    assert usage.take_energy() == [("gpu", "a", None)]


def test_without_gpu_driver_or_package_nothing_is_measured(gpu, clock, monkeypatch):
    assert open_gpu("another") is None
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml({}))
    assert open_gpu("a") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_gpu("a") is None
    usage = Usage("a", first_on_node=False, clock=clock)
    usage.step()
    assert usage.take_energy() == [("gpu", "a", None)] and usage.gpu_sample() is None


def test_the_nvml_of_this_machine_can_be_asked():
    pytest.importorskip("pynvml")
    assert open_gpu("00000000-0000-0000-0000-000000000000") is None


def test_what_cannot_be_measured_is_described(gpu, two_sockets, monkeypatch):
    root = two_sockets.root
    assert describe_energy(["a"], root) == ""
    (root / "intel-rapl:1" / "energy_uj").unlink()
    assert describe_energy(["a"], root) == f"processors: the counters in {root} cannot be read by this user"
    empty = root / "empty"
    gpu.energy = None
    assert describe_energy(["a"], empty) == (
        f"GPUs: NVML does not count it; processors: there are no counters in {empty}"
    )
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert describe_energy(["b"], empty).startswith("GPUs: nvidia-ml-py is not installed; ")
    assert "GPUs" not in describe_energy([], empty)


def test_only_the_first_worker_of_a_node_reads_its_processors(two_sockets, clock, monkeypatch):
    zones = find_zones(two_sockets.root)
    monkeypatch.setattr(usages, "find_zones", lambda: zones)
    assert Usage(None, first_on_node=False, clock=clock).take_energy() == []
    (package, machine, joules), (dram, *_) = Usage(None, first_on_node=True, clock=clock).take_energy()
    assert (package, dram, joules) == ("package", "dram", 0) and len(machine) == 36


@pytest.mark.parametrize(
    "parts, energy",
    [
        ([[]], Energy(None, None, None)),
        # Two workers share GPU b; two emulated nodes are one machine.
        (
            [[("gpu", "a", 1.0), ("package", "m", 10.0)], [("gpu", "b", 2.0)], [("gpu", "b", 2.0)]],
            Energy(3, 10, None),
        ),
        ([[("package", "m", 4.0), ("dram", "m", 1.0)]] * 2, Energy(None, 4, 1)),
        # What is not known of one is not known of all.
        ([[("gpu", "a", 1.0)], [("gpu", "b", None)]], Energy(None, None, None)),
        ([[("package", "m", 4.0), ("dram", "m", 1.0)], [("package", "n", 5.0), ("dram", "n", None)]],
         Energy(None, 9, None)),
    ],
)  # fmt: skip
def test_the_energy_of_all_workers(parts, energy):
    assert add_up(parts) == energy
