"""Bytes over NVLink, with a stand-in for NVML."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from hpcdat.hardware.network_cards import Card, network_cards, sent_between

SUCCESS, NOT_SUPPORTED = 0, 3
DATA_TX = 138


class NvmlOfLinks(ModuleType):
    """A module like pynvml, for GPUs whose links are lists of KiB; None is a link that is not active."""

    NVML_SUCCESS, NVML_NVLINK_MAX_LINKS = SUCCESS, 36
    NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX = DATA_TX

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus, status=SUCCESS):
        super().__init__("pynvml")
        self.gpus, self.status = gpus, status

    def nvmlInit(self):
        if self.gpus == ("no driver",):
            raise self.NVMLError("driver not loaded")

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, number):
        return self.gpus[number]

    def nvmlDeviceGetNvLinkState(self, gpu, link):
        if link >= len(gpu):
            raise self.NVMLError("invalid argument")
        return int(gpu[link] is not None)

    def nvmlDeviceGetFieldValues(self, gpu, fields):
        if self.status is None:
            raise self.NVMLError("not supported")
        assert all(field == DATA_TX for field, _ in fields)
        return [
            SimpleNamespace(nvmlReturn=self.status, value=SimpleNamespace(ullVal=gpu[link]))
            for _, link in fields
        ]


def cards_with(nvml, monkeypatch, root):
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return network_cards(root)


def test_each_gpu_is_a_card_with_the_sum_of_its_links(monkeypatch, tmp_path):
    before = cards_with(NvmlOfLinks([10, 20, None], [1], []), monkeypatch, tmp_path)
    assert before == [
        Card("GPU 0 NVLink", "NVLink", 30 * 1024),
        Card("GPU 1 NVLink", "NVLink", 1024),
    ]
    after = cards_with(NvmlOfLinks([12, 25, None], [1], []), monkeypatch, tmp_path)
    assert sent_between(before, after) == {"GPU 0 NVLink": 7 * 1024, "GPU 1 NVLink": 0}


@pytest.mark.parametrize("status", [NOT_SUPPORTED, None], ids=["a field", "all fields"])
def test_links_whose_counters_are_not_supported_are_not_counted(status, monkeypatch, tmp_path):
    nvml = NvmlOfLinks([10], status=status)
    assert cards_with(nvml, monkeypatch, tmp_path) == [Card("GPU 0 NVLink", "NVLink", None)]


@pytest.mark.parametrize(
    "nvml",
    [None, NvmlOfLinks("no driver"), NvmlOfLinks([], []), NvmlOfLinks([None, None])],
    ids=["no package", "no driver", "no links", "links that are not active"],
)
def test_without_active_links_there_is_no_card(nvml, monkeypatch, tmp_path):
    assert cards_with(nvml, monkeypatch, tmp_path) == []


def test_the_stand_in_has_the_numbers_of_nvml():
    pynvml = pytest.importorskip("pynvml")
    assert pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX == DATA_TX
    assert (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_SUPPORTED) == (SUCCESS, NOT_SUPPORTED)
    assert pynvml.NVML_NVLINK_MAX_LINKS == NvmlOfLinks.NVML_NVLINK_MAX_LINKS
