"""The papers' numbers: what they compute from them comes out, and where it does not a note says so."""

import pytest
from pydantic import TypeAdapter

from hpcdat.config.job import Job
from hpcdat.report.comparison import stated_by
from hpcdat.report.papers import TABLES
from hpcdat.report.quantities import QUANTITIES


def stated(name, quantity):
    """A column of a table by the keys of its rows."""
    return {key: values[quantity] for key, values in stated_by(TABLES[name]).items() if quantity in values}


def told(name, text):
    """Whether a note below the table says so."""
    return any(text in note for note in TABLES[name].notes)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_table_is_whole(table):
    keys = [row.key for row in table.rows]
    assert len(set(keys)) == len(keys)
    assert {row.reference for row in table.rows} <= {None, *keys}
    assert set(table.quantities) <= QUANTITIES.keys()
    assert all(row.values.keys() <= set(table.quantities) for row in table.rows)
    reproduces = TypeAdapter(Job.model_fields["reproduces"].annotation)
    for row in table.rows:
        reproduces.validate_python([f"{table.name}/{table.name_of(row)}"])
        assert table.key_of(table.name_of(row), row.work.get("attack.eps", 0)) == row.key


def test_dat_computes_its_speed_up_and_its_ratios_of_c():
    """Its speed-up of computation, 5.67, and C of 8 bits over 32: 0.66 and 1.21."""
    assert stated("dat-1", "speed_up")["dat-pgd"] == pytest.approx(5.67, abs=0.005)
    ratios, megabytes = stated("dat-4", "c_of_reference"), stated("dat-4", "mb")
    assert ratios["dat-pgd-8"] == pytest.approx(0.66, abs=0.005)
    assert ratios["dat-pgd-8-two-sided"] == pytest.approx(1.21, abs=0.006)
    assert ratios["dat-fgsm-32"] == 1
    # 30 x ResNet-50's gradient, and a quarter of ten of them.
    assert megabytes["dat-pgd-32"] == pytest.approx(30 * 97.49, rel=1e-3)
    assert megabytes["dat-pgd-8-two-sided"] == pytest.approx(10 * 97.49 / 4, rel=2e-3)


def test_conadv_gains_what_its_text_says():
    """0.7, 0.9 and 1.0 over vanilla training at 32k, 64k and 96k; 74.3 to 76.2 with AutoAugment."""
    one, two = stated("conadv-1", "ta"), stated("conadv-2", "ta")
    for batch, gain in (("32k", 0.7), ("64k", 0.9), ("96k", 1.0)):
        assert one[f"conadv-{batch}"] - one[f"vanilla-{batch}"] == pytest.approx(gain)
    assert (two["vanilla-96k"], two["conadv-aa-96k"]) == (74.3, 76.2)
    assert {key: one[key] for key in one if key in two} == {key: two[key] for key in two if key in one}
    assert all(one[f"disadv-{key[7:]}"] == one[key] for key in one if key.startswith("conadv-"))
    assert told("conadv-1", "DisAdv and ConAdv agree to the last digit")
    assert one["aa-4k"] - one["aa-32k"] == pytest.approx(0.6) and told("conadv-1", "loses 0.6")


def test_autoaugment_turns_from_a_gain_into_a_loss():
    """Sec. 3.1: 76.9 to 77.5 at 1k, 73.2 to 72.9 at 128k, 64.7 to 62.5 at 256k."""
    top_1, one = stated("conadv-fig2", "ta"), stated("conadv-1", "ta")
    pairs = {batch: (top_1[f"vanilla-{batch}"], top_1[f"aa-{batch}"]) for batch in ("1k", "128k", "256k")}
    assert pairs == {"1k": (76.9, 77.5), "128k": (73.2, 72.9), "256k": (64.7, 62.5)}
    assert {key: one[key] for key in one if key in top_1} == {key: top_1[key] for key in top_1 if key in one}
    gains = {b: top_1[f"aa-{b}"] - top_1[f"vanilla-{b}"] for b in ("1k", "4k", "8k", "16k", "32k", "64k")}
    assert min(gains.values()) > 0 and top_1["aa-96k"] == top_1["vanilla-96k"]
    assert told("conadv-fig2", "ahead up to 64k and level at 96k")


def test_units_that_the_papers_leave_out_are_said_to_be_assumed():
    assert told("conadv-5", "no unit of p") and "(255ths, assumed)" in TABLES["conadv-5"].title
    assert told("conadv-1", "no unit of the warm-up") and told("dat-2", "The radii have no unit")


def test_an_epoch_of_table_3_is_assumed():
    """What its note says of C: an all-gather among twelve nodes fits with ResNet-18, not with WRN-28-10."""
    c = stated("dat-3", "c")
    (epochs, images), link = TABLES["dat-3"].epochs, 1e9 / 8
    assert epochs == 100 and images == 550_000 and "epochs" not in TABLES["dat-3"].work
    seconds = {
        name: c[f"{name}-dat-pgd"] / (images / (12 * b)) for name, b in (("resnet18", 2048), ("wrn", 128))
    }
    assert f"{seconds['resnet18']:.1f}" == "3.8" and f"{11 * 42.6 * 2**20 / link:.1f}" == "3.9"
    assert f"{seconds['wrn']:.2f}" == "0.84" and f"{139 * 2**20 / link:.1f}" == "1.2"
    assert told("dat-3", "3.8 s each") and told("dat-3", "0.84 s")


def test_conadv_times_are_what_the_notes_say():
    ratios = stated("conadv-3", "training_of_reference")
    seconds, throughput = stated("conadv-3", "training"), stated("conadv-fig4", "throughput")
    assert [f"{ratios[f'disadv-{batch}']:.2f}" for batch in ("16k", "32k")] == ["1.39", "1.91"]
    assert told("conadv-3", "1.39 times (16k) and 1.91 times (32k)")
    assert [f"{ratios[f'conadv-{batch}']:.2f}" for batch in ("16k", "32k")] == ["1.07", "1.09"]
    assert told("conadv-3", "1.07 to 1.09 times")
    assert f"{seconds['disadv-64k'] / seconds['conadv-64k']:.1f}" == "2.6" and told(
        "conadv-3", "and 2.6 times"
    )
    # Table 3 and Figure 4 beside each other, in images of 90 epochs.
    images = 90 * TABLES["conadv-3"].work["data.images"]
    assert f"{images / throughput['disadv-32k'] / 1000:.0f}" == "1411" and told("conadv-3", "make 1411 s")
    per_ms = {key: images / seconds[key] / 1000 for key in ("disadv-32k", "conadv-32k")}
    assert [f"{value:.1f}" for value in per_ms.values()] == ["96.8", "170.3"]
    assert told("conadv-fig4", "are 96.8 and 170.3")
    ratios = stated("conadv-fig4", "throughput_of_reference")
    assert ratios["conadv-2k-limit"] == pytest.approx(2, abs=0.03)
    assert {ratios[f"conadv-{batch}"] for batch in ("4k", "8k", "16k", "32k")} == {1.5}
    assert ratios["conadv-512-limit"] == ratios["conadv-1k-limit"] == 2


def test_conadv_gaps_are_differences_of_what_stands_above_them():
    gaps = [4.8, 5.9, 4.3, 4.6, 2.9, 3.5, 2.0, 2.7, 3.1, 3.4, 2.3, 2.2]
    assert list(stated("conadv-4", "gap").values()) == pytest.approx(gaps)
    # Its test accuracies are those of Tables 1 and 2.
    top_1 = stated("conadv-1", "ta") | stated("conadv-2", "ta")
    test = stated("conadv-4", "ta")
    assert test == {key: top_1[key] for key in test}


def test_conadv_perturbations_beside_the_other_tables():
    top_1 = stated("conadv-1", "ta") | stated("conadv-2", "ta")
    swept: dict[str, dict[int, float]] = {}
    for key, ta in stated("conadv-5", "ta").items():
        row, p = key.split("-p")
        swept.setdefault(row, {})[int(p)] = ta
    best = {row: max(by_p.values()) for row, by_p in swept.items()}
    where = {row: [p for p, ta in by_p.items() if ta == best[row]] for row, by_p in swept.items()}
    higher = {row: (best[row], top_1[row]) for row in best if best[row] != top_1[row]}
    assert higher == {"conadv-32k": (77.4, 77.3), "conadv-64k": (76.7, 76.2), "conadv-aa-64k": (77.4, 77.3)}
    assert told("conadv-5", "32k (77.4), of 64k (76.7) and of 64k with AA (77.4)")
    assert told("conadv-1", "up to 77.4 and 76.7") and told("conadv-2", "up to 77.4")
    # The text: from 3 (32k) to 7 (96k), and 5 with augmentation.
    assert where["conadv-32k"] == [3] and where["conadv-aa-32k"] == [5]
    assert where["conadv-96k"] == [4, 8] and told("conadv-5", "the text has 7")
    # Without a perturbation, over the same without ConAdv.
    bare = {row: row.replace("conadv-aa", "aa").replace("conadv", "vanilla") for row in swept}
    assert {row: round(by_p[0] - top_1[bare[row]], 1) for row, by_p in swept.items()} == {
        "conadv-32k": 0.2,
        "conadv-64k": 0.4,
        "conadv-96k": 0.3,
        "conadv-aa-32k": 0.9,
        "conadv-aa-64k": 1.2,
        "conadv-aa-96k": 1.5,
    }
    assert told("conadv-5", "0.2 to 0.4") and told("conadv-5", "0.9 to 1.5")
    assert told("conadv-2", "0.9, 1.2 and 1.5")
