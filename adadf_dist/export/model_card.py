"""Model card: a Markdown page with Hugging Face front matter, written next to the exported file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from adadf_dist.checkpoint.trained_model import TrainedModel
from adadf_dist.config.schema import Config
from adadf_dist.console.tables import markdown_table
from adadf_dist.data.dataset import Dataset
from adadf_dist.errors import UserError
from adadf_dist.export.licenses import data_license
from adadf_dist.export.metadata import ExportMetadata

OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD with Nesterov momentum"}
"""Names of the optimizers, by `optimizer.name`."""
LIMITS = """\
Intended for research on facial expressions: which label annotators would give to a face, and how much they disagree.

- **An expression is not an emotion.** The network predicts how annotators label a face, not what a person feels.
- **Not for decisions about people**: hiring, education, policing, health, insurance, credit, or surveillance of people
  who did not consent. Some of these uses are illegal in several countries.
- **Bias is unknown.** Differences in accuracy by age, sex, skin color or culture were not measured unless a table here
  reports them. The labels contain the annotators' cultural bias and errors, and the network learned them.
- **Only for faces like the training faces.** Other cameras, crops, alignments or poses lower accuracy by an unknown
  amount. Every image gets a class, even one without a face.
- Probabilities estimate the distribution of annotators' labels; they are not calibrated unless stated."""


def write_card(
    trained: TrainedModel,
    metadata: ExportMetadata,
    files: Sequence[Path],
    data: tuple[Dataset | None, str],
    license_name: str,
) -> str:
    """Return the text of the model card.

    `files`: the exported files. `data`: the dataset (None if not available) and how it differs from the one that the
    run was trained on.
    """
    dataset, difference = data
    source = str(dataset.manifest.provenance.get("source", "")) if dataset is not None else ""
    metrics = find_metrics(trained)
    name = dataset.name if dataset is not None else "an unknown dataset"
    sections = [
        (f"Ada-DF on {name}", summary_lines(trained, metadata, files)),
        ("Use", usage_lines(metadata, files)),
        ("Intended use and limits", LIMITS),
        (
            "Data",
            [
                *(
                    [f"**The checkpoint {difference}.** This section describes the dataset available now.", ""]
                    if difference
                    else []
                ),
                *describe_data(dataset, trained.config),
                "",
                f"License of the data: {data_license(source, license_name)}.",
            ],
        ),
        ("Training", describe_training(trained.config, trained.epoch)),
        ("Metrics", describe_metrics(metrics, trained.classes)),
        ("Preprocessing", describe_preprocessing(metadata)),
    ]
    text = [f"---\n{yaml.safe_dump(front_matter(name, metrics, files), sort_keys=False, allow_unicode=True)}---"]
    for number, (title, body) in enumerate(sections):
        text += [f"{'#' if number == 0 else '##'} {title}", body if isinstance(body, str) else "\n".join(body)]
    return "\n\n".join(text) + "\n"


def front_matter(name: str, by_split: Mapping[str, Mapping[str, Any]], files: Sequence[Path]) -> dict[str, object]:
    """Return the front matter. A model index is included only with results: Hugging Face rejects an empty one."""
    endings = {".onnx": "onnx", ".safetensors": "safetensors", ".pt2": "pytorch"}
    tags = ["facial-expression-recognition", "ada-df", *(endings[file.suffix] for file in files)]
    values: dict[str, object] = {"library_name": "adadf_dist", "pipeline_tag": "image-classification", "tags": tags}
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": name, "type": name, "split": split},
            "metrics": [{"type": "accuracy", "value": round(metrics["accuracy"], 4)}],
        }
        for split, metrics in by_split.items()
    ]
    return {**values, "model-index": [{"name": f"Ada-DF on {name}", "results": results}]} if results else values


def summary_lines(trained: TrainedModel, metadata: ExportMetadata, files: Sequence[Path]) -> list[str]:
    size = metadata.preprocessing.image_size
    baselines = {"one_hot": "its single-label baseline", "votes": "its baseline trained on annotator votes"}
    method = baselines.get(metadata.supervision, "the target branch of Ada-DF")
    return [
        f"Facial-expression classifier, {method} (Liu et al., ICASSP 2023): {trained.config.model.backbone}, "
        f"{len(metadata.classes)} classes, images of {size} x {size}.",
        "",
        f"- Files: {', '.join(f'`{file.name}`' for file in files)}",
        f"- Written by adadf_dist {metadata.version} from the checkpoint of epoch {metadata.epoch}, "
        f"SHA-256 `{metadata.checkpoint_sha256}`",
        f"- Classes, in the order of the logits: {', '.join(metadata.classes)}",
    ]


def usage_lines(metadata: ExportMetadata, files: Sequence[Path]) -> list[str]:
    """Return example code for using the files."""
    lines = [
        "From a shell, with any of the files:",
        "",
        "```",
        f"python -m adadf_dist.predict {files[0].name} FACE.jpg",
        "```",
    ]
    onnx = next((file.name for file in files if file.suffix == ".onnx"), None)
    preprocessing = metadata.preprocessing
    if onnx and not preprocessing.ten_crop:
        size, mean, std = preprocessing.image_size, preprocessing.mean, preprocessing.std
        lines += [
            "",
            "Without adadf_dist (numpy, Pillow, onnxruntime), for an image cropped to the face:",
            "",
            "```python",
            "import json, numpy as np, onnxruntime; from PIL import Image",
            f'session = onnxruntime.InferenceSession("{onnx}")',
            f'face = Image.open("FACE.jpg").convert("RGB").resize(({size}, {size}), Image.BILINEAR)',
            f"pixels = np.float32((np.asarray(face) / 255 - {list(mean)}) / {list(std)})",
            'print(json.loads(session.get_modelmeta().custom_metadata_map["classes"])'
            '[session.run(None, {"images": pixels.transpose(2, 0, 1)[None]})[0][0].argmax()])',
            "```",
        ]
    return lines


def describe_data(dataset: Dataset | None, config: Config) -> list[str]:
    if dataset is None:
        return ["Unknown: the dataset was not available when this card was written."]
    built = dataset.manifest.provenance
    counts = [
        [name, *(f"{count:,}" for count in (info.samples, *info.class_counts))] for name, info in dataset.splits.items()
    ]
    lines = [
        f"`{dataset.name}`, built from the source `{built.get('source', 'unknown')}` with the options",
        f"`{json.dumps(built.get('options', {}), ensure_ascii=False)}`; the builder found",
        f"`{json.dumps(built.get('stats', {}), ensure_ascii=False)}`.",
        "",
        *markdown_table(["split", "samples", *dataset.classes], counts),
    ]
    if "validation" not in dataset.splits:
        fraction = config.data.validation_fraction
        lines += ["", f"Validation was held out from train: {fraction:.0%} of each class, using seed {config.seed}."]
    if config.data.label_noise_rate or config.data.label_noise_file:
        lines += ["", "Label noise was injected into the training labels (`data.label_noise_rate`) as an experiment."]
    return lines


def describe_training(config: Config, epoch: int) -> list[str]:
    if not epoch:
        return [
            "Unknown: the weights were imported, not trained by adadf_dist, and the file does not describe training."
        ]
    flip = "; metrics average the logits of image and mirror image" if config.evaluation.flip_tta else ""
    optimizer, loss, start = config.optimizer, config.loss, "random weights"
    if config.model.pretrained:
        start = f"pretrained weights `{Path(config.model.pretrained).name}`"
    average = f", weights averaged with decay {optimizer.ema_decay}" if optimizer.ema_decay else ""
    return [
        f"- {epoch} of {config.epochs} epochs with seed {config.seed}, from {start}",
        f"- {OPTIMIZERS[optimizer.name]}, lr {optimizer.lr}, {optimizer.schedule} schedule, "
        f"global batch {config.batch_size}{average}",
        f"- Supervision {loss.supervision}; lambda_min {loss.lambda_min}, epoch threshold {loss.epoch_threshold}, "
        f"class threshold {config.class_distributions.threshold}",
        f"- Augmentation {config.augment.policy} ({config.augment.num_ops} operations, magnitude "
        f"{config.augment.magnitude}), flip {config.augment.flip_prob}, erasing {config.augment.erase_prob}",
        f"- Sampler {config.data.sampler}, precision {config.runtime.precision}{flip}",
    ]


def find_metrics(trained: TrainedModel) -> dict[str, Mapping[str, Any]]:
    """Return the exported epoch's metrics: validation from the checkpoint, test from the run's `result.json`."""
    record = next((record for record in trained.records if record["epoch"] == trained.epoch), None)
    found = {"validation": record["validation"]} if record is not None else {}
    path = trained.path.parent.parent / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        by_epoch = {result["epochs"]: result["final_epoch_test"], result["selected_epoch"]: result["test"]}
    except FileNotFoundError:
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: corrupt ({error}); delete it and run the same training command again to regenerate it (a "
            "finished run is not retrained)"
        ) from None
    test = by_epoch.get(trained.epoch)
    return {**found, "test": test} if test else found


def describe_metrics(by_split: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> list[str]:
    if not by_split:
        return ["Unknown: neither the checkpoint nor its run's `result.json` has metrics of this epoch."]
    rows, per_class = [], []
    for split, metrics in by_split.items():
        low, high = metrics["accuracy_interval"]
        accuracies = f"{metrics['accuracy']:.2%}", f"{low:.2%} to {high:.2%}", f"{metrics['mean_class_accuracy']:.2%}"
        rows.append([split, f"{metrics['samples']:,}", *accuracies])
        cells = ("no samples" if fraction is None else f"{fraction:.1%}" for fraction in metrics["class_accuracy"])
        per_class.append([split, *cells])
    lines = markdown_table(["split", "samples", "accuracy", "95% CI", "mean class accuracy"], rows)
    lines += ["", "Per-class accuracy:", "", *markdown_table(["split", *classes], per_class)]
    notes = ["", "Wilson intervals. Validation accuracy is optimistic if the epoch was selected on validation."]
    if "test" not in by_split:
        notes.append("This epoch was not tested.")
    return [*lines, *notes]


def describe_preprocessing(metadata: ExportMetadata) -> list[str]:
    values = metadata.preprocessing
    resized = f"Resized to {values.resized} x {values.resized} ({values.kernel}), RGB"
    if values.ten_crop:
        resized += f"; ten crops of {values.image_size} (corners, center, mirrored), whose logits are averaged"
    return [
        f"{resized}; scaled to [0, 1], minus {list(values.mean)}, divided by {list(values.std)} per channel. Crop or "
        "align faces as in the dataset.",
        "",
        "Each file's metadata contains the same under `preprocessing` and `classes`:",
        "",
        "```json",
        json.dumps(values.to_dict(), ensure_ascii=False),
        "```",
    ]
