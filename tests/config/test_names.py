"""A name that a setting accepts is one that something is registered under, and the other way round."""

from typing import Literal, get_args, get_origin

import pytest

from hpcdat.attacks.norm_balls import BALLS
from hpcdat.config.sections import Attack, Data, Exchange, Model
from hpcdat.data.cifar import DATASETS
from hpcdat.data.mixing import MIXINGS
from hpcdat.exchange.resolve import PROTOCOLS
from hpcdat.models import MODELS
from hpcdat.performance.network_bytes import DEFAULT_CLASSES


def accepted(section, key):
    """The values of a setting, without those of which only the form is given."""

    def literals(annotation):
        if get_origin(annotation) is Literal:
            return {*get_args(annotation)}
        return {value for part in get_args(annotation) for value in literals(part)}

    return literals(section.model_fields[key].annotation)


@pytest.mark.parametrize(
    "settings, registered",
    [
        (accepted(Attack, "norm"), {*BALLS}),
        (accepted(Model, "name"), {*MODELS}),
        (accepted(Data, "mixing") - {"none"}, {*MIXINGS}),
        (accepted(Data, "source") - {"huggingface"}, {*DEFAULT_CLASSES}),
        (accepted(Data, "source") - {"digits", "folder", "shards", "huggingface"}, {*DATASETS}),
        (accepted(Exchange, "protocol") - {"auto", "hierarchical"}, {*PROTOCOLS}),
        (accepted(Exchange, "across"), accepted(Exchange, "protocol") - {"auto", "hierarchical"}),
    ],
    ids=["norms", "models", "mixings", "sources", "CIFAR", "protocols", "protocols between nodes"],
)
def test_settings_and_registries_have_the_same_names(settings, registered):
    assert settings == registered
