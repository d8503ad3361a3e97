"""What a run says of itself."""

import pytest

from hpcdat.run import in_pixel_units


@pytest.mark.parametrize("eps, text", [(0.2, "0.2"), (8 / 255, "8/255"), (0.0123456, "0.01235")])
def test_radii_are_written_as_people_do(eps, text):
    assert in_pixel_units(eps) == text
