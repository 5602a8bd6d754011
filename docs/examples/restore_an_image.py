"""Denoise a photograph and fill one in, and print the PSNR before and after. Offline; about a minute on a CPU.

The fits are short, so that it is quick: longer ones do better.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from skimage import data

import dipdefense
from dipdefense.files.writing import write_image
from dipdefense.restoration.presets import SMALL
from eval.metrics import psnr

photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 255
clean = F.avg_pool2d(photo[..., :256, 96:352], 4)  # (1, 3, 64, 64), the head

generator = torch.Generator().manual_seed(0)
noisy = (clean + 25 / 255 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
known = (torch.rand(1, 1, 64, 64, generator=generator) < 0.5).float()

denoised = dipdefense.denoise(noisy, config=replace(SMALL["denoise"], iterations=250))
filled = dipdefense.inpaint(clean * known, known, config=replace(SMALL["inpaint"], iterations=250))

for name, before, after in (("noise", noisy, denoised), ("half the pixels", clean * known, filled)):
    print(f"{name:15}  {psnr(before, clean).item():5.2f} dB -> {psnr(after, clean).item():5.2f} dB")
write_image(torch.cat([clean, noisy, denoised, clean * known, filled], 3)[0], "restored.png")
