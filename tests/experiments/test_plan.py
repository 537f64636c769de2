"""The planner against nnU-Net's own, on random geometries, on phantoms and on real scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.phantom import make_phantom
from datamodules.splits import Splits, make_splits
from experiments.cli import main
from experiments.nnunet_export import export
from experiments.plan_files import overlay, plan_experiment
from experiments.plan_fingerprint import Fingerprint, fingerprint_of
from experiments.plan_rules import PRESETS, Plan, make_plan
from tests.experiments.nnunet_oracle import as_oracle, nnunet_home, oracle_fingerprint, oracle_plan
from tests.tiny import Tiny

__all__ = ["nnunet_home"]

GEOMETRIES = {
    # spacing (K, J, I) in mm, voxels, how much both vary from scan to scan
    "thin": ((2.0, 1.6, 1.6), (60, 150, 190), 0.1),
    "anisotropic": ((7.0, 1.2, 1.2), (36, 250, 256), 0.2),
    "very many voxels": ((1.0, 0.7, 0.7), (320, 480, 512), 0.1),
    "coronal": ((1.5, 6.0, 1.5), (256, 40, 256), 0.2),
    "isotropic": ((1.0, 1.0, 1.0), (128, 128, 128), 0.0),
    "few thick slices": ((10.0, 1.4, 1.4), (9, 256, 256), 0.3),
}


def fingerprint_like(name: str, scans: int = 12) -> Fingerprint:
    spacing, shape, spread = GEOMETRIES[name]
    rng = np.random.default_rng(sorted(GEOMETRIES).index(name))
    factors = 1 + rng.uniform(-spread, spread, (scans, 3))
    sizes = np.maximum(1, np.rint(np.array(shape) * (1 + rng.uniform(-spread, spread, (scans, 3))))).astype(int)
    return Fingerprint(
        "cohort", "0" * 64, "0" * 64, 0, "T2W", tuple(str(n) for n in range(scans)), (2, 1, 0), False,
        tuple((int(a), int(b), int(c)) for a, b, c in sizes),
        tuple((float(a), float(b), float(c)) for a, b, c in np.array(spacing) * factors),
        tuple(rng.uniform(0.5, 1.0, scans).tolist()),
        dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5"), 1.0),
    )  # fmt: skip


def assert_same(plan: Plan, oracle: dict[str, Any], rel: float = 1e-12) -> None:
    assert list(plan.transpose) == oracle["transpose_forward"]
    configurations = {k: v for k, v in oracle["configurations"].items() if "inherits_from" not in v}
    assert set(plan.configurations) == set(configurations)
    for name, theirs in configurations.items():
        ours = plan.configurations[name]
        network = theirs["architecture"]["arch_kwargs"]
        assert ours.spacing == pytest.approx(theirs["spacing"], rel=rel), name
        assert list(ours.patch) == list(theirs["patch_size"]), name
        assert ours.batch_size == theirs["batch_size"], name
        assert len(ours.strides) == network["n_stages"], name
        assert [list(entry) for entry in ours.strides] == [list(entry) for entry in network["strides"]], name
        assert [list(entry) for entry in ours.kernel_sizes] == [list(e) for e in network["kernel_sizes"]], name
        assert list(ours.features) == list(network["features_per_stage"]), name
        blocks = network.get("n_conv_per_stage", network.get("n_blocks_per_stage"))
        assert list(ours.blocks) == list(blocks), name
        assert list(ours.decoder_blocks) == list(network["n_conv_per_stage_decoder"]), name
        assert ours.batch_dice == theirs["batch_dice"], name
        assert ours.median_shape == pytest.approx(theirs["median_image_size_in_voxels"]), name
        assert plan.mask_for_normalisation == theirs["use_mask_for_norm"][0], name


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_plain_is_nnunets_plan(geometry: str, nnunet_home: Path) -> None:
    fingerprint = fingerprint_like(geometry)
    assert_same(make_plan(fingerprint), oracle_plan(nnunet_home, as_oracle(fingerprint), "plain"))


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "plain"])
@pytest.mark.parametrize("geometry", ["thin", "anisotropic"])
def test_residual_is_nnunets_plan(preset: str, geometry: str, nnunet_home: Path) -> None:
    fingerprint = fingerprint_like(geometry)
    assert_same(make_plan(fingerprint, preset), oracle_plan(nnunet_home, as_oracle(fingerprint), preset))


@pytest.mark.parametrize("memory", [3.0, 20.0])
def test_memory_is_nnunets(memory: float, nnunet_home: Path) -> None:
    fingerprint = fingerprint_like("anisotropic")
    ours = make_plan(fingerprint, "plain", memory)
    assert_same(ours, oracle_plan(nnunet_home, as_oracle(fingerprint), "plain", memory))


def test_low_resolution_is_there_where_scans_are_large() -> None:
    assert "3d_lowres" in make_plan(fingerprint_like("very many voxels")).configurations
    assert "3d_lowres" not in make_plan(fingerprint_like("thin")).configurations


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, Splits, Path]:
    """Four patients with thin T1W and thick T2W slices."""
    folder = tmp_path_factory.mktemp("phantoms")
    cohort = make_phantom(folder, 4, 5, detail=0.5, test_fraction=0.0, workers=1, progress=False)
    splits = make_splits(cohort, "none", folds=2, seed=0)
    splits.save(folder / "splits.json")
    return cohort, splits, folder


@pytest.mark.parametrize("sequence", ["T1W", "T2W"])
def test_phantoms_get_nnunets_plan(sequence: str, phantoms: tuple[Cohort, Splits, Path], nnunet_home: Path) -> None:
    cohort, splits, _ = phantoms
    folder = export(cohort, splits, nnunet_home / "raw", sequence).folder
    ours = fingerprint_of(cohort, splits, 0, sequence)
    theirs = oracle_fingerprint(folder, ours.scans)
    assert [list(shape) for shape in ours.shapes] == theirs["shapes_after_crop"]
    np.testing.assert_allclose(ours.spacings, theirs["spacings"], rtol=1e-6)
    assert np.median(ours.relative_sizes) == pytest.approx(theirs["median_relative_size_after_cropping"])
    for key, value in theirs["foreground_intensity_properties_per_channel"]["0"].items():
        assert ours.intensities[key] == pytest.approx(value, rel=1e-4), key
    for preset in ("plain", "residual-l"):
        assert_same(make_plan(ours, preset), oracle_plan(nnunet_home, theirs, preset), rel=1e-6)


@pytest.mark.real
def test_chaos_gets_nnunets_plan(test_data: Path, nnunet_home: Path) -> None:
    table = nnunet_home / "chaos.parquet"
    words = ["cohort", "nifti", str(test_data / "chaos_t2"), "--image", "image_{id}.nii.gz", "--mask"]
    assert main([*words, "label_{id}.nii.gz", "--sequence", "T2W", "--source", "CHAOS", "--out", str(table)]) == 0
    cohort = Cohort.load(table)
    splits = make_splits(cohort, "none", folds=5, seed=0)
    folder = export(cohort, splits, nnunet_home / "raw").folder
    ours = fingerprint_of(cohort, splits, 0)
    theirs = oracle_fingerprint(folder, ours.scans)
    assert [list(shape) for shape in ours.shapes] == theirs["shapes_after_crop"]
    for preset in PRESETS:
        assert_same(make_plan(ours, preset), oracle_plan(nnunet_home, theirs, preset), rel=1e-6)


def test_axes_are_turned_to_ras() -> None:
    # the slice axis of a coronal file is the array's middle one; posterior-anterior in RAS+
    plan = make_plan(fingerprint_like("coronal"))
    assert plan.transpose == (1, 0, 2) and plan.ras_axes == (1, 2, 0)
    full = plan.configurations["3d_fullres"]
    arguments = overlay(plan, "3d_fullres")["data"]["init_args"]
    patch = arguments["patch"]
    assert (patch[1], patch[2], patch[0]) == full.patch
    assert np.argmax(arguments["preprocessing"]["spacing"]) == 1
    flat = overlay(plan, "2d")
    assert flat["data"]["init_args"]["patch"][1] == 1
    assert flat["data"]["init_args"]["preprocessing"]["spacing"][1] is None
    network = flat["model"]["init_args"]["network"]["init_args"]
    assert all(entry[1] == 1 for entry in (*network["strides"], *network["kernel_sizes"]))


def test_only_the_folds_training_patients_are_looked_at(tiny_cohort: Tiny) -> None:
    cohort, splits = tiny_cohort.table, tiny_cohort.split
    for fold in range(2):
        seen = {cohort.scan(scan).patient_id for scan in fingerprint_of(cohort, splits, fold, "T2W").scans}
        assert seen == set(splits.folds[fold].train)


@pytest.mark.slow
def test_the_overlay_trains(tiny_cohort: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from experiments.lightning_cli import fit_and_test
    from tests.tiny import ONE_LOGGER

    words = ["plan", str(tiny_cohort.cohort), "--splits", str(tiny_cohort.splits), "--sequence", "T2W"]
    assert main([*words, "--configuration", "all", "--out", str(tmp_path / "plan.yaml")]) == 0
    facts = json.loads((tmp_path / "plan_fingerprint.json").read_text())
    assert facts["plan"]["planner"] == "ExperimentPlanner"
    for name in ("3d_fullres", "2d"):
        file = tmp_path / f"plan_{name}.yaml"
        planned = yaml.safe_load(file.read_text())
        stages = len(planned["model"]["init_args"]["network"]["init_args"]["features"])
        fit = [*tiny_cohort.words("segmentation", str(file), runs=tmp_path / name), *ONE_LOGGER]
        fit += ["--model.init_args.network.init_args.features", str([4] * stages), "--trainer.accelerator", "cpu"]
        fit += ["--trainer.max_epochs", "1", "--data.init_args.batch_size", "2"]
        fit += ["--data.init_args.patches_per_epoch", "2", "--trainer.check_val_every_n_epoch", "1"]
        if name == "3d_fullres":
            capsys.readouterr()
            with pytest.raises(SystemExit):
                main(["fit", *fit, "--print_config"])
            used = yaml.safe_load(capsys.readouterr().out)
        else:
            assert not fit_and_test(fit)
            (config,) = (tmp_path / name).glob("*/*/*/config.yaml")
            used = yaml.safe_load(config.read_text())
        for key in ("patch", "sequence"):
            assert used["data"]["init_args"][key] == planned["data"]["init_args"][key]
        grid = planned["data"]["init_args"]["preprocessing"]
        assert used["data"]["init_args"]["preprocessing"]["spacing"] == grid["spacing"]
        assert used["model"]["init_args"]["window"] == planned["model"]["init_args"]["window"]
        network = planned["model"]["init_args"]["network"]["init_args"]
        for key in ("strides", "kernel_sizes", "blocks", "decoder_blocks", "topology"):
            assert used["model"]["init_args"]["network"]["init_args"][key] == network[key]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"fold": 7}, "the split has the folds 0 to 1"),
        ({"sequence": None}, "choose one with --sequence"),
        ({"sequence": "DWI"}, "it has T1W, T2W"),
        ({"out": "plan.json"}, "ends in .yaml"),
        ({"preset": "huge"}, "choose one of plain"),
        ({"memory_gb": 0.0}, "give the GPU's memory"),
        ({"configuration": "3d_lowres"}, "the rules ask for none"),
    ],
)
def test_wrong_requests(words: dict[str, Any], told: str, tiny_cohort: Tiny, tmp_path: Path) -> None:
    options: dict[str, Any] = {"fold": 0, "sequence": "T2W", "out": "plan.yaml", **words}
    out = tmp_path / options.pop("out")
    with pytest.raises(InputError, match=told):
        plan_experiment(tiny_cohort.cohort, tiny_cohort.splits, options.pop("fold"), out, **options)
    assert not out.exists()
