"""Exchange with nnU-Net: its integrity check reads what is exported, its predictor agrees with what is imported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.images import read_image
from datamodules.masks import MaskSet
from datamodules.nnunet_preprocessing import preprocess_as_nnunet
from datamodules.splits import Splits, make_splits
from experiments.cli import main
from experiments.nnunet_export import export
from experiments.nnunet_import import import_model, load_model
from experiments.nnunet_plans import architecture_of, settings_of
from tests.experiments.nnunet_oracle import needed, nnunet_home
from tests.tiny import Tiny

__all__ = ["nnunet_home"]

GEOMETRIES = {
    # native spacing (I, J, K) in mm, voxels, target spacing (K, J, I), patch
    "3d_fullres": ((1.4, 1.4, 7.0), (40, 44, 12), (6.0, 2.0, 2.0), (8, 16, 16)),
    "2d": ((1.4, 1.4, 7.0), (40, 44, 12), (2.0, 2.0), (16, 24)),
    # a patch that is larger than the scan along one axis, and a z-score of what is not 0
    "3d_thin": ((2.0, 2.0, 2.5), (36, 34, 26), (2.2, 1.9, 2.3), (16, 16, 40)),
}
PLANNED = {name: values[2:] for name, values in GEOMETRIES.items()} | {"3d_real": ((9.0, 5.0, 5.0), (16, 48, 48))}


def write_scan(folder: Path, name: str, spacing: Sequence[float], shape: Sequence[int], seed: int) -> None:
    """A body with a bright liver on one side, and two liver labels, 1 and 3."""
    rng = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = (i**2 + j**2 < 0.8) & (np.abs(k) < 0.95)
    centre = rng.uniform(-0.1, 0.1, 3) + np.array([0.35, 0.0, 0.0])
    liver = ((i - centre[0]) / 0.4) ** 2 + ((j - centre[1]) / 0.5) ** 2 + ((k - centre[2]) / 0.7) ** 2 < 1
    image = np.where(liver, 220, np.where(body, 100, 0)) + rng.normal(0, 8, body.shape) * body
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    for kind, data in (("images", np.rint(image)), ("masks", np.where(liver, np.where(j > 0, 3, 1), 0))):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data.astype(np.int16), affine), folder / kind / f"{name}.nii.gz")


def write_cohort(folder: Path, geometry: str) -> tuple[Cohort, Splits]:
    """Four patients, A with two visits, and two folds."""
    spacing, shape, *_ = GEOMETRIES[geometry]
    names = ("A_1", "A_2", "B_1", "C_1", "D_1")
    for seed, name in enumerate(names):
        write_scan(folder, name, spacing, shape, seed)
    frame = pd.DataFrame(
        {
            "scan_id": names,
            "patient_id": [name[0] for name in names],
            "sequence": "T2W",
            "image": [f"images/{name}.nii.gz" for name in names],
            "mask": [f"masks/{name}.nii.gz" for name in names],
            "mask_labels": "1,3",
            "source": "S",
            "visit": [name[2] for name in names],
        }
    )
    Cohort(frame, folder, "table").save(folder / "cohort.parquet")
    cohort = Cohort.load(folder / "cohort.parquet")
    splits = make_splits(cohort, "none", folds=2, seed=0)
    splits.save(folder / "splits.json")
    return cohort, splits


def plans_of(name: str) -> dict[str, Any]:
    """Plans as nnU-Net writes them, of a tiny network."""
    spacing, patch = PLANNED[name]
    dimensions = len(patch)
    stride = [1, 2, 2] if dimensions == 3 and spacing[0] > 4 else [2] * dimensions
    kernel = [1, 3, 3] if dimensions == 3 and spacing[0] > 4 else [3] * dimensions
    function = "resample_data_or_seg_to_shape"
    how = {"order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": f"nnUNetPlans_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [name == "3d_thin"],
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_data_kwargs": {"is_seg": False, **how},
        "resampling_fn_seg_kwargs": {"is_seg": True, **how, "order": 1},
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, **how, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [4, 8, 8],
                "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
                "kernel_sizes": [kernel, [3] * dimensions, [3] * dimensions],
                "strides": [[1] * dimensions, stride, [2] * dimensions],
                "n_conv_per_stage": [1, 1, 1],
                "n_conv_per_stage_decoder": [1, 1],
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset001_Liver",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {name: configuration},
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0, "std": 1.0}},
    }


DATASET = {
    "channel_names": {"0": "T2W"},
    "labels": {"background": 0, "liver": 1},
    "numTraining": 4,
    "file_ending": ".nii.gz",
}


def trained(plans: dict[str, Any], name: str, cohort: Cohort, seed: int, bright: float) -> dict[str, torch.Tensor]:
    """Weights of nnU-Net's own network after a few steps on the cohort's first scan: bright is liver."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    torch.manual_seed(seed)
    described = plans["configurations"][name]["architecture"]
    network = get_network_from_plans(
        described["network_class_name"], described["arch_kwargs"], described["_kw_requires_import"], 1, 2,
        deep_supervision=False,
    )  # fmt: skip
    settings = settings_of(plans, DATASET, name, None, "here")
    data = torch.from_numpy(preprocess_as_nnunet(read_image(cohort.scans[0].image), settings.grid).data)
    # a crop that the network's strides divide, also where the scan is smaller than the patch
    sizes = data.shape[-len(settings.patch) :]
    patch = [min(edge, size // 4 * 4) for edge, size in zip(settings.patch, sizes, strict=True)]
    corner = [(size - edge) // 2 for size, edge in zip(sizes, patch, strict=True)]
    if len(patch) == 2:
        part = data[:, corner[0] : corner[0] + patch[0], corner[1] : corner[1] + patch[1]][:, None]
    else:
        part = data[tuple(slice(low, low + edge) for low, edge in zip(corner, patch, strict=True))][None, None]
    target = (part[:, 0] > data.max() * bright).long()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(torch.nn.functional.cross_entropy(network(part), target))
        optimizer.step()
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


def write_results(home: Path, name: str, cohort: Cohort, folds: int = 2, bright: float = 0.55) -> Path:
    """A results folder as nnU-Net's trainer leaves it."""
    plans = plans_of(name)
    results = home / "results" / "Dataset001_Liver" / f"nnUNetTrainer__nnUNetPlans__{name}"
    results.mkdir(parents=True)
    (results / "plans.json").write_text(json.dumps(plans))
    (results / "dataset.json").write_text(json.dumps(DATASET))
    for fold in range(folds):
        (results / f"fold_{fold}").mkdir()
        checkpoint = {
            "network_weights": trained(plans, name, cohort, fold, bright),
            "optimizer_state": {"state": {}, "param_groups": []},
            "grad_scaler_state": None,
            "logging": {"dice_per_class_or_region": [[np.float32(0.5)], [np.float64(0.6)]], "lrs": [0.01]},
            "_best_ema": np.float64(0.7),
            "current_epoch": 2,
            "init_args": {
                "plans": plans,
                "configuration": name,
                "fold": fold,
                "dataset_json": DATASET,
                "device": torch.device("cpu"),
            },
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": tuple(range(len(PLANNED[name][1]))),
        }
        torch.save(checkpoint, results / f"fold_{fold}" / "checkpoint_final.pth")
    return results


def predicted_by_nnunet(results: Path, folds: tuple[int, ...], mirror: bool, scans: Sequence[Any], out: Path) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=mirror, device=torch.device("cpu"),
        perform_everything_on_device=False, allow_tqdm=False,
    )  # fmt: skip
    predictor.initialize_from_trained_model_folder(str(results), folds, "checkpoint_final.pth")
    predictor.predict_from_files_sequential(
        [[str(scan.image)] for scan in scans], [str(out / scan.scan_id) for scan in scans]
    )


def mask(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj) > 0


def dice(one: np.ndarray, two: np.ndarray) -> float:
    return float(2 * (one & two).sum() / (one.sum() + two.sum()))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cohort, Splits, Path]:
    """A cohort, its split, and a model of two folds: folder, table, split, results folder."""
    needed()
    home = tmp_path_factory.mktemp("world")
    cohort, splits = write_cohort(home / "data", "3d_fullres")
    export(cohort, splits, home / "raw")
    results = write_results(home, "3d_fullres", cohort)
    (results / "splits_final.json").write_text((home / "raw/Dataset001_Liver/splits_final.json").read_text())
    return home, cohort, splits, results


@pytest.mark.parametrize("name", GEOMETRIES)
def test_imported_masks_are_nnunets(name: str, nnunet_home: Path) -> None:
    cohort, _ = write_cohort(nnunet_home / "data", name)
    results = write_results(nnunet_home, name, cohort)
    cohort = cohort.select(patients=["B", "C"])
    cohort.save(nnunet_home / "data" / "two.parquet")
    assert_agreement(results, cohort, str(nnunet_home / "data" / "two.parquet"), nnunet_home)


@pytest.mark.real
def test_imported_masks_are_nnunets_on_a_real_scan(test_data: Path, nnunet_home: Path) -> None:
    words = ["cohort", "nifti", str(test_data / "chaos_t2"), "--image", "image_{id:15}.nii.gz", "--sequence", "T2W"]
    table = str(nnunet_home / "chaos.parquet")
    assert main([*words, "--source", "CHAOS", "--out", table]) == 0
    cohort = Cohort.load(table)
    results = write_results(nnunet_home, "3d_real", cohort, bright=0.2)
    assert_agreement(results, cohort, table, nnunet_home)


def assert_agreement(results: Path, cohort: Cohort, table: str, home: Path) -> None:
    """nnU-Net's predictor and ours, with both folds, without and with mirroring."""
    nnunet_home, model = home, home / "model.ckpt"
    assert main(["nnunet", "import", str(results), "--out", str(model)]) == 0
    for mirror in (False, True):
        theirs, ours = nnunet_home / f"theirs{mirror}", nnunet_home / f"ours{mirror}"
        theirs.mkdir()
        predicted_by_nnunet(results, (0, 1), mirror, cohort.scans, theirs)
        words = ["predict", "--run", str(model), "--data", table, "--out", str(ours)]
        assert main([*words, *(["--mirror"] if mirror else [])]) == 0
        for scan in cohort.scans:
            one, two = mask(theirs / f"{scan.scan_id}.nii.gz"), mask(ours / f"{scan.scan_id}.nii.gz")
            assert 0.01 < one.mean() < 0.9
            assert dice(one, two) >= 0.999, (scan.scan_id, mirror)


def test_one_fold_and_a_run_directory(world: tuple[Path, Cohort, Splits, Path], tmp_path: Path) -> None:
    _, cohort, _, results = world
    words = ["nnunet", "import", str(results), "--out", str(tmp_path / "run"), "--fold", "1"]
    assert main(words) == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoints", "config.yaml", "done.json", "provenance.json",
    }  # fmt: skip
    assert main(words) == 2  # never over an older one
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    predicted_by_nnunet(results, (1,), False, cohort.scans[:1], theirs)
    scan = cohort.scans[0]
    assert (
        main(["predict", "--run", str(tmp_path / "run"), "--data", str(scan.image), "--out", str(tmp_path / "o")]) == 0
    )
    name = f"{scan.scan_id}.nii.gz"
    assert dice(mask(theirs / name), mask(tmp_path / "o" / name)) >= 0.999
    assert main(["predict", "--run", str(tmp_path / "run"), "--ckpt", "last", "--data", str(scan.image), "--out",
                 str(tmp_path / "p")]) == 2  # fmt: skip


def test_whom_it_trained_on(world: tuple[Path, Cohort, Splits, Path], tmp_path: Path) -> None:
    home, _, splits, results = world
    table = home / "data" / "cohort.parquet"
    known = import_model(results, tmp_path / "known.ckpt", cohort=table)
    assert [fold.trained_on for fold in known.folds] == [fold.train for fold in splits.folds]
    assert [fold.tested for fold in known.folds] == [fold.test for fold in splits.folds]
    # cases are no patients: without a cohort nobody knows
    unknown = import_model(results, tmp_path / "unknown.ckpt")
    assert all(fold.trained_on is None and fold.cases for fold in unknown.folds)
    assert load_model(tmp_path / "known.ckpt")[0] == known
    for name in ("known", "unknown"):
        words = ["masks", str(tmp_path / f"{name}.ckpt"), "--cohort", str(table), "--out", str(tmp_path / name)]
        assert main(words) == 0
    with pytest.raises(InputError, match="nobody knows which patients"):
        MaskSet.load_for("out_of_fold", tmp_path / "unknown")
    masks = MaskSet.load_for("out_of_fold", tmp_path / "known")
    cohort = Cohort.load(table)
    for fold in splits.folds:
        assert not masks.leaks([scan for scan in cohort.scans if scan.patient_id in fold.test], fold.test)
    for scan in cohort.scans:
        makers = [masks.segmenters[key] for key in masks.masks[scan.scan_id].segmenters]
        assert makers and all(scan.patient_id not in (maker.trained_on or ()) for maker in makers)


def test_predictions_come_in_as_external_masks(world: tuple[Path, Cohort, Splits, Path], tmp_path: Path) -> None:
    home, cohort, splits, results = world
    table = str(home / "data" / "cohort.parquet")
    folder = tmp_path / "predicted"
    folder.mkdir()
    predicted_by_nnunet(results, (0, 1), False, cohort.scans, folder)
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    words = ["nnunet", "import-predictions", str(folder), "--cohort", table]
    assert main([*words, "--out", str(tmp_path / "masks")]) == 0
    masks = MaskSet.load(tmp_path / "masks")
    assert {maker.trained_on for maker in masks.segmenters.values()} == {None}
    for scan in cohort.scans:
        np.testing.assert_array_equal(mask(masks.path(scan.scan_id)), mask(folder / f"{scan.scan_id}.nii.gz"))
    import_model(results, tmp_path / "model.ckpt", cohort=home / "data" / "cohort.parquet")
    assert main([*words, "--model", str(tmp_path / "model.ckpt"), "--out", str(tmp_path / "named")]) == 0
    named = MaskSet.load(tmp_path / "named")
    trained_on = {patient for maker in named.segmenters.values() for patient in maker.trained_on or ()}
    assert trained_on == {patient for fold in splits.folds for patient in fold.train}
    assert named.leaks(cohort.scans, ())
    (folder / "A_1.nii.gz").unlink()
    assert main([*words, "--out", str(tmp_path / "again")]) == 2


def test_the_export_passes_nnunets_integrity_check(
    tmp_path: Path, nnunet_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunetv2.experiment_planning import verify_dataset_integrity as oracle

    # its workers as threads: a new process would import all of nnU-Net once more
    monkeypatch.setattr(oracle.multiprocessing, "get_context", lambda kind: SimpleNamespace(Pool=ThreadPool))
    cohort, splits = write_cohort(tmp_path / "data", "3d_fullres")
    words = ["nnunet", "export", str(tmp_path / "data/cohort.parquet"), "--splits", str(tmp_path / "data/splits.json")]
    assert main([*words, "--out", str(nnunet_home / "raw"), "--id", "7", "--name", "Phantom"]) == 0
    folder = nnunet_home / "raw" / "Dataset007_Phantom"
    oracle.verify_dataset_integrity(str(folder), num_processes=1)
    for scan in cohort.scans:
        label = nib.load(folder / "labelsTr" / f"{scan.scan_id}.nii.gz")
        assert scan.mask is not None
        np.testing.assert_array_equal(np.asarray(label.dataobj), mask(scan.mask))
        assert (folder / "imagesTr" / f"{scan.scan_id}_0000.nii.gz").read_bytes() == scan.image.read_bytes()
    patient = {scan.scan_id: scan.patient_id for scan in cohort.scans}
    folds = json.loads((folder / "splits_final.json").read_text())
    for entry, fold in zip(folds, splits.folds, strict=True):
        assert {patient[case] for case in entry["train"]} == set(fold.train)
        assert {patient[case] for case in entry["val"]} == {*fold.valid, *fold.test}
        assert {patient[case] for case in entry["test"]} == set(fold.test)
        assert not set(entry["train"]) & set(entry["val"])
    assert json.loads((folder / "cases.json").read_text())["cases"]["A_2"]["patient_id"] == "A"
    assert main([*words, "--out", str(nnunet_home / "raw"), "--id", "7", "--name", "Phantom"]) == 2


def test_a_fixed_test_part_goes_to_images_ts(tiny_cohort: Tiny, tmp_path: Path) -> None:
    done = export(tiny_cohort.table, tiny_cohort.split, tmp_path / "Dataset012_Tiny", "T2W")
    assert done.folder == tmp_path / "Dataset012_Tiny"
    table = tiny_cohort.table
    assert {table.scan(case).patient_id for case in done.test} == set(tiny_cohort.split.folds[0].test)
    assert len(done.training) == 8 and len(list((done.folder / "labelsTs").iterdir())) == 4
    # the round trip: the reader of nnU-Net's layout finds the same scans
    words = ["cohort", "nnunet", str(done.folder), "--out", str(tmp_path / "back.parquet")]
    assert main(words) == 0
    back = Cohort.load(tmp_path / "back.parquet")
    assert {scan.scan_id for scan in back.scans} == {*done.training, *done.test}


def test_old_plans_are_read_as_nnunet_reads_them() -> None:
    needed()
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    for name in ("PlainConvUNet",):
        old = {
            "UNet_class_name": name, "UNet_base_num_features": 32, "unet_max_num_features": 320,
            "n_conv_per_stage_encoder": [2, 2, 2, 2, 2], "n_conv_per_stage_decoder": [2, 2, 2, 2],
            "num_pool_per_axis": [2, 4, 4], "patch_size": [16, 64, 64],
            "conv_kernel_sizes": [[1, 3, 3], *[[3, 3, 3]] * 4],
            "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
        }  # fmt: skip
        ours = architecture_of(old, "here")
        with pytest.warns(UserWarning, match="old nnU-Net plans"):
            theirs = ConfigurationManager(dict(old)).configuration["architecture"]
        assert json.dumps(ours["arch_kwargs"], sort_keys=True) == json.dumps(theirs["arch_kwargs"], sort_keys=True)
        assert ours["network_class_name"] == theirs["network_class_name"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p, d: d["channel_names"].update({"1": "T1W"}), "2 channels"),
        (lambda p, d: d["labels"].update({"liver": [1, 2]}), "trained on regions"),
        (lambda p, d: d.update(labels={"background": 0, "spleen": 1, "kidney": 2}), "no label 'liver'"),
        (lambda p, d: p["configurations"]["2d"].update(previous_stage="3d_lowres"), "second stage of a cascade"),
        (lambda p, d: p["configurations"]["2d"].update(preprocessor_name="Mine"), "preprocessor Mine"),
        (lambda p, d: p["configurations"]["2d"].update(normalization_schemes=["RGBTo01"]), "RGBTo01 is not followed"),
        (lambda p, d: p["configurations"]["2d"].update(resampling_fn_data="torch"), "resampling_fn_data torch"),
        (lambda p, d: p["configurations"]["2d"]["architecture"].update(network_class_name="os.system"), "is not of"),
        (lambda p, d: p["configurations"]["2d"].pop("spacing"), "not as nnU-Net v2 writes it"),
        (lambda p, d: p.update(image_reader_writer="Tiff3DIO"), "a reader of NIfTI"),
        (lambda p, d: p["configurations"].pop("2d"), "no configuration '2d'"),
    ],
)
def test_what_is_not_followed_is_refused(change: Any, told: str) -> None:
    plans, dataset = plans_of("2d"), json.loads(json.dumps(DATASET))
    change(plans, dataset)
    with pytest.raises(InputError, match=told):
        settings_of(plans, dataset, "2d", None, "here")


def test_wrong_folders(world: tuple[Path, Cohort, Splits, Path], tmp_path: Path) -> None:
    home, _, _, results = world
    with pytest.raises(InputError, match=r"plans\.json: no such file"):
        import_model(tmp_path, tmp_path / "m.ckpt")
    with pytest.raises(InputError, match=r"fold_7.* no such checkpoint"):
        import_model(results, tmp_path / "m.ckpt", folds=["7"])
    with pytest.raises(InputError, match="no fold_"):
        import_model(results, tmp_path / "m.ckpt", checkpoint="other.pth")
    other = Cohort.load(home / "data" / "cohort.parquet").select(patients=["A"])
    other.save(home / "data" / "other.parquet")
    with pytest.raises(InputError, match="has no scan"):
        import_model(results, tmp_path / "m.ckpt", cohort=home / "data" / "other.parquet")
    with pytest.raises(InputError, match="not a run directory"):
        torch.save({"weights": 1}, tmp_path / "foreign.ckpt")
        from experiments.nnunet_segmenter import open_segmenter

        open_segmenter(str(tmp_path / "foreign.ckpt"))


class Code:
    """What a pickle must not run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code has run",))


def test_a_checkpoint_with_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from experiments.nnunet_import import load_weights

    torch.save({"network_weights": {}, "trainer_name": Code(), "init_args": {}}, tmp_path / "c.pth")
    with pytest.raises(InputError, match="plain values"):
        load_weights(tmp_path / "c.pth")
    assert "code has run" not in capsys.readouterr().out
