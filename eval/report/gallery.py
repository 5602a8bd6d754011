"""The gallery of a run for the page: its values unchanged, and its strips of frames as data URLs."""

import base64
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ["embed_gallery"]

NEEDED = ("classes", "height", "width", "items")
OF_ITEM = ("index", "label", "condition", "input", "answer", "frames")


def embed_gallery(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The content of `folder/gallery/gallery.json`, with the strip `folder/gallery/000.png` and so on in each item.

    Raises:
        OSError: a strip is missing or not an image.
        ValueError: a strip does not have the size in `gallery.json`, or values are missing there.
    """
    lacking = [name for name in NEEDED if name not in content]
    lacking += [name for item in content.get("items", []) for name in OF_ITEM if name not in item]
    if lacking:
        raise ValueError(f"{folder / 'gallery' / 'gallery.json'} must hold {lacking[0]}: make the gallery anew")
    items = []
    for number, item in enumerate(content["items"]):
        path = folder / "gallery" / f"{number:03d}.png"
        with Image.open(path) as strip:
            size = content["width"], content["height"] * (len(item["frames"]) + 2)
            if strip.size != size:
                raise ValueError(f"{path} must be {size[0]}x{size[1]} pixels, got {strip.size[0]}x{strip.size[1]}")
        encoded = base64.b64encode(path.read_bytes()).decode("ascii")
        items.append(item | {"strip": f"data:image/png;base64,{encoded}"})
    return content | {"items": items}
