"""Every shipped YAML is run: found by glob, so that none can be forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from scipy.special import expit

from callbacks.run_directory import RunDirectory
from datamodules.cohort import Cohort
from datamodules.errors import InputError
from datamodules.files import read_json
from datamodules.phantom import make_phantom
from datamodules.records import read_records
from datamodules.splits import make_splits
from experiments.cli import main
from experiments.cli_given import given_of
from experiments.cli_machine import fast_bf16
from experiments.cli_precheck import precheck
from experiments.cli_words import shipped_names, with_shipped
from experiments.grid import run_study
from experiments.grid_resolve import Resolver
from experiments.grid_words import Places
from experiments.grid_words import words_of as words_of_cell
from experiments.lightning_cli import fit_and_test, parsed, run_command
from experiments.study import Study, cells_of
from tests.tiny import ONE_LOGGER, PREPROCESSING, TESTED, Tiny, frame_of

ROOT = Path(__file__).parents[2] / "experiments"
CONFIGS = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
STUDIES = sorted(path.name for path in (ROOT / "studies").rglob("*.yaml"))

SMALL_NETWORK = ["--model.init_args.network.init_args.features", "[4, 8, 8, 8]"]
SMALL_SEGMENTER = [*PREPROCESSING, *SMALL_NETWORK, "--data.init_args.patch", "[16, 16, 8]"]
SMALL_DEEP = [*PREPROCESSING, SMALL_NETWORK[0], "[4, 4, 8, 8, 8]", "--data.init_args.patch", "[32, 32, 16]"]
WINDOW = ["--model.init_args.window", "[16, 16, 8]"]
SMALL_CLASSIFIER = [*PREPROCESSING, "--model.init_args.network.init_args.backbone", "resnet10t"]

WIDER = [PREPROCESSING[0], PREPROCESSING[1].replace("24, 24", "32, 32")]
"""For encoders that halve a slice five times."""

DEEPER = [PREPROCESSING[0], PREPROCESSING[1].replace("24, 24, 8", "32, 32, 32")]
"""For encoders that halve a volume five times."""

# each YAML: the configurations that it is used with, in order, and what makes the whole small
USE: dict[str, tuple[list[str], list[str]]] = {
    "segmentation.yaml": (["segmentation"], [*SMALL_SEGMENTER, *WINDOW]),
    "real_t2.yaml": (
        ["segmentation", "real_t2"],
        [*SMALL_DEEP, "--data.init_args.patches_per_epoch", "4", "--trainer.precision", "32-true"],
    ),
    "segmentation_nnunet.yaml": (
        ["segmentation", "segmentation_nnunet"],
        [*SMALL_SEGMENTER, *WINDOW, "--data.init_args.patches_per_epoch", "4"],
    ),
    "segmentation_short.yaml": (
        ["segmentation", "segmentation_short"],
        [*SMALL_SEGMENTER, *WINDOW, "--data.init_args.patches_per_epoch", "4"],
    ),
    "segmentation_whole.yaml": (["segmentation", "segmentation_whole"], [*PREPROCESSING, *SMALL_NETWORK]),
    "direct.yaml": (["direct"], SMALL_CLASSIFIER),
    "masked_attention_resnet.yaml": (["masked_attention_resnet"], SMALL_CLASSIFIER),
    "probe_liver_erased.yaml": (["masked_attention_resnet", "probe_liver_erased"], SMALL_CLASSIFIER),
    "look_inside.yaml": (["direct", "look_inside"], SMALL_CLASSIFIER),
    "probe_mask_only.yaml": (["masked_attention_resnet", "probe_mask_only"], SMALL_CLASSIFIER),
    "probe_source.yaml": (["direct", "probe_source"], SMALL_CLASSIFIER),
    "probe_permuted.yaml": (["masked_attention_resnet", "probe_permuted"], SMALL_CLASSIFIER),
    "staging_slices.yaml": (
        ["staging_slices"],
        [
            *SMALL_CLASSIFIER,
            *["--model.init_args.classes", "2", "--model.init_args.network.init_args.classes", "1"],
        ],
    ),
    # the tiny split is by stiffness: two classes, one logit
    "staging.yaml": (
        ["staging"],
        [*SMALL_CLASSIFIER, "--model.init_args.classes", "2", "--model.init_args.network.init_args.classes", "1"],
    ),
    "staging_masked.yaml": (
        ["staging", "staging_masked"],
        [*SMALL_CLASSIFIER, "--model.init_args.classes", "2", "--model.init_args.network.init_args.classes", "1"],
    ),
    "probe_covariates.yaml": (
        ["staging", "probe_covariates"],
        [*PREPROCESSING, "--model.init_args.classes", "2", "--model.init_args.network.init_args.classes", "1"],
    ),
    "demo/segmentation.yaml": (["segmentation", "demo/segmentation"], [*PREPROCESSING, *SMALL_NETWORK]),
    "demo/classification.yaml": (["direct", "demo/classification"], PREPROCESSING),
    "data/thin_slices.yaml": (["direct", "data/thin_slices"], SMALL_CLASSIFIER),
    "data/thick_slices.yaml": (["direct", "data/thick_slices"], SMALL_CLASSIFIER),
    "model/resnet50.yaml": (["direct", "model/resnet50"], PREPROCESSING),
    # its last pooling wants two pixels
    "model/densenet121.yaml": (
        ["masked_attention_resnet", "model/densenet121"],
        WIDER,
    ),
    "model/vgg19.yaml": (["direct", "model/vgg19"], WIDER),
    "model/convnext_tiny.yaml": (["direct", "model/convnext_tiny"], WIDER),
    "model/pvt_v2_b2.yaml": (["direct", "model/pvt_v2_b2"], WIDER),
    "model/mambaout_tiny.yaml": (["direct", "model/mambaout_tiny"], WIDER),
    "model/swin_tiny.yaml": (["direct", "model/swin_tiny"], PREPROCESSING),
    "model/volume_resnet18.yaml": (["direct", "model/volume_resnet18"], PREPROCESSING),
    "model/volume_nnunet.yaml": (["masked_attention_resnet", "model/volume_nnunet"], PREPROCESSING),
    "model/volume_densenet121.yaml": (["direct", "model/volume_densenet121"], DEEPER),
    "model/volume_swin.yaml": (["masked_attention_resnet", "model/volume_swin"], DEEPER),
    "training/balanced.yaml": (["direct", "training/balanced"], SMALL_CLASSIFIER),
    "training/early_stopping.yaml": (["direct", "training/early_stopping"], SMALL_CLASSIFIER),
    "training/ema.yaml": (["direct", "training/ema"], SMALL_CLASSIFIER),
    # nothing is downloaded in tests
    "training/fine_tune.yaml": (
        ["direct", "training/fine_tune"],
        [*SMALL_CLASSIFIER, "--model.init_args.network.init_args.pretrained", "false"],
    ),
    "training/frozen.yaml": (
        ["direct", "training/frozen"],
        [*SMALL_CLASSIFIER, "--model.init_args.network.init_args.pretrained", "false"],
    ),
    "training/focal.yaml": (["direct", "training/focal"], SMALL_CLASSIFIER),
    "training/smooth_mixup.yaml": (["masked_attention_resnet", "training/smooth_mixup"], SMALL_CLASSIFIER),
    "trainer/laptop.yaml": (["direct", "trainer/laptop"], SMALL_CLASSIFIER),
    "trainer/quick.yaml": (["segmentation", "trainer/quick"], [*SMALL_SEGMENTER, *WINDOW]),
    "trainer/gpu.yaml": (["direct", "trainer/gpu"], [*SMALL_CLASSIFIER, "--data.init_args.workers", "0"]),
    "trainer/ddp.yaml": (["direct", "trainer/ddp"], [*SMALL_CLASSIFIER, "--trainer.devices", "1"]),
    "trainer/fsdp.yaml": (["direct", "model/swin_tiny", "trainer/fsdp"], PREPROCESSING),
    "trainer/slurm.yaml": (["direct", "trainer/slurm"], [*SMALL_CLASSIFIER, "--trainer.devices", "1"]),
    "trainer/bf16.yaml": (
        ["direct", "trainer/bf16"],
        [*SMALL_CLASSIFIER, *([] if fast_bf16() else ["--trainer.precision", "32-true"])],
    ),
    "trainer/compile.yaml": (["segmentation", "trainer/compile"], [*SMALL_SEGMENTER, *WINDOW]),
}
PROCESSES = ("trainer/ddp.yaml", "trainer/fsdp.yaml", "trainer/slurm.yaml")
"""They start processes of their own: here they are parsed; tests of many processes and a GPU run them."""
COMPILED = "trainer/compile.yaml"
"""A compiler takes half a minute: parsed here, and run by the long tests."""
HERE = [name for name in CONFIGS if name not in (*PROCESSES, COMPILED)]
LIGHT = [name for name in HERE if not name.startswith(("model/", "training/", "probe_", "look_", "trainer/bf16"))]
"""A few batches of the large encoders, of what changes training and of the probes are enough: the base configurations
run whole epochs."""
HEAVY = tuple(
    f"model/{name}.yaml"
    for name in ("vgg19", "convnext_tiny", "pvt_v2_b2", "mambaout_tiny", "volume_swin", "volume_densenet121")
)
"""Seconds each: run in the long tests; test_sequence_fusion.py and test_whole_volume_classifier.py train their networks
on less."""
STUDY_USE = {"demo.yaml": ("segmenter", "direct", "segmentation-first")}
"""Studies that run whole on the tiny cohort, and their arms."""
LARGE = {"fibrosis_two_stage.yaml": 13, "mask_injection.yaml": 9}
"""Studies of many arms, and how many: their cells are parsed here, their smoke variants run in the long tests."""
SLICED = ("staging_slices_compat.yaml",)
"""Run by test_slices_runs.py: they ask for a split by stage."""
STAGED = {"staging_ablation.yaml": 16, "staging_backbones.yaml": 18, "staging_phantom.yaml": 15}
"""The same of stages: their words are checked here, their smoke variants run in the long tests."""


def test_none_is_forgotten() -> None:
    assert set(CONFIGS) == set(USE), "a new configuration needs an entry in USE: what it is used with"
    whole = {*STUDY_USE, *LARGE, *STAGED, *SLICED}
    assert set(STUDIES) == whole, "a new study needs an entry in STUDY_USE, LARGE, STAGED or SLICED"
    assert shipped_names() == CONFIGS, "what the error message lists"


def own_weights(folder: Path) -> Path:
    """Weights of the small classifier's backbone, as a file."""
    import timm

    path = folder / "resnet10t.pth"
    if not path.is_file():
        with torch.random.fork_rng():
            torch.save(timm.create_model("resnet10t", in_chans=1).state_dict(), path)
    return path


def words_of(name: str, tiny: Tiny, runs: Path) -> list[str]:
    configs, small = USE[name]
    if name == "training/frozen.yaml":  # nothing is downloaded in tests
        small = [*small, "--model.init_args.network.init_args.weights_file", str(own_weights(tiny.folder))]
    return [*tiny.words(*configs, runs=runs), *small, *ONE_LOGGER, "--trainer.accelerator", "cpu"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in HERE]
)
def test_a_few_batches(name: str, tiny_cohort: Tiny, tmp_path: Path) -> None:
    limits = {"limit_train_batches": 1, "limit_val_batches": 1, "max_epochs": 1, "check_val_every_n_epoch": 1}
    more = [word for key, value in limits.items() for word in (f"--trainer.{key}", str(value))]
    assert run_command("fit", [*words_of(name, tiny_cohort, tmp_path), *more]) == 0


@pytest.mark.parametrize("name", LIGHT)
def test_an_epoch_leaves_all_that_is_promised(name: str, tiny_cohort: Tiny, tmp_path: Path) -> None:
    words = [*words_of(name, tiny_cohort, tmp_path), "--trainer.max_epochs", "1"]
    words += ["--trainer.check_val_every_n_epoch", "1"]
    assert not fit_and_test(words)
    (config,) = tmp_path.glob("*/*/*/config.yaml")
    run = RunDirectory(config.parent)
    assert yaml.safe_load(config.read_text())["trainer"]["max_epochs"] == 1
    assert run.identity().cell == run.path.name
    assert {path.name for path in run.checkpoints.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert any("train/loss" in json.loads(line) for line in run.metrics.read_text().splitlines())
    assert set(run.finished()) == {"fit", "test"}
    others = [path for path in run.path.rglob("*") if path.is_file() and path != run.done]
    assert run.done.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in others)
    rows = read_records(run.predictions)
    assert sorted(rows["patient_id"]) == sorted(TESTED)
    assert ("dice" if run.identity().role == "segmenter" else "prob") in rows
    if run.identity().role == "segmenter":
        assert not run.validation.exists()
    else:
        kept = torch.load(run.checkpoint("best"), weights_only=True)["state_dict"]
        for column, name in (("threshold", "threshold"), ("x_temperature", "temperature")):
            assert set(rows[column]) == {float(kept[name])}, "the test used what the checkpoint holds"
        assert rows["prob"].tolist() == pytest.approx(expit(rows["logit"] / rows["x_temperature"]).tolist(), abs=1e-6)
        held = read_records(run.validation)
        assert set(held["part"]) == {"valid"}
        assert set(held["patient_id"]).isdisjoint(TESTED), "the patients that chose the checkpoint, not the tested ones"
    again = parsed("test", ["-c", str(config), "--runs", str(tmp_path)])
    assert again.directory.path == run.path, "the saved configuration means the same cell"


@pytest.mark.parametrize("name", PROCESSES)
def test_configurations_of_many_processes_mean_something(
    name: str, tiny_cohort: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"NTASKS": 2, "NTASKS_PER_NODE": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_ID": 1, "JOB_NAME": "x"}
    for key, value in facts.items() if "slurm" in name else []:
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    words = words_of(name, tiny_cohort, tmp_path)
    if "fsdp" in name:
        if not torch.cuda.is_available():
            with pytest.raises(InputError, match=r"FSDP|fsdp"):
                parsed("fit", [*words, "--trainer.precision", "32-true"])
        return
    # the tiny cohort has fewer patients than the usual batch of two processes takes
    words += ["--data.init_args.batch_size", "1"]
    trainer = parsed("fit", [*words, "--trainer.precision", "32-true"]).trainer
    assert type(trainer.strategy).__name__ == "DDPStrategy"
    assert trainer.num_nodes == (2 if "slurm" in name else 1)


def test_compiling_adds_to_the_callbacks(tiny_cohort: Tiny, tmp_path: Path) -> None:
    plain, compiled = (
        parsed("fit", tiny_cohort.words(*names, runs=tmp_path)).resolved["trainer"]["callbacks"]
        for names in (["segmentation"], ["segmentation", "trainer/compile"])
    )
    names = [[callback["class_path"] for callback in callbacks] for callbacks in (plain, compiled)]
    assert sorted([*names[0], "callbacks.compilation.CompiledNetwork"]) == sorted(names[1])


@pytest.mark.slow
def test_a_compiled_training_learns_the_same(tiny_cohort: Tiny, tmp_path: Path) -> None:
    losses = []
    for configs in (["segmentation"], ["segmentation", "trainer/compile"]):
        words = [*tiny_cohort.words(*configs, runs=tmp_path), *USE[COMPILED][1], *ONE_LOGGER]
        words += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "1"]
        assert not fit_and_test([*words, "--arm", configs[-1].replace("/", "-")])
        (log,) = tmp_path.glob(f"*/{configs[-1].replace('/', '-')}/*/metrics.jsonl")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert list((tmp_path / ".compiled").iterdir()), "compiled code lies beside the studies"


def test_overlays_are_short_and_say_how_they_are_used() -> None:
    for name in CONFIGS:
        text = (ROOT / "configs" / name).read_text(encoding="ascii")
        assert text.startswith("#"), f"{name}: begins with what it is for"
        if name.split("/")[0] in ("data", "model", "trainer", "training"):
            assert len(text.splitlines()) <= 25, name
            assert "hepastage fit -c" in text and f"-c {name.removesuffix('.yaml')}" in text, name


@pytest.mark.parametrize("name", HERE)
def test_the_role_is_that_of_the_model(name: str, tiny_cohort: Tiny, tmp_path: Path) -> None:
    resolved = parsed("fit", words_of(name, tiny_cohort, tmp_path)).resolved
    assert (resolved["role"] == "segmenter") == ("Segmentation" in resolved["model"]["class_path"])


def test_the_arms_differ_in_the_mask_alone(tiny_cohort: Tiny, tmp_path: Path) -> None:
    """A comparison of two arms is fair when nothing else differs: compared key by key, as resolved."""

    def flat(value: object, prefix: str = "") -> dict[str, object]:
        if isinstance(value, dict):
            return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}.{key}").items()}
        return {prefix: value}

    resolved = [
        flat(parsed("fit", [*tiny_cohort.words(name, runs=tmp_path), *ONE_LOGGER]).resolved)
        for name in ("direct", "masked_attention_resnet")
    ]
    first, second = resolved
    different = {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
    assert different == {
        ".model.class_path",
        ".model.init_args.network.init_args.mask_injection",
        ".data.init_args.mask_source",
    }


@pytest.mark.parametrize("name", STAGED)
def test_every_arm_of_a_staging_study_is_understood(name: str, tiny_cohort: Tiny, tmp_path: Path) -> None:
    """Keys, classes and values, from the source alone: torch is not needed for it."""
    places = Places.of(tiny_cohort.cohort, tiny_cohort.splits, tmp_path, None)
    names = []
    for smoke in (False, True):
        study = Study.load(ROOT / "studies" / name, smoke)
        names.append([arm.name for arm in study.arms])
        for cell in (cell for cell in cells_of(study, folds=1)[1] if cell.seed == study.seeds[0]):
            precheck(given_of(with_shipped(words_of_cell(cell, study, places))))
    assert names[0] == names[1]
    assert len(names[0]) == STAGED[name]


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A small phantom with T1W and T2W, split by stage; some patients lack T1W."""
    folder = tmp_path_factory.mktemp("stages")
    cohort = make_phantom(folder / "cohort", 40, 1)
    make_splits(cohort, "stage", folds=2, seed=0, official=True).save(folder / "stages.json")
    return Tiny(folder, folder / "cohort" / "cohort.parquet", folder / "stages.json")


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGED)
def test_smoke_variants_of_staging_end_in_a_report(name: str, stages: Tiny, tmp_path: Path) -> None:
    study = Study.load(ROOT / "studies" / name, smoke=True)
    assert run_study(study, stages.cohort, stages.splits, tmp_path, stages.folder / "store") == []
    folder = tmp_path / study.name / "comparison"
    page = (folder / "report.html").read_text(encoding="utf-8")
    (found,) = [
        family for family in read_json(folder / "comparison.json", "it")["families"] if family["kind"] == "multiclass"
    ]
    assert {arm["arm"] for arm in found["arms"]} == {arm.name for arm in study.arms}
    usual = [arm for arm in study.arms if arm.role != "probe"]
    assert page.count('<table class="matrix">') == len(usual), "a confusion matrix for each arm that is no probe"
    assert len(found["differences"]) == len(usual) - 1


@pytest.mark.parametrize("name", STUDY_USE)
def test_studies_run_to_the_end(name: str, tiny_cohort: Tiny, tmp_path: Path) -> None:
    study = Study.load(ROOT / "studies" / name)
    small = {
        "trainer.max_epochs": "1", "trainer.check_val_every_n_epoch": "1", "trainer.accelerator": "cpu",
        PREPROCESSING[0].lstrip("-"): PREPROCESSING[1], ONE_LOGGER[0].lstrip("-"): ONE_LOGGER[1],
    }  # fmt: skip
    store = tiny_cohort.folder / "store"
    assert run_study(study, tiny_cohort.cohort, tiny_cohort.splits, tmp_path, store, small) == []
    runs = [RunDirectory(path.parent) for path in tmp_path.glob(f"{study.name}/*/*/done.json")]
    cells = sorted((run.identity().arm, run.identity().fold) for run in runs)
    assert cells == sorted((arm, fold) for arm in STUDY_USE[name] for fold in range(2))
    for run in runs:
        rows = read_records(run.predictions)
        assert sorted(rows["patient_id"]) == sorted(TESTED)
        assert set(rows["study"]) == {study.name}
        if run.identity().role == "classifier":
            assert rows["quality"].notna().all(), "a direct arm is shown by bands of segmentation quality as well"
    assert run_study(study, tiny_cohort.cohort, tiny_cohort.splits, tmp_path, store, small) == []


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Cohort and split of patients with stiffness and histology: trained by one, tested by the other."""
    folder = tmp_path_factory.mktemp("measured")
    cohort = folder / "cohort.parquet"
    # every patient of the tiny cohort twice, as smoke variants take whole batches
    frame = frame_of(folder, tuple(f"P{number:02d}" for number in range(1, 25)))
    frame["metavir"] = [4 if value > 12 else 1 for value in frame["lsm_kpa"]]
    frame["official_split"] = ["test" if int(patient[1:]) % 6 in (3, 4) else "train" for patient in frame["patient_id"]]
    Cohort(frame, folder, str(cohort)).save(cohort)
    splits = folder / "splits.json"
    make_splits(Cohort.load(cohort), "lsm>12", 2, 0, test_rule="metavir>=3", official=True).save(splits)
    return cohort, splits


@pytest.mark.parametrize("name", LARGE)
def test_large_studies_mean_what_they_say(name: str, measured: tuple[Path, Path], tmp_path: Path) -> None:
    study = Study.load(ROOT / "studies" / name)
    assert len(study.arms) == LARGE[name]
    assert [arm.name for arm in Study.load(ROOT / "studies" / name, smoke=True).arms] == [a.name for a in study.arms]
    cohort, splits = measured
    places = Places.of(cohort, splits, tmp_path, None)
    resolver = Resolver()
    _, cells = cells_of(study, folds=1)
    seen = {}
    for cell in (cell for cell in cells if cell.seed == study.seeds[0]):
        resolved = resolver.resolve(words_of_cell(cell, study, places))
        data, model = resolved["data"]["init_args"], resolved["model"]
        assert ("Masked" in model["class_path"]) == (data["mask_source"] != "none"), cell.title
        assert (data["perturbation"] is None) == (data["mask_source"] != "perturbed"), cell.title
        key = (
            model["init_args"]["network"]["init_args"]["backbone"],
            data["mask_source"],
            cell.arm.role,
            data["target"],
        )
        seen[cell.arm.name] = (*key, tuple(model["init_args"]["network"]["init_args"]["mask_injection"]))
    assert len(set(seen.values())) == LARGE[name], "no two arms are the same"


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_smoke_variants_end_in_a_report_with_all_arms(name: str, measured: tuple[Path, Path], tmp_path: Path) -> None:
    cohort, splits = measured
    words = ["run", str(ROOT / "studies" / name), "--smoke", "--cohort", str(cohort), "--splits", str(splits)]
    assert main(["grid", *words, "--runs", str(tmp_path), "--cores", "2"]) == 0
    study = Study.load(ROOT / "studies" / name, smoke=True)
    comparison = tmp_path / study.name / "comparison"
    found = json.loads((comparison / "comparison.json").read_text())
    arms = {arm["arm"] for family in found["families"] for arm in family["arms"]}
    assert arms >= {arm.name for arm in study.arms}
    assert (comparison / "report.html").is_file()
