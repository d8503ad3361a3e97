"""The options of hpcdat evaluate."""

import pytest
from typer.testing import CliRunner

from hpcdat.cli.app import app
from hpcdat.cli.options import read_request
from hpcdat.config.job_file import read_job
from hpcdat.errors import InputError, first_few, first_line, shorten
from hpcdat.evaluation.request import EvaluationRequest
from tests.conftest import CHECKOUT, DEMO


def test_options_are_parsed():
    job = read_job(DEMO)
    assert read_request(None, None, None, job) == EvaluationRequest()
    request = read_request("1000", "8/255,0,4/255,0", "50,1", job)
    assert request == EvaluationRequest(autoattack=1000, radii=(0.0, 4 / 255, 8 / 255), steps=(1, 50))
    assert read_request(None, None, None, read_job(DEMO, ["evaluation.fast_bound=true"])).fast_bound
    assert read_request("all", None, None, job).autoattack == "all"
    assert read_request(None, "3", None, read_job(DEMO, ["attack.norm=l2"])).radii == (3.0,)


def test_figure_3_is_in_multiples_of_the_radius_of_the_evaluation():
    """On ImageNet 0 to 8 over 255; beyond 1 there are no radii."""
    imagenet = read_job(CHECKOUT / "jobs" / "imagenet-dat-pgd.yaml")
    request = read_request(None, None, None, imagenet, figure_3=True)
    assert [255 * eps for eps in request.radii] == pytest.approx([0, 1, 2, 3, 4, 6, 8])
    assert request.sweep == "plain" and request.steps[-1] == 100
    wide = read_request(None, None, "3", read_job(DEMO, ["attack.eps=0.4"]), figure_3=True)
    assert wide.radii == pytest.approx((0, 0.2, 0.4, 0.6, 0.8)) and wide.steps == (3,)


@pytest.mark.parametrize(
    "option, text, expected",
    [
        ("--autoattack", "most", "a number of images, or all"),
        ("--autoattack", "0", "a number of images, or all"),
        ("--autoattack", "1,2", "a number of images, or all"),
        ("--sweep-eps", "8", "radii in"),
        ("--sweep-eps", "1/0", "radii in"),
        ("--sweep-eps", "nan", "radii in"),
        ("--sweep-eps", "", "radii in"),
        ("--sweep-steps", "1,x", "numbers of steps"),
        ("--sweep-steps", "0", "numbers of steps"),
    ],
)
def test_mistakes_are_reported(option, text, expected):
    options = {"--autoattack": None, "--sweep-eps": None, "--sweep-steps": None, option: text}
    with pytest.raises(InputError, match=f"{option} {text}: expected {expected}"):
        read_request(*options.values(), read_job(DEMO))


def test_a_mistake_ends_the_command(trained):
    done = CliRunner().invoke(app, ["evaluate", str(trained), "--sweep-eps", "0,8"])
    assert done.exit_code == 2 and "--sweep-eps 0,8: expected radii" in done.output
    assert "Traceback" not in done.output


def test_messages_list_a_few_names_and_one_line_of_an_error():
    assert first_few([]) == "" and first_few(["a", "b"], 2) == "a, b"
    assert first_few(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert first_line(ValueError("one\ntwo")) == "one" and first_line(ValueError()) == "ValueError"


def test_long_values_are_shortened_in_messages():
    assert shorten("x" * 80) == "x" * 80
    assert shorten("x" * 81) == "x" * 77 + "..."
    assert shorten("one\ntwo\x1b[0m \u2028é") == "one\\ntwo\\x1b[0m \\u2028é"
    with pytest.raises(InputError) as failure:
        read_request("9" * 500 + "x", None, None, read_job(DEMO))
    assert len(str(failure.value)) < 150
