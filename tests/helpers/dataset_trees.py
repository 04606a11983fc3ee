"""Small trees in the layouts of published datasets, of real JPEG bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

AFFECTNET_HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
)


def jpeg(number: int, size: tuple[int, int] = (24, 20), kind: str = "JPEG") -> bytes:
    """An image that is unique to its number."""
    blocks = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(stream, kind)
    return stream.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def affectnet_row(path: str, expression: int, box: Sequence[int] = (4, 2, 16, 16)) -> str:
    points = ";".join(f"{10 + i / 10:.1f};{5 + i / 10:.1f}" for i in range(68))
    return f"{path},{','.join(map(str, box))},{points},{expression},-0.25,0.5"


def affectnet_2017(root: Path, train: Mapping[str, int], validation: Mapping[str, int]) -> None:
    """`train` and `validation`: path -> expression. Images are below Manually_Annotated_Images."""
    number = 0
    for name, rows in (("training", train), ("validation", validation)):
        lines = [AFFECTNET_HEADER, *(affectnet_row(path, expression) for path, expression in rows.items())]
        write(root / f"{name}.csv", "\n".join(lines) + "\n")
        for path in rows:
            write(root / "Manually_Annotated_Images" / path, jpeg(number, (40, 30)))
            number += 1


def affectnet_2021(root: Path, train: Sequence[int], validation: Sequence[int]) -> None:
    """The expressions of image 0, 1, ... of each set."""
    for offset, (folder, expressions) in enumerate((("train_set", train), ("val_set", validation))):
        (root / folder / "annotations").mkdir(parents=True)
        for number, expression in enumerate(expressions):
            write(root / folder / "images" / f"{number}.jpg", jpeg(1000 * offset + number))
            notes = {"exp": str(expression), "val": "-0.25", "aro": "0.5", "lnd": np.arange(136.0)}
            for name, value in notes.items():
                np.save(root / folder / "annotations" / f"{number}_{name}.npy", value)


def rafdb(root: Path, labels: Mapping[str, int], images: str = "aligned") -> None:
    """`labels`: `train_00001.jpg` -> 1 to 7."""
    write(root / "EmoLabel" / "list_patition_label.txt", "".join(f"{n} {label}\n" for n, label in labels.items()))
    for number, name in enumerate(labels):
        file = name.replace(".jpg", "_aligned.jpg") if images == "aligned" else name
        write(root / "Image" / images / file, jpeg(number))


def class_folders(root: Path, faces: Mapping[str, Sequence[str]], first: int = 0) -> None:
    """`faces`: split -> the class of each image."""
    number = first
    for split, classes in faces.items():
        for name in classes:
            write(root / split / name / f"{number:04d}.jpg", jpeg(number))
            number += 1
