"""`remove_jpeg_artifacts`: strong artefacts go, and what was not compressed stays."""

import pytest
import torch
from PIL import Image
from restoration_images import BRIEF, edges, error, smooth

from dipdefense import fit, remove_jpeg_artifacts
from dipdefense.files.reading import read_image
from dipdefense.tiles import cut, join


def test_artefacts_are_removed_tile_by_tile():
    blocky = smooth(1, 3, 24, 16)
    expected = join(fit(cut(blocky, 16, 4), BRIEF).reconstruction, (24, 16), 16, 4)
    torch.testing.assert_close(remove_jpeg_artifacts(blocky, config=BRIEF, tile=16), expected)


def test_by_default_strong_artefacts_go_and_the_rest_stays_as_it_is(small_fits, tmp_path):
    """Each image as if it were alone; compressed at quality 10, 90 and not at all."""
    clean = torch.nn.functional.avg_pool2d(edges(80), 3, 1, 1)[:, :, 8:72, 8:72]
    seen = []
    for quality in (10, 90):
        levels = (clean[0] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(tmp_path / "compressed.jpg", quality=quality)
        seen.append(read_image(tmp_path / "compressed.jpg"))
    shares, filtered = [], []
    images = torch.stack([seen[1], seen[0], clean[0], seen[0]])
    result = remove_jpeg_artifacts(
        images, callback=lambda state: shares.append(state.share), filter_callback=filtered.append
    )
    assert torch.equal(result[0], images[0])
    assert torch.equal(result[2], images[2])
    assert error(result[1], clean[0]) < 0.9 * error(images[1], clean[0])
    torch.testing.assert_close(result[3], result[1], atol=1e-3, rtol=0)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert filtered == [0, 0.5, 0.5, 1]
    with pytest.raises(ValueError, match="images must have 1 or 3 channels, as JPEG has, got 2: set refine=False"):
        remove_jpeg_artifacts(clean[:, :2])
