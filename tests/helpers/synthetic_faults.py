"""A tree of synthetic faces with injected faults, for the doctor's tests and for the picture of its page.

python -m tests.helpers.synthetic_faults DIR
python -m shards.doctor DIR --html doctor.html
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageOps

from adadf_dist.data.synthetic.faces import EMOTIONS, render_sample

SIZE = 96


def draw_tree(root: Path, train: int = 120, validation: int = 30, test: int = 60) -> None:
    """`root`/SPLIT/CLASS/NUMBER.png: valid, distinct faces. Numbers continue over the splits."""
    number = 0
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        for _ in range(count):
            face = render_sample(seed=7, index=number, size=SIZE)
            save(Image.fromarray(face.image), root / split / EMOTIONS[face.label] / f"{number:04d}.png")
            number += 1


def save(image: Image.Image, path: Path) -> str:
    """Write the image; returns its path below the root."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path.relative_to(path.parents[2]).as_posix()


def pictures(root: Path, split: str) -> list[Path]:
    return sorted((root / split).glob("*/*.png"), key=lambda path: path.name)


def plant(root: Path) -> dict[str, list[set[str]]]:
    """Inject faults into a tree. Returns fault -> the groups of files (below `root`) that show it."""
    train, validation = pictures(root, "train"), pictures(root, "validation")

    def below(path: Path) -> str:
        return path.relative_to(root).as_posix()

    def other(path: Path) -> str:
        return EMOTIONS[(EMOTIONS.index(path.parent.name) + 1) % len(EMOTIONS)]

    faults: dict[str, list[set[str]]] = {}
    for path in train[:3]:  # the same file in train and test
        copy = save(Image.open(path), root / "test" / path.parent.name / f"copy-{path.name}")
        faults.setdefault("exact across", []).append({below(path), copy})
    for path in train[3:5]:  # twice in train, under two labels
        copy = save(Image.open(path), root / "train" / other(path) / f"relabeled-{path.name}")
        faults.setdefault("relabeled", []).append({below(path), copy})
    for path in validation[:2]:  # downscaled and re-encoded
        smaller = Image.open(path).convert("RGB").resize((80, 80), Image.Resampling.LANCZOS)
        copy = save(smaller, root / "train" / path.parent.name / f"smaller-{path.stem}.jpg")
        faults.setdefault("near across", []).append({below(path), copy})
    for path in train[5:7]:
        copy = save(ImageOps.mirror(Image.open(path)), root / "test" / path.parent.name / f"mirrored-{path.name}")
        faults.setdefault("mirrored across", []).append({below(path), copy})
    for number, level in enumerate((0, 128)):
        blank = save(Image.new("RGB", (SIZE, SIZE), (level,) * 3), root / "train" / "sad" / f"blank-{number}.png")
        faults.setdefault("blank", []).append({blank})
    tiny = Image.open(train[7]).resize((20, 20), Image.Resampling.LANCZOS)
    train[7].unlink()
    faults["tiny"] = [{save(tiny, root / "train" / train[7].parent.name / f"tiny-{train[7].name}")}]
    data = train[8].read_bytes()
    train[8].write_bytes(data[: len(data) // 2])
    (root / "train" / "happy" / "empty.jpg").write_bytes(b"")
    faults["unreadable"] = [{below(train[8])}, {"train/happy/empty.jpg"}]
    renamed = train[9].rename(train[9].with_suffix(".jpg"))
    faults["suspicious"] = [{below(renamed)}]
    return faults


if __name__ == "__main__":
    draw_tree(Path(sys.argv[1]))
    plant(Path(sys.argv[1]))
